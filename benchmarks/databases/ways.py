"""Ways to isolate tests from each other. The test is always the same: connect, write, read, work for a while, leave."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from cascade_state.postgres.schema import migrate_database
from cascade_state.testing import DatabasePool, PostgresServer

__all__ = ["INITIAL_SIZE", "MAX_SIZE", "NOTE", "TEMPLATE", "Way", "build_template", "opened_ways", "test_once"]

TEMPLATE = "bench_template"
NOTE = "CREATE TABLE note (note_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)"
INITIAL_SIZE, MAX_SIZE = 4, 8

# Runs one test that works for so many seconds besides what it does with the database.
Test: TypeAlias = Callable[[float], Any]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to isolate, and which share of the tests it gets (a slow one needs fewer)."""

    name: str
    run: Test
    share: float = 1.0


async def build_template(url: str) -> None:
    """Runs the migrations: what a suite would otherwise do for each test."""
    await migrate_database(url)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(NOTE)
    finally:
        await connection.close()


@asynccontextmanager
async def opened_ways(server: PostgresServer) -> AsyncIterator[list[Way]]:
    """Yields all ways, ready to run tests."""
    names = (f"bench_{number}" for number in itertools.count())
    async with AsyncExitStack() as stack:
        pool = DatabasePool(server, TEMPLATE, initial_size=INITIAL_SIZE, max_size=MAX_SIZE)
        await stack.enter_async_context(pool)
        await server.create_database_from_template("bench_kept", TEMPLATE)
        kept = server.url_for("bench_kept")
        connection = await asyncpg.connect(kept)
        stack.push_async_callback(connection.close)
        tables = await connection.fetchval(
            "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables WHERE schemaname = 'public'"
        )

        async def pooled(pause: float) -> None:
            async with pool.lease() as database:
                await test_once(database.url, pause)

        async def copied(pause: float) -> None:
            name = next(names)
            await server.create_database_from_template(name, TEMPLATE)
            await test_once(server.url_for(name), pause)
            await server.drop_database(name)

        async def migrated(pause: float) -> None:
            name = next(names)
            await server.create_database(name)
            await build_template(server.url_for(name))
            await test_once(server.url_for(name), pause)
            await server.drop_database(name)

        async def truncated(pause: float) -> None:
            await test_once(kept, pause)
            await connection.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")

        async def rolled_back(pause: float) -> None:
            transaction = connection.transaction()
            await transaction.start()
            await _work(connection, pause)
            await transaction.rollback()

        async def shared(pause: float) -> None:
            await test_once(kept, pause)

        yield [
            Way("a database from the pool", pooled),
            Way("a copy made for each test", copied, 0.3),
            Way("migrations for each test", migrated, 0.1),
            Way("one database, TRUNCATE after each test", truncated),
            Way("one connection, rolled back after each test", rolled_back),
            Way("one database, no isolation", shared),
        ]


async def test_once(url: str, pause: float) -> None:
    """Runs the test in this database, with a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await _work(connection, pause)
    finally:
        await connection.close()


async def _work(connection: Any, pause: float) -> None:
    await connection.execute("INSERT INTO note (text) VALUES ('one')")
    await connection.fetchval("SELECT count(*) FROM note")
    if pause:
        await asyncio.sleep(pause)
