"""The operations of the API, one table: routes, OpenAPI document and reference are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from cascade_state.testing.integresql.bodies import (
    hash_in_body,
    hash_in_path,
    message,
    number_in_path,
    template_answer,
    test_answer,
)
from cascade_state.testing.integresql.service import IntegresqlService

__all__ = ["BASE_PATH", "OPERATIONS", "Operation"]

BASE_PATH = "/api/v1"

Handler: TypeAlias = Callable[[IntegresqlService, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Args:
        name: Its `operationId`.
        answers: What each status means; every operation may answer 401, 500 and 503 besides.
        public: Needs no token, changes nothing, and answers HEAD.
        waits: May wait long; is answered at once when the server stops.
        answer: The kind of body that success has: `template`, `test`, or empty.
    """

    method: str
    path: str
    name: str
    summary: str
    answers: Mapping[int, str]
    handle: Handler
    public: bool = False
    deprecated: bool = False
    takes_hash: bool = False
    waits: bool = False
    answer: str = ""
    unavailable: str = "PostgreSQL cannot be reached; nothing was done"

    @property
    def all_answers(self) -> dict[int, str]:
        """The answers, those included that need not be said for each operation."""
        common = {} if self.public else {401: "the server asks for a token", 503: self.unavailable}
        return dict(sorted({**common, **self.answers}.items()))


async def _initialize(service: IntegresqlService, request: Request) -> Response:
    template_hash = hash_in_body(request)
    config = await service.initialize(template_hash)
    if config is None:
        return message(423, "the template is made, or being made: get a test database")
    if request.state.gone.is_set():  # nobody got the answer, so nobody will fill it
        await service.discard(template_hash)
    return template_answer(template_hash, config)


async def _finalize(service: IntegresqlService, request: Request) -> Response:
    # The official Go client's helper closes its connection to the template when this has been answered, not before.
    is_go = request.headers.get("user-agent", "").startswith("Go-http-client/")
    await service.finalize(hash_in_path(request), closes_afterwards=is_go)
    return Response(status_code=204)


async def _discard(service: IntegresqlService, request: Request) -> Response:
    await service.discard(hash_in_path(request))
    return Response(status_code=204)


async def _get(service: IntegresqlService, request: Request) -> Response:
    template_hash = hash_in_path(request)
    number, config = await service.get(template_hash)
    if request.state.gone.is_set():  # nobody got the answer, so nobody will use it
        await service.unlock(template_hash, number)
    return test_answer(template_hash, number, config)


async def _unlock(service: IntegresqlService, request: Request) -> Response:
    number = number_in_path(request)
    await service.unlock(hash_in_path(request), number)
    return Response(status_code=204)


async def _recreate(service: IntegresqlService, request: Request) -> Response:
    number = number_in_path(request)
    await service.recreate(hash_in_path(request), number)
    return Response(status_code=204)


async def _reset(service: IntegresqlService, request: Request) -> Response:
    await service.reset()
    return Response(status_code=204)


async def _healthy(service: IntegresqlService, request: Request) -> Response:
    return JSONResponse({"status": "healthy"})


async def _ready(service: IntegresqlService, request: Request) -> Response:
    await service.check()
    return JSONResponse({"status": "ready"})


async def _metrics(service: IntegresqlService, request: Request) -> Response:
    return PlainTextResponse(await service.metrics(), media_type="text/plain; version=0.0.4")


async def _openapi(service: IntegresqlService, request: Request) -> Response:
    from cascade_state.testing.integresql.openapi import document

    return JSONResponse(document(with_token=service.settings.token is not None))


_ID = {400: "the id is not an integer", 404: "the template is unknown, or it has no such database"}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path=f"{BASE_PATH}/templates",
        name="initializeTemplate",
        summary="Make an empty template database for a hash, to be filled by the caller.",
        answers={
            200: "made: connect, fill it, disconnect, finalize it",
            400: "the hash is missing, empty, over 1 KiB, or has a NUL",
            413: "the body is longer than 64 KiB",
            423: "made, or being made by somebody else: get a test database",
        },
        handle=_initialize,
        takes_hash=True,
        answer="template",
    ),
    Operation(
        method="PUT",
        path=f"{BASE_PATH}/templates/{{hash}}",
        name="finalizeTemplate",
        summary="Say that the template is filled. It is protected from now on, and copies of it are made.",
        answers={
            204: "finalized, now or before",
            404: "the template is unknown, or discarded",
            423: "somebody is still connected to it, after 30 s",
        },
        handle=_finalize,
    ),
    Operation(
        method="DELETE",
        path=f"{BASE_PATH}/templates/{{hash}}",
        name="discardTemplate",
        summary="Drop the template and its test databases; whoever waits for one is told.",
        answers={
            204: "dropped",
            404: "the template is unknown",
            423: "somebody is connected to it or to a copy; it stays as it was",
        },
        handle=_discard,
    ),
    Operation(
        method="GET",
        path=f"{BASE_PATH}/templates/{{hash}}/tests",
        name="getTestDatabase",
        summary="Get a test database of one's own; waits until the template is finalized and a copy is free.",
        answers={
            200: "the database",
            404: "the template is unknown",
            410: "the template was discarded while the request waited",
        },
        unavailable="no database became free in time, or PostgreSQL cannot be reached; try again after Retry-After",
        handle=_get,
        waits=True,
        answer="test",
    ),
    Operation(
        method="POST",
        path=f"{BASE_PATH}/templates/{{hash}}/tests/{{id}}/unlock",
        name="unlockTestDatabase",
        summary="Give back a database as it is; the next who gets it finds all changes.",
        answers={204: "given back, or it was not handed out", **_ID, 423: "somebody is connected to it"},
        handle=_unlock,
    ),
    Operation(
        method="DELETE",
        path=f"{BASE_PATH}/templates/{{hash}}/tests/{{id}}",
        name="returnTestDatabase",
        summary="The same as unlock, for older clients. It deletes nothing.",
        answers={204: "given back, or it was not handed out", **_ID, 423: "somebody is connected to it"},
        handle=_unlock,
        deprecated=True,
    ),
    Operation(
        method="POST",
        path=f"{BASE_PATH}/templates/{{hash}}/tests/{{id}}/recreate",
        name="recreateTestDatabase",
        summary="Give back a database that was changed; it is made anew in the background.",
        answers={204: "will be made anew, or it was not handed out", **_ID, 423: "somebody is connected to it"},
        handle=_recreate,
    ),
    Operation(
        method="DELETE",
        path=f"{BASE_PATH}/admin/templates",
        name="resetAllTracking",
        summary="Forget every template and drop every test database. The template databases stay, unprotected.",
        answers={204: "forgotten", 423: "somebody is connected to a test database; those of other templates are gone"},
        handle=_reset,
    ),
    Operation(
        method="GET",
        path="/-/healthy",
        name="healthy",
        summary="Tell that the process answers.",
        answers={200: "it does"},
        handle=_healthy,
        public=True,
        answer="status",
    ),
    Operation(
        method="GET",
        path="/-/ready",
        name="ready",
        summary="Tell whether PostgreSQL can be reached and lets its role make databases.",
        answers={200: "it does", 503: "it does not; the message says why"},
        handle=_ready,
        public=True,
        answer="status",
    ),
    Operation(
        method="GET",
        path="/metrics",
        name="metrics",
        summary="Figures in Prometheus's text format.",
        answers={200: "the figures; those of PostgreSQL are left out while it cannot be reached"},
        handle=_metrics,
        public=True,
        answer="text",
    ),
    Operation(
        method="GET",
        path="/openapi.json",
        name="openapi",
        summary="This API as an OpenAPI document.",
        answers={200: "the document"},
        handle=_openapi,
        public=True,
        answer="document",
    ),
)
