"""The operations on HTTP: paths, tokens, errors as statuses, and callers who hang up."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cascade_state.errors import (
    DatabaseDiscarded,
    DatabaseInUse,
    DatabaseNotFound,
    InvalidArgument,
    InvalidDatabaseName,
    PermissionDenied,
    ServerUnavailable,
    TemplateNotFound,
    TestDatabaseError,
)
from cascade_state.testing.integresql.bodies import message, read_body
from cascade_state.testing.integresql.operations import OPERATIONS, Operation
from cascade_state.testing.integresql.request_log import RequestLog
from cascade_state.testing.integresql.service import IntegresqlService

__all__ = ["application"]

_logger = logging.getLogger("cascade_state.testdb")
_RETRY_SECONDS = 1
_HUNG_UP = 499  # nobody reads it; for the log and the figures

# The first that fits; a TimeoutError is a wait that was in vain.
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (InvalidArgument, 400),
    (InvalidDatabaseName, 400),
    (TemplateNotFound, 404),
    (DatabaseNotFound, 404),
    (DatabaseDiscarded, 410),
    (DatabaseInUse, 423),
    (ServerUnavailable, 503),
    (PermissionDenied, 503),
    (TimeoutError, 503),
)


def application(service: IntegresqlService) -> Starlette:
    """Returns the server's application; it opens the service when it starts and closes it when it stops."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service:
            yield

    settings = service.settings
    middleware = [Middleware(RequestLog, service=service), Middleware(_Paths, trailing_slash=settings.trailing_slash)]
    if settings.cors:
        middleware.insert(1, Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]))
    return Starlette(
        routes=list(_routes(service)),
        middleware=middleware,
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )


class _Segment(Convertor[str]):
    """One part of a path, which may be empty: an empty hash is a bad request, not a missing page."""

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("cascade_state_segment", _Segment())


def _routes(service: IntegresqlService) -> Sequence[Route]:
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        methods = by_path.setdefault(operation.path, {})
        methods[operation.method] = operation
        if operation.public:
            methods["HEAD"] = operation
    return [
        Route(path.replace("}", ":cascade_state_segment}"), _Path(service, methods))
        for path, methods in by_path.items()
    ]


class _Path:
    """What can be done at one path."""

    def __init__(self, service: IntegresqlService, operations: Mapping[str, Operation]) -> None:
        self._service = service
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        operation = self._operations.get(scope["method"])
        if operation is None:
            allowed = ", ".join(sorted(self._operations))
            response: Response = message(405, f"allowed here: {allowed}", {"Allow": allowed})
        elif not operation.public and not self._has_token(request):
            response = message(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        else:
            scope["exchange"].operation = operation.name
            response = await self._answer(operation, request)
        await response(scope, receive, send)

    def _has_token(self, request: Request) -> bool:
        token = self._service.settings.token
        if token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())

    async def _answer(self, operation: Operation, request: Request) -> Response:
        try:
            if operation.takes_hash:
                request.state.body = await read_body(request)
            return await self._while_caller_waits(operation, request)
        except ClientDisconnect:
            return Response(status_code=_HUNG_UP)
        except HTTPException as exc:
            return message(exc.status_code, exc.detail)
        except Exception as exc:
            return _failure(exc)

    async def _while_caller_waits(self, operation: Operation, request: Request) -> Response:
        """Works on the request until it is done, the caller hangs up, or the time is over; undoes what is half done."""
        request.state.gone = asyncio.Event()
        limit = self._service.settings.request_timeout
        watch = asyncio.ensure_future(_watch(request))
        work = asyncio.ensure_future(operation.handle(self._service, request))
        stop = asyncio.ensure_future(self._service.stopping.wait())
        try:
            await asyncio.wait(
                {watch, work, stop} if operation.waits else {watch, work},
                timeout=limit.total_seconds() if limit else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work.done():
                return work.result()
            if watch.done():
                return Response(status_code=_HUNG_UP)
            if operation.waits and stop.done():
                raise ServerUnavailable(reason="it is being stopped")
            raise TimeoutError("the request took too long")
        finally:
            for task in (watch, work, stop):
                task.cancel()
            await asyncio.gather(watch, work, stop, return_exceptions=True)


async def _watch(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    request.state.gone.set()


def _failure(exc: Exception) -> Response:
    for kind, status in _STATUSES:
        if isinstance(exc, kind):
            headers = {"Retry-After": f"{_RETRY_SECONDS}"} if status == 503 else None
            return message(status, str(exc) or "waited in vain", headers)
    _logger.error("a request failed: %s", exc, exc_info=exc)
    return message(500, str(exc) if isinstance(exc, TestDatabaseError) else "internal error; the log has the reason")


async def _http_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)  # noqa: S101 - that is what it is registered for
    return message(exc.status_code, exc.detail, dict(exc.headers or {}))


class _Paths:
    """Leaves percent-encoding in paths, so that a slash in a hash is none of the path, and drops a slash at the end."""

    def __init__(self, app: ASGIApp, *, trailing_slash: bool) -> None:
        self._app = app
        self._trailing_slash = trailing_slash

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1").partition("?")[0]
            if self._trailing_slash and path.endswith("/") and path != "/":
                path = path.removesuffix("/")
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)
