"""How long a copy takes, bare and by the toolkit; and how long it takes to be handed one that is ready."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import asyncpg

from benchmarks.databases.ways import INITIAL_SIZE, MAX_SIZE, TEMPLATE
from cascade_state.testing import DatabasePool, PostgresServer

__all__ = ["BARE", "DEFAULT", "measure_copies", "measure_hand_out"]

BARE = "bare CREATE DATABASE … TEMPLATE, copying files"
DEFAULT = "bare CREATE DATABASE … TEMPLATE, as it stands"


async def measure_copies(server: PostgresServer, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each copy; all ways take turns."""
    names = (f"bench_copy_{number}" for number in itertools.count())
    connection = await asyncpg.connect(server.url)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        # Nothing is made ahead: the lease waits for exactly one copy.
        pool = await stack.enter_async_context(DatabasePool(server, TEMPLATE, initial_size=0, max_size=4))

        async def bare(strategy: str) -> float:
            name = next(names)
            start = time.perf_counter()
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} {strategy}")
            seconds = time.perf_counter() - start
            await connection.execute(f"DROP DATABASE {name}")
            return seconds

        async def by_the_server() -> float:
            name = next(names)
            start = time.perf_counter()
            await server.create_database_from_template(name, TEMPLATE)
            seconds = time.perf_counter() - start
            await connection.execute(f"DROP DATABASE {name}")
            return seconds

        async def from_an_empty_pool() -> float:
            start = time.perf_counter()
            async with pool.lease():
                seconds = time.perf_counter() - start
            await pool.clear()
            return seconds

        ways: dict[str, Callable[[], Awaitable[float]]] = {
            BARE: lambda: bare("STRATEGY file_copy"),
            DEFAULT: lambda: bare(""),
            "a lease from an empty pool": from_an_empty_pool,
            "create_database_from_template, connecting included": by_the_server,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):  # the first round warms up
            for name, way in ways.items():
                taken = await way()
                if number:
                    seconds[name].append(taken)
    return seconds


async def measure_hand_out(server: PostgresServer, count: int, pause: float) -> dict[str, list[float]]:
    """Returns the seconds until a lease was entered, from a warm pool: idle, and while tests change what they get."""
    seconds: dict[str, list[float]] = {"given back clean": [], "given back changed": []}
    async with DatabasePool(server, TEMPLATE, initial_size=INITIAL_SIZE, max_size=MAX_SIZE) as pool:
        for name, is_clean in (("given back clean", True), ("given back changed", False)):
            while (await pool.statistics()).ready < INITIAL_SIZE:  # noqa: ASYNC110 - it is on the server
                await asyncio.sleep(pause)
            for _ in range(count):
                start = time.perf_counter()
                async with pool.lease() as database:
                    seconds[name].append(time.perf_counter() - start)
                    await asyncio.sleep(pause)
                    if is_clean:
                        database.keep_clean()
    return seconds
