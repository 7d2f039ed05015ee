"""The OpenAPI document, made from the table of operations."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cascade_state.testing.integresql.operations import OPERATIONS, Operation

__all__ = ["document"]

_TEXT = {"type": "string"}
_CONFIG = {
    "type": "object",
    "required": ["host", "port", "username", "password", "database"],
    "properties": {
        "host": _TEXT,
        "port": {"type": "integer"},
        "username": _TEXT,
        "password": _TEXT,
        "database": _TEXT,
        "additionalParams": {"type": "object", "additionalProperties": _TEXT},
    },
}
_DATABASE = {
    "type": "object",
    "required": ["templateHash", "config"],
    "properties": {"templateHash": _TEXT, "config": {"$ref": "#/components/schemas/Config"}},
}
_SCHEMAS = {
    "Config": _CONFIG,
    "Database": _DATABASE,
    "Template": {
        "type": "object",
        "required": ["database"],
        "properties": {"database": {"$ref": "#/components/schemas/Database"}},
    },
    "Test": {
        "type": "object",
        "required": ["id", "database"],
        "properties": {
            "id": {"type": "integer", "minimum": 0},
            "database": {"$ref": "#/components/schemas/Database"},
        },
    },
    "Message": {"type": "object", "required": ["message"], "properties": {"message": _TEXT}},
    "Status": {"type": "object", "required": ["status"], "properties": {"status": _TEXT}},
    "Hash": {
        "type": "object",
        "required": ["hash"],
        "properties": {"hash": {"type": "string", "minLength": 1, "maxLength": 1024}},
    },
}
_CONTENTS = {
    "template": {"application/json": {"schema": {"$ref": "#/components/schemas/Template"}}},
    "test": {"application/json": {"schema": {"$ref": "#/components/schemas/Test"}}},
    "status": {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}},
    "document": {"application/json": {"schema": {"type": "object"}}},
    "text": {"text/plain": {"schema": _TEXT}},
}
_FAILURE = {"application/json": {"schema": {"$ref": "#/components/schemas/Message"}}}
_BODY = {
    "required": True,
    "content": {
        kind: {"schema": {"$ref": "#/components/schemas/Hash"}}
        for kind in ("application/json", "application/x-www-form-urlencoded")
    },
}
_PARAMETERS = {
    "hash": {"name": "hash", "in": "path", "required": True, "schema": _TEXT},
    "id": {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}},
}


def document(*, with_token: bool) -> dict[str, Any]:
    """Returns the document; a server with a token says so."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, with_token)
    components: dict[str, Any] = {"schemas": _SCHEMAS}
    if with_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Test databases, as IntegreSQL's API v1", "version": _version()},
        "paths": paths,
        "components": components,
    }


def _operation(operation: Operation, with_token: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary}
    if operation.deprecated:
        described["deprecated"] = True
    names = re.findall(r"{(\w+)}", operation.path)
    if names:
        described["parameters"] = [_PARAMETERS[name] for name in names]
    if operation.takes_hash:
        described["requestBody"] = _BODY
    if with_token and not operation.public:
        described["security"] = [{"token": []}]
    described["responses"] = {
        str(status): _response(operation, status, meaning) for status, meaning in operation.all_answers.items()
    }
    return described


def _response(operation: Operation, status: int, meaning: str) -> dict[str, Any]:
    content: Any = _FAILURE if status >= 400 else _CONTENTS.get(operation.answer)
    return {"description": meaning} | ({"content": content} if content else {})


def _version() -> str:
    try:
        return version("cascade-state")
    except PackageNotFoundError:
        return "unknown"
