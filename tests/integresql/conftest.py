"""Fixtures of the tests of the API: names of a test's own, servers and clients."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import pytest

from cascade_state.testing import IntegresqlClient, PostgresServer
from cascade_state.testing.blocking import run_blocking
from tests.integresql.facade import drop_databases, facade

Serving: TypeAlias = Callable[..., AbstractAsyncContextManager[IntegresqlClient]]


@pytest.fixture
def prefix(server: PostgresServer) -> Iterator[str]:
    """What the names of all databases of this test begin with; they are dropped afterwards."""
    own = f"it{secrets.token_hex(4)}"
    yield own
    run_blocking(drop_databases(server, own))


@pytest.fixture
def serving(server: PostgresServer, prefix: str) -> Serving:
    """Runs a server with the options given; yields a client of it."""

    @asynccontextmanager
    async def run(*, token: str | None = None, **options: Any) -> AsyncIterator[IntegresqlClient]:
        async with AsyncExitStack() as scope:
            url = await scope.enter_async_context(facade(server, prefix, token=token, **options))
            yield await scope.enter_async_context(IntegresqlClient(url, token=token))

    return run
