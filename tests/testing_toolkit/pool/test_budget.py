"""How many databases there are: the budget of a server, eviction, shrinking. On a server of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from cascade_state.errors import PoolTimeout
from cascade_state.testing import DatabasePool, PostgresServer
from cascade_state.testing.pool import keeper
from tests.postgres.own_server import own_server

WAIT = timedelta(seconds=30)
SHORT = timedelta(milliseconds=300)

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def alone() -> Iterator[PostgresServer]:
    """A server that no other test uses."""
    with own_server() as server:
        yield PostgresServer.from_url(server.url)


@pytest.fixture
async def templates(alone: PostgresServer, fill: Any) -> AsyncIterator[tuple[str, str, str]]:
    """Three templates without copies."""
    names = ("first", "second", "third")
    for name in names:
        await alone.ensure_template_exists(name, fill)
    yield names
    for name in names:
        async with DatabasePool(alone, name, initial_size=0, max_size=1) as pool:
            await pool.discard()


async def copies(server: PostgresServer, template: str) -> int:
    names = [f"{template}_test_{number:03d}" for number in range(8)]
    return sum([await server.database_exists(name) for name in names])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT.total_seconds()):
        while not await condition():  # noqa: ASYNC110 - what it waits for is on the server
            await asyncio.sleep(0.01)


async def used(server: PostgresServer, template: str, count: int) -> None:
    """Leaves that many copies behind."""
    async with DatabasePool(server, template, initial_size=count, max_size=count) as pool:
        await until(lambda: is_ready(pool, count))


async def is_ready(pool: DatabasePool, count: int) -> bool:
    return (await pool.statistics()).ready == count


async def test_idle_templates_lose_their_copies_the_least_recently_used_first(
    alone: PostgresServer, templates: tuple[str, str, str]
) -> None:
    await used(alone, "second", 2)
    await used(alone, "first", 2)
    async with DatabasePool(alone, "third", initial_size=0, max_size=4, max_databases=5) as pool:
        async with contextlib.AsyncExitStack() as leases:
            left = []
            for _ in range(4):
                await leases.enter_async_context(pool.lease(timeout=WAIT))
                left.append((await copies(alone, "second"), await copies(alone, "first")))
                assert (await pool.statistics()).databases <= 5
            assert left == [(2, 2), (1, 2), (0, 2), (0, 1)]
    for name in templates:
        assert await alone.database_exists(name)  # a template costs its migrations: it stays


async def test_a_template_one_of_whose_copies_is_leased_keeps_them(
    alone: PostgresServer, templates: tuple[str, str, str]
) -> None:
    async with (
        DatabasePool(alone, "first", initial_size=1, max_size=2, max_databases=3) as busy,
        DatabasePool(alone, "second", initial_size=0, max_size=2, max_databases=3) as hungry,
    ):
        async with busy.lease(timeout=WAIT) as held:
            await until(lambda: is_ready(busy, 1))
            async with hungry.lease(timeout=WAIT):
                with pytest.raises(PoolTimeout, match="3 of 3 on the server"):
                    await hungry.hand_out(timeout=SHORT)
            assert await copies(alone, "first") == 2
            assert await alone.database_exists(held.name)
        async with hungry.lease(timeout=WAIT), hungry.lease(timeout=WAIT):
            assert await copies(alone, "first") == 1


async def test_the_budget_holds_while_pools_compete(alone: PostgresServer, templates: tuple[str, str, str]) -> None:
    seen = 0

    async def use(pool: DatabasePool) -> None:
        nonlocal seen
        for _ in range(4):
            async with pool.lease(timeout=WAIT):
                seen = max(seen, (await pool.statistics()).databases)

    async with contextlib.AsyncExitStack() as scope:
        pools = [
            await scope.enter_async_context(DatabasePool(alone, name, initial_size=1, max_size=3, max_databases=4))
            for name in templates
        ]
        await asyncio.gather(*(use(pool) for pool in pools for _ in range(2)))
    assert 3 <= seen <= 4


async def test_a_pool_that_nobody_needs_shrinks_to_its_initial_size(
    alone: PostgresServer, templates: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_IDLE_SECONDS", 0.05)
    options: dict[str, Any] = {"shrink_after": timedelta(milliseconds=500)}
    async with DatabasePool(alone, "first", initial_size=1, max_size=4, **options) as pool:
        async with pool.lease(timeout=WAIT), pool.lease(timeout=WAIT), pool.lease(timeout=WAIT):
            pass
        assert (await pool.statistics()).databases >= 3
        await until(lambda: has(pool, 1))
        assert await copies(alone, "first") == 1
        assert await alone.database_exists("first_test_000")


async def has(pool: DatabasePool, count: int) -> bool:
    return (await pool.statistics()).databases == count


async def test_books_are_made_once_by_many_who_come_first(fill: Any) -> None:
    with own_server() as server:
        fresh = PostgresServer.from_url(server.url)
        await fresh.ensure_template_exists("t", fill)

        def lease() -> str:
            async def one() -> str:
                async with (
                    DatabasePool(fresh, "t", initial_size=0, max_size=6) as pool,
                    pool.lease(timeout=WAIT) as database,
                ):
                    return database.name

            return asyncio.run(one())  # a loop, and so a session, of its own

        names = await asyncio.gather(*(asyncio.to_thread(lease) for _ in range(6)))
        assert all(name.startswith("t_test_00") for name in names)
