"""Fixtures of the tests of the API: names of a test's own, servers and clients."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import pytest

from cascade_state.testing import IntegresqlClient, PostgresServer
from cascade_state.testing.blocking import run_blocking
from tests.integresql.facade import Facade, drop_databases, facade, facade_process

Serving: TypeAlias = Callable[..., AbstractAsyncContextManager[IntegresqlClient]]

SHARED_PREFIX = f"shared{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def shared_facade(server: PostgresServer) -> Iterator[Facade]:
    """The command in a process of its own, for all tests that need no other options; use hashes of your own."""
    with facade_process(
        "--postgres-url", server.url, "--initial-pool-size", "1", INTEGRESQL_DB_PREFIX=SHARED_PREFIX
    ) as started:
        yield started
    run_blocking(drop_databases(server, SHARED_PREFIX))


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
