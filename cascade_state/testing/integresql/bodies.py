"""What the API reads from requests and writes into answers.

IntegreSQL's clients send JSON, forms, empty bodies and a bare `null`, with the right content type, a wrong one, or
none: the body itself tells which it is.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from cascade_state.errors import InvalidArgument
from cascade_state.testing.integresql.database_config import DatabaseConfig
from cascade_state.testing.integresql.names import checked_hash

__all__ = [
    "hash_in_body",
    "hash_in_path",
    "message",
    "number_in_path",
    "read_body",
    "template_answer",
    "test_answer",
]

_BODY_LIMIT = 64 * 1024  # bytes; a hash has 1 KiB at most, and percent-encoding triples it
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def message(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Returns an answer whose body is `{"message": …}`, as all errors have it."""
    return JSONResponse({"message": text}, status, headers)


def template_answer(template_hash: str, config: DatabaseConfig) -> JSONResponse:
    """Returns the data of a template database."""
    return JSONResponse({"database": {"templateHash": template_hash, "config": config.to_json()}})


def test_answer(template_hash: str, number: int, config: DatabaseConfig) -> JSONResponse:
    """Returns the data of a test database."""
    return JSONResponse({"id": number, "database": {"templateHash": template_hash, "config": config.to_json()}})


async def read_body(request: Request) -> bytes:
    """Returns the body of a request.

    Raises:
        HTTPException: 413, it is far too long.
    """
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _BODY_LIMIT:
            raise HTTPException(413, f"the body is longer than {_BODY_LIMIT} bytes")
    return bytes(content)


def hash_in_body(request: Request) -> str:
    """Returns the checked hash of a request that makes a template.

    Raises:
        InvalidArgument: There is none, or it cannot be served.
    """
    return checked_hash(_field(request.state.body, "hash"))


def hash_in_path(request: Request) -> str:
    """Returns the checked hash of the path, which is still percent-encoded there.

    Raises:
        InvalidArgument: It cannot be served.
    """
    try:
        return checked_hash(unquote(request.path_params["hash"], errors="strict"))
    except UnicodeDecodeError:
        raise InvalidArgument(argument="hash", reason="must be UTF-8, percent-encoded") from None


def number_in_path(request: Request) -> int:
    """Returns the id of the path.

    Raises:
        InvalidArgument: It is not an integer.
    """
    text = unquote(request.path_params["id"], errors="replace")
    if not _INTEGER.fullmatch(text):
        raise InvalidArgument(argument="id", reason="must be an integer")
    return int(text)


def _field(content: bytes, name: str) -> Any:
    stripped = content.strip()
    if stripped.startswith((b"{", b"[", b"null", b'"')) or b"\0" in stripped:  # the last: JSON in UTF-16 or UTF-32
        try:
            document = json.loads(stripped)
        except (ValueError, RecursionError):
            raise InvalidArgument(argument="body", reason="must be JSON or a form") from None
        return document.get(name) if isinstance(document, dict) else None
    try:
        return parse_qs(stripped.decode(), errors="strict").get(name, [None])[0]
    except ValueError:
        raise InvalidArgument(argument="body", reason="must be JSON or a form") from None
