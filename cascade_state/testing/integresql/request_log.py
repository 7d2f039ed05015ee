"""One line of log and one count for each request; ids of requests."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cascade_state.testing.integresql.service import IntegresqlService

__all__ = ["RequestLog"]

_logger = logging.getLogger("cascade_state.testdb")
_SECRET_HEADERS = {"authorization", "proxy-authorization", "x-csrf-token", "cookie", "set-cookie"}
_PASSWORD = re.compile(rb'("password"\s*:\s*)"(?:[^"\\]|\\.)*"')
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_KEPT = 64 * 1024  # bytes; answers with passwords are shorter, so none is cut off before it is masked
_SHOWN = 2048  # bytes of a body in the log


class RequestLog:
    """Wraps the application: each request is counted, logged, and told its id."""

    def __init__(self, app: ASGIApp, *, service: IntegresqlService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI's
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, self._service)
        scope["exchange"] = exchange
        try:
            await self._app(scope, exchange.watching(receive), exchange.answering(send))
        finally:
            exchange.finish()


class _Exchange:
    """One request and its answer, on their way through."""

    def __init__(self, scope: Scope, service: IntegresqlService) -> None:
        self.operation = "other"
        self._scope = scope
        self._service = service
        self._settings = service.settings
        self._started = time.perf_counter()
        self._status = 500
        self._request_id = _request_id(scope) if self._settings.request_ids else None
        self._request_body = bytearray()
        self._response_body = bytearray()
        self._response_headers: Iterable[tuple[bytes, bytes]] = ()

    def watching(self, receive: Receive) -> Receive:
        if not self._settings.logged.request_body:
            return receive

        async def watched() -> Message:
            event = await receive()
            self._request_body += event.get("body", b"")[: _SHOWN - len(self._request_body)]
            return event

        return watched

    def answering(self, send: Send) -> Send:
        async def watched(event: Message) -> None:
            if event["type"] == "http.response.start":
                self._status = event["status"]
                if self._request_id is not None:
                    MutableHeaders(scope=event)["X-Request-Id"] = self._request_id
                self._response_headers = event["headers"]
            elif self._settings.logged.response_body:
                self._response_body += event.get("body", b"")[: _KEPT - len(self._response_body)]
            await send(event)

        return watched

    def finish(self) -> None:
        """Counts and logs."""
        # Methods are the caller's to invent; a label must not be.
        method = self._scope["method"] if self.operation != "other" else "other"
        self._service.figures.count_request(self.operation, method, self._status)
        if self._settings.log_requests and _logger.isEnabledFor(self._settings.request_log_level):
            _logger.log(self._settings.request_log_level, "%s", " ".join(self._parts()))

    def _parts(self) -> Iterable[str]:
        logged = self._settings.logged
        yield f"method={self._scope['method']}"
        yield f"path={_quoted(self._scope.get('raw_path') or self._scope['path'].encode())}"
        yield f"status={self._status}"
        yield f"milliseconds={(time.perf_counter() - self._started) * 1000:.1f}"
        if self._request_id is not None:
            yield f"request_id={_quoted(self._request_id.encode())}"
        if logged.request_query:
            yield f"query={_quoted(self._scope['query_string'])}"
        if logged.request_header:
            yield f"request_header={_headers(self._scope['headers'])}"
        if logged.request_body:
            yield f"request_body={_quoted(bytes(self._request_body))}"
        if logged.response_header:
            yield f"response_header={_headers(self._response_headers)}"
        if logged.response_body:
            yield f"response_body={_quoted(_without_password(bytes(self._response_body)))}"


def _without_password(body: bytes) -> bytes:
    return _PASSWORD.sub(rb'\1"***"', body)[:_SHOWN]


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return secrets.token_hex(16)


def _headers(headers: Iterable[tuple[bytes, bytes]]) -> str:
    shown: dict[str, Any] = {}
    for name, value in headers:
        key = name.decode("latin-1").lower()
        shown[key] = "***" if key in _SECRET_HEADERS else value.decode("latin-1")
    return json.dumps(shown)


def _quoted(text: bytes) -> str:
    """Returns the text as it is when it is one plain word, else in quotes, with everything odd escaped."""
    plain = text.decode("utf-8", errors="backslashreplace")
    return plain if re.fullmatch(r"[!#-<>-~]+", plain) else json.dumps(plain)
