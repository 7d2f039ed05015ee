"""Fixtures of the whole suite: one server for a test run, one migrated template, a database for each test.

A test that asks for the `clock` fixture gets stores that take their time from it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cascade_state.errors import ServerUnavailable

if TYPE_CHECKING:
    from cascade_state.testing.server import PostgresServer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _lint_statements() -> Iterator[None]:
    """Fails the test that sends a statement which breaks the rules for SQL."""
    from tests.statement_watch import watched_statements

    with watched_statements():
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """A started PostgreSQL server, the same for all workers of a test run."""
    from cascade_state.testing.server import shared_server

    try:
        started = shared_server()
    except ServerUnavailable as exc:
        if os.environ.get("CASCADE_REQUIRE_POSTGRES") == "1":
            raise
        pytest.skip(f"SKIP-TEST-CLUSTER: {exc}")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def template(server: PostgresServer) -> str:
    """The name of a migrated template database; built once for each state of the migrations."""
    from cascade_state.postgres.schema import migrate_database
    from cascade_state.testing.hashing import hash_directory

    digest = hash_directory(ROOT / "migrations", include=("*.py", "*.sql"))
    name = f"cascade_state_{digest.short}"
    server.blocking.ensure_template_exists(name, migrate_database, metadata={"hash": digest})
    return name


@pytest.fixture
def database_url(server: PostgresServer, template: str) -> Iterator[str]:
    """The URL of a migrated database of this test's own."""
    with _database(server, template) as url:
        yield url


@pytest.fixture
def empty_database_url(server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    with _database(server, None) as url:
        yield url


@pytest.fixture(params=["postgres", "memory"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, on each back end in turn; a memory store that several openings share."""
    if request.param == "memory":
        return f"memory://{secrets.token_hex(8)}"
    url: str = request.getfixturevalue("database_url")
    return url


@pytest.fixture
def clock() -> Any:
    """A clock that stands still until the test moves it."""
    from cascade_state.testing.clock import FrozenClock

    return FrozenClock()


@pytest.fixture
def open_stores(request: pytest.FixtureRequest) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """Opens a store by URL, with the test's clock when the test has one."""
    from cascade_state.opening import open_store

    has_clock = "clock" in request.fixturenames

    def open_one(url: str, **options: Any) -> AbstractAsyncContextManager[Any]:
        if has_clock:
            options.setdefault("clock", request.getfixturevalue("clock"))
        return open_store(url, **options)

    return open_one


@pytest.fixture
async def postgres_store(
    database_url: str, open_stores: Callable[..., AbstractAsyncContextManager[Any]]
) -> AsyncIterator[Any]:
    """An open store on PostgreSQL."""
    async with open_stores(database_url) as store:
        yield store


@pytest.fixture
async def memory_store(open_stores: Callable[..., AbstractAsyncContextManager[Any]]) -> AsyncIterator[Any]:
    """An open store in memory."""
    async with open_stores("memory://") as store:
        yield store


@pytest.fixture
async def store(store_url: str, open_stores: Callable[..., AbstractAsyncContextManager[Any]]) -> AsyncIterator[Any]:
    """An open store on each back end in turn."""
    async with open_stores(store_url) as opened:
        yield opened


@contextmanager
def _database(server: PostgresServer, template: str | None) -> Iterator[str]:
    # Blocking, so that plain tests can have a database and each test's loop stays its own.
    name = f"test_{os.getpid()}_{secrets.token_hex(6)}"
    if template is None:
        server.blocking.create_database(name)
    else:
        server.blocking.create_database_from_template(name, template)
    try:
        yield server.url_for(name)
    finally:
        server.blocking.drop_database(name, force=True)
