"""Fixtures of the whole suite, on top of those of the package's own pytest plugin.

The plugin brings server, template, a database for each test, stores and a clock. A test that asks for the `clock`
fixture gets stores that take their time from it.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.coverage_threads import look_packages_up_once

if TYPE_CHECKING:
    from cascade_state.testing import FrozenClock, PostgresServer, TemporaryDatabase

# pytest rewrites the package in each of the many processes that this suite starts, unless the first keeps the result.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

look_packages_up_once()

# How fast inputs are made says more about what else the machine does than about a test.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _lint_statements() -> Iterator[None]:
    """Fails the test that sends a statement which breaks the rules for SQL."""
    from tests.statement_watch import watched_statements

    with watched_statements():
        yield


@pytest.fixture(scope="session")
def server(postgres_server: PostgresServer) -> PostgresServer:
    """A started PostgreSQL server, the same for all workers of a test run."""
    return postgres_server


@pytest.fixture(scope="session")
def template(template_database: str) -> str:
    """The name of a migrated template database; built once for each state of the migrations."""
    return template_database


@pytest.fixture
def database_url(test_database: TemporaryDatabase) -> str:
    """The URL of a migrated database of this test's own."""
    return test_database.url


@pytest.fixture
def empty_database_url(server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    database = server.blocking.temporary_database()
    yield database.url
    database.force_drop()


@pytest.fixture(params=["postgres", "memory"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, on each back end in turn; a memory store that several openings share."""
    if request.param == "memory":
        return f"memory://{secrets.token_hex(8)}"
    url: str = request.getfixturevalue("database_url")
    return url


@pytest.fixture
def clock(frozen_clock: FrozenClock) -> FrozenClock:
    """A clock that stands still until the test moves it."""
    return frozen_clock


@pytest.fixture
def open_stores(request: pytest.FixtureRequest) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """Opens a store by URL, with the test's clock when the test has one."""
    from cascade_state.opening import open_store

    has_clock = "frozen_clock" in request.fixturenames

    def open_one(url: str, **options: Any) -> AbstractAsyncContextManager[Any]:
        if has_clock:
            options.setdefault("clock", request.getfixturevalue("frozen_clock"))
        return open_store(url, **options)

    return open_one
