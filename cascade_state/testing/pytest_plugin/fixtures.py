"""The fixtures that block, and those that the others rest on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cascade_state.testing.pytest_plugin.run import Run, run_of

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from cascade_state.testing.blocking_databases import BlockingTemporaryDatabase
    from cascade_state.testing.clock import FrozenClock
    from cascade_state.testing.databases import TemporaryDatabase
    from cascade_state.testing.pytest_plugin.template import TemplateDatabase
    from cascade_state.testing.server import PostgresServer

__all__: list[str] = []

_STORE_FIXTURES = frozenset({"postgres_store", "store"})


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> PostgresServer:
    """The started PostgreSQL server of the test run, one for all pytest-xdist workers.

    Without one the test is skipped with the reason, or fails under `--require-postgres`.
    """
    return _server(run_of(request.config))


@pytest.fixture(scope="session")
def template_database(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> TemplateDatabase:
    """The name of the finished template database (a `str` with `.hash`).

    It is migrated by the project's Alembic environment and filled by `cascade_state_setup`; made once for each state of
    these, in whichever process comes first.
    """
    with _told_in_short():
        return run_of(request.config).template()


@pytest.fixture
def test_database(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[TemporaryDatabase]:
    """A copy of the template database of this test's own: `.name`, `.url`, `.async_url`, `await .drop()`.

    It has the store's tables too when the test uses the store. A test that passes but leaves connections open to it
    fails. It is kept when the test failed; see `--keep-databases`.
    """
    yield from _database_of_the_test(request)


@pytest.fixture
def sync_test_database(test_database: TemporaryDatabase) -> BlockingTemporaryDatabase:
    """The test's own database, with blocking `.drop()` and `.force_drop()`."""
    from cascade_state.testing.blocking_databases import BlockingTemporaryDatabase

    return BlockingTemporaryDatabase(test_database)


@pytest.fixture
def sync_engine(request: pytest.FixtureRequest, test_database: TemporaryDatabase) -> Iterator[Engine]:
    """A SQLAlchemy `Engine` on the test's own database, with the driver of the Alembic configuration or psycopg."""
    engine = _engine(run_of(request.config), test_database)
    yield engine
    engine.dispose()


@pytest.fixture
def sync_session(sync_engine: Engine) -> Iterator[Session]:
    """A SQLAlchemy `Session` on the test's own database; what is not committed is rolled back."""
    from sqlalchemy.orm import Session

    with Session(sync_engine, expire_on_commit=False) as session:
        yield session


@pytest.fixture(scope="session")
def _shared_database(request: pytest.FixtureRequest, template_database: TemplateDatabase) -> TemporaryDatabase:
    """One copy of the template for all tests of this process that roll back."""
    with _told_in_short():
        return run_of(request.config).hand_out()


@pytest.fixture(scope="session")
def _shared_engine(request: pytest.FixtureRequest, _shared_database: TemporaryDatabase) -> Iterator[Engine]:
    engine = _engine(run_of(request.config), _shared_database)
    yield engine
    engine.dispose()


@pytest.fixture
def sync_rollback_session(_shared_engine: Engine) -> Iterator[Session]:
    """A SQLAlchemy `Session` in a transaction that is rolled back after the test; its `commit` releases a savepoint.

    All such tests of a process share one copy of the template. Sequences are not rolled back, and no second connection
    sees what the test wrote.
    """
    from sqlalchemy.orm import Session

    with (
        _shared_engine.connect() as connection,
        connection.begin() as transaction,
        Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session,
    ):
        yield session
        session.close()
        transaction.rollback()


@pytest.fixture
def frozen_clock() -> FrozenClock:
    """A clock that stands still until the test moves it; the test's stores obey it, SQL included."""
    from cascade_state.testing.clock import FrozenClock

    return FrozenClock()


def _server(run: Run) -> PostgresServer:
    from cascade_state.errors import TestDatabaseError

    try:
        return run.server
    except TestDatabaseError as exc:
        reason = f"SKIP-TEST-CLUSTER: {exc}"
        tail = getattr(exc, "log_tail", "")
    if run.options.required:
        pytest.fail(f"{reason}\n{tail}".rstrip(), pytrace=False)
    pytest.skip(reason)


@contextmanager
def _told_in_short() -> Iterator[None]:
    """What a setting or the server is at fault for needs no traceback; what a migration raises does."""
    from cascade_state.errors import InvalidArgument, TestDatabaseError

    try:
        yield
    except (InvalidArgument, TestDatabaseError) as exc:
        pytest.fail(f"{type(exc).__name__}: {exc}", pytrace=False)


def _database_of_the_test(request: pytest.FixtureRequest) -> Iterator[TemporaryDatabase]:
    from cascade_state.testing.pytest_plugin.leaks import check_connections
    from cascade_state.testing.pytest_plugin.reporting import USE, Use

    run = run_of(request.config)
    with _told_in_short():
        database = run.hand_out(with_store=not _STORE_FIXTURES.isdisjoint(request.fixturenames))
    use = request.node.stash[USE] = Use(database)
    yield database
    check_connections(run, request.node, use)


def _engine(run: Run, database: TemporaryDatabase) -> Any:
    from sqlalchemy import create_engine

    from cascade_state.testing import alembic_runs
    from cascade_state.testing.connections import driver_url

    configuration = run.options.configuration
    driver = alembic_runs.sync_driver(alembic_runs.load_configuration(configuration) if configuration else None)
    if driver is None:
        pytest.fail("a blocking engine needs a blocking driver: pip install 'psycopg[binary]'", pytrace=False)
    return create_engine(driver_url(database.url, driver))
