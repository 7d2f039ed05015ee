"""Databases handed out to those who hold no session: theirs until given back, or until nobody uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from cascade_state.errors import DatabaseInUse, DatabaseNotFound, PoolTimeout
from cascade_state.testing import DatabasePool, PostgresServer

WAIT = timedelta(seconds=30)
SHORT = timedelta(milliseconds=300)

pytestmark = pytest.mark.postgres


async def test_it_stays_handed_out_when_the_pool_is_closed_and_opened_again(
    server: PostgresServer, template: str
) -> None:
    async with DatabasePool(server, template, initial_size=0, max_size=2) as pool:
        first = await pool.hand_out(timeout=WAIT)
    async with DatabasePool(server, template, initial_size=0, max_size=2) as pool:
        second = await pool.hand_out(timeout=WAIT)
        assert second.name != first.name
        assert await pool.take_back(first.number, clean=True)
        again = await pool.hand_out(timeout=WAIT)
        assert (again.name, again.generation) == (first.name, first.generation)


async def test_ten_are_numbered_from_zero(server: PostgresServer, template: str) -> None:  # INT-07
    async with DatabasePool(server, template, initial_size=1, max_size=10, name_prefix=f"{template}_x") as pool:
        given = [await pool.hand_out(timeout=WAIT) for _ in range(10)]
        assert [database.number for database in given] == list(range(10))
        assert [database.name for database in given] == [f"{template}_x_{number:03d}" for number in range(10)]
        with pytest.raises(PoolTimeout):
            await pool.hand_out(timeout=SHORT)
        assert len(await pool.clear()) == 10


async def test_what_is_taken_back_dirty_is_made_anew(
    server: PostgresServer,
    template: str,
    rows_of: Callable[[str], Awaitable[list[str]]],
    change: Callable[[str], Awaitable[None]],
) -> None:
    async with DatabasePool(server, template, initial_size=0, max_size=1) as pool:
        first = await pool.hand_out(timeout=WAIT)
        await change(first.url)
        assert await pool.take_back(first.number, clean=False)
        second = await pool.hand_out(timeout=WAIT)
        assert second.generation == first.generation + 1
        assert await rows_of(second.url) == ["red"]


async def test_unlock_leaves_connections_alone_and_recreate_refuses_them(
    server: PostgresServer, template: str, connect: Any
) -> None:
    async with DatabasePool(server, template, initial_size=0, max_size=1) as pool:
        given = await pool.hand_out(timeout=WAIT)
        async with connect(given.url, server_settings={"application_name": "somebody"}) as connection:
            with pytest.raises(DatabaseInUse) as caught:
                await pool.take_back(given.number, clean=False)
            assert caught.value.connections == ((connection.get_server_pid(), "somebody"),)
            with pytest.raises(DatabaseInUse):
                await pool.clear()
            assert await pool.take_back(given.number, clean=True)
            assert await connection.fetchval("SELECT 1") == 1


async def test_taking_back_twice_is_harmless_and_an_unknown_number_is_an_error(
    server: PostgresServer, template: str
) -> None:  # INT-17
    async with DatabasePool(server, template, initial_size=0, max_size=2) as pool:
        given = await pool.hand_out(timeout=WAIT)
        assert await pool.take_back(given.number, clean=True)
        assert not await pool.take_back(given.number, clean=True)
        with pytest.raises(DatabaseNotFound):
            await pool.take_back(321)
        async with pool.lease(timeout=WAIT) as leased:  # somebody's with a session: not to be taken by its number
            assert not await pool.take_back(leased.number, clean=True)


async def test_an_exhausted_pool_takes_back_what_nobody_uses(
    server: PostgresServer, template: str, connect: Any, rows_of: Callable[[str], Awaitable[list[str]]]
) -> None:  # INT-14 over the wire
    options: dict[str, Any] = {"reclaim_after": timedelta(milliseconds=100), "unclaimed_after": timedelta(seconds=600)}
    async with DatabasePool(server, template, initial_size=1, max_size=2, **options) as pool:
        used, unused = await pool.hand_out(timeout=WAIT), await pool.hand_out(timeout=WAIT)
        async with connect(used.url) as connection:
            with pytest.raises(PoolTimeout):
                await pool.hand_out(timeout=SHORT)
            assert await connection.fetchval("SELECT 1") == 1  # it was not cut
        third = await pool.hand_out(timeout=WAIT)
        assert (third.name, third.generation) == (used.name, used.generation + 1)
        assert await rows_of(third.url) == ["red"]  # connected for a moment, between two looks perhaps
        fourth = await pool.hand_out(timeout=WAIT)
        assert (fourth.name, fourth.generation) == (used.name, used.generation + 2)
        with pytest.raises(PoolTimeout):  # nobody ever was connected to either: they have ten minutes
            await pool.hand_out(timeout=SHORT)
        assert (await pool.statistics()).recovered == 2
        assert await rows_of(unused.url) == ["red"]


async def test_an_exhausted_pool_takes_back_what_nobody_ever_connected_to(
    server: PostgresServer, template: str
) -> None:
    options: dict[str, Any] = {"unclaimed_after": timedelta(milliseconds=200)}
    async with DatabasePool(server, template, initial_size=1, max_size=1, **options) as pool:
        first = await pool.hand_out(timeout=WAIT)
        second = await pool.hand_out(timeout=WAIT)
        assert (second.name, second.generation) == (first.name, first.generation + 1)


async def test_nothing_is_taken_back_while_there_are_others(server: PostgresServer, template: str) -> None:
    options: dict[str, Any] = {"reclaim_after": timedelta(0), "unclaimed_after": timedelta(0)}
    async with DatabasePool(server, template, initial_size=1, max_size=3, **options) as pool:
        names = {(await pool.hand_out(timeout=WAIT)).name for _ in range(3)}
        assert len(names) == 3


async def test_a_caller_that_is_cancelled_leaves_the_database_to_others(server: PostgresServer, template: str) -> None:
    async with DatabasePool(server, template, initial_size=1, max_size=1) as pool:
        given = await pool.hand_out(timeout=WAIT)
        await pool.take_back(given.number, clean=True)
        for steps in range(12):
            task = asyncio.ensure_future(pool.hand_out(timeout=WAIT))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        again = await pool.hand_out(timeout=WAIT)
        assert again.name == given.name
