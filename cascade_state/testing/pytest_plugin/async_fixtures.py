"""The fixtures that are coroutines: pytest-asyncio's where it is installed, else for whatever runs coroutine tests."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from cascade_state.abc.store import Store
    from cascade_state.testing.databases import TemporaryDatabase

__all__: list[str] = []

if TYPE_CHECKING or importlib.util.find_spec("pytest_asyncio") is not None:
    from pytest_asyncio import fixture
else:
    fixture = pytest.fixture


@fixture
async def async_engine(test_database: TemporaryDatabase) -> AsyncIterator[AsyncEngine]:
    """A SQLAlchemy `AsyncEngine` on asyncpg, on the test's own database."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(test_database.async_url)
    yield engine
    await engine.dispose()


@fixture
async def async_session(async_engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A SQLAlchemy `AsyncSession` on the test's own database; what is not committed is rolled back."""
    from sqlalchemy.ext.asyncio import AsyncSession

    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        yield session


@fixture
async def rollback_session(_shared_database: TemporaryDatabase) -> AsyncIterator[AsyncSession]:
    """An `AsyncSession` inside a transaction that is rolled back after the test; its `commit` releases a savepoint.

    The fastest isolation, for tests that need no second connection: nothing is copied. All such tests of a process
    share one copy of the template. Sequences are not rolled back.
    """
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(_shared_database.async_url, poolclass=NullPool)
    async with (
        engine.connect() as connection,
        connection.begin() as transaction,
        AsyncSession(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session,
    ):
        yield session
        await session.close()
        await transaction.rollback()


@fixture
async def postgres_store(request: pytest.FixtureRequest, test_database: TemporaryDatabase) -> AsyncIterator[Store]:
    """An open store on PostgreSQL, migrated, in the test's own database; takes its time from `frozen_clock` if used."""
    from cascade_state.opening import open_store

    async with open_store(test_database.url, **_clock(request)) as store:
        yield store


@fixture
async def memory_store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An open store in memory; takes its time from `frozen_clock` if the test uses it."""
    from cascade_state.opening import open_store

    async with open_store("memory://", **_clock(request)) as store:
        yield store


@fixture(params=["postgres", "memory"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An open store: the test runs once on PostgreSQL and once in memory."""
    from cascade_state.opening import open_store

    url = request.getfixturevalue("test_database").url if request.param == "postgres" else "memory://"
    async with open_store(url, **_clock(request)) as opened:
        yield opened


def _clock(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"clock": request.getfixturevalue("frozen_clock")} if "frozen_clock" in request.fixturenames else {}
