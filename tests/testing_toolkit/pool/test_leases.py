"""Leases: one holder at a time, everybody is served, what comes back is pristine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from cascade_state.errors import DatabaseInUse, InvalidArgument, InvalidDatabaseName, PoolClosed, PoolTimeout
from cascade_state.testing import DatabasePool, PostgresServer

WAIT = timedelta(seconds=30)
SHORT = timedelta(milliseconds=150)

pytestmark = pytest.mark.postgres


@contextlib.asynccontextmanager
async def pool_of(server: PostgresServer, template: str, initial: int, most: int, **options: Any) -> AsyncIterator[Any]:
    async with DatabasePool(server, template, initial_size=initial, max_size=most, **options) as pool:
        yield pool


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT.total_seconds()):
        while not await condition():  # noqa: ASYNC110 - what it waits for is on the server
            await asyncio.sleep(0.01)


async def test_a_lease_is_a_copy_of_the_template(
    server: PostgresServer, template: str, rows_of: Callable[[str], Awaitable[list[str]]]
) -> None:
    async with pool_of(server, template, 1, 2) as pool, pool.lease(timeout=WAIT) as database:
        assert database.url == server.url_for(database.name)
        assert database.template == template
        assert database.async_url == database.url.replace("postgresql:", "postgresql+asyncpg:")
        assert database.name in repr(database)
        assert await rows_of(database.url) == ["red"]


async def test_copies_are_made_ahead(server: PostgresServer, template: str) -> None:
    async with pool_of(server, template, 3, 8) as pool:
        await until(lambda: is_ready(pool, 3))
        async with pool.lease(), pool.lease():
            await until(lambda: is_ready(pool, 3))  # three more, besides the two that are leased
            assert (await pool.statistics()).leased == 2


async def is_ready(pool: DatabasePool, count: int) -> bool:
    return (await pool.statistics()).ready == count


async def test_a_changed_database_comes_back_pristine(
    server: PostgresServer,
    template: str,
    rows_of: Callable[[str], Awaitable[list[str]]],
    change: Callable[[str], Awaitable[None]],
) -> None:  # INT-13
    generations: Counter[int] = Counter()
    async with pool_of(server, template, 2, 2) as pool:
        for _ in range(7):
            async with pool.lease(timeout=WAIT) as database:
                assert await rows_of(database.url) == ["red"]
                await change(database.url)
                generations[database.number] = database.generation
    assert set(generations) == {0, 1}  # INT-19: every one is used
    assert max(generations.values()) >= 4


async def test_a_database_that_was_kept_clean_is_reused_as_it_is(
    server: PostgresServer,
    template: str,
    rows_of: Callable[[str], Awaitable[list[str]]],
    change: Callable[[str], Awaitable[None]],
) -> None:  # INT-12, INT-16
    async with pool_of(server, template, 1, 1) as pool:
        async with pool.lease(timeout=WAIT) as first:
            await change(first.url)
            first.keep_clean()  # a lie, so that one can tell
        for _ in range(3):
            async with pool.lease(timeout=WAIT) as next_one:
                assert (next_one.number, next_one.generation) == (first.number, first.generation)
                assert await rows_of(next_one.url) == ["changed", "red"]
                next_one.keep_clean()
        assert (await pool.statistics()).copies_made == 1


async def test_a_holder_that_failed_is_not_believed(
    server: PostgresServer, template: str, rows_of: Callable[[str], Awaitable[list[str]]]
) -> None:
    async with pool_of(server, template, 1, 1) as pool:
        with pytest.raises(LookupError):
            async with pool.lease(timeout=WAIT) as first:
                first.keep_clean()
                raise LookupError
        async with pool.lease(timeout=WAIT) as second:
            assert second.generation == first.generation + 1


@pytest.mark.parametrize("is_clean", [True, False])
async def test_what_a_holder_left_connected_is_cut_off(server: PostgresServer, template: str, is_clean: bool) -> None:
    async with pool_of(server, template, 1, 1) as pool:
        async with pool.lease(timeout=WAIT) as database:
            forgotten = await asyncpg.connect(database.url)
            if is_clean:
                database.keep_clean()
        async with pool.lease(timeout=WAIT):
            with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.InterfaceError)):
                await forgotten.fetchval("SELECT 1")
        await forgotten.close()


async def test_twenty_five_holders_share_five_databases(
    server: PostgresServer,
    template: str,
    rows_of: Callable[[str], Awaitable[list[str]]],
    change: Callable[[str], Awaitable[None]],
) -> None:  # INT-14 without its flaw, INT-09
    holders: Counter[str] = Counter()

    async def hold(number: int) -> None:
        async with pool.lease(timeout=WAIT) as database:
            holders[database.name] += 1
            assert holders[database.name] == 1, "two at a time"
            assert await rows_of(database.url) == ["red"]
            await change(database.url)  # it connects again and again, and is never without its database
            await asyncio.sleep(0.005 * (number % 3))
            assert await rows_of(database.url) == ["changed", "red"]
            holders[database.name] -= 1

    async with pool_of(server, template, 2, 5) as pool:
        await asyncio.gather(*(hold(number) for number in range(25)))
        assert len(holders) == 5
        statistics = await pool.statistics()
        assert (statistics.handed_out, statistics.returned_dirty, statistics.leased) == (25, 25, 0)
        assert statistics.ready + statistics.recycling <= statistics.max_size


async def test_a_full_pool_times_out_and_says_why(server: PostgresServer, template: str) -> None:  # INT-19
    async with pool_of(server, template, 1, 1) as pool, pool.lease(timeout=WAIT):
        with pytest.raises(PoolTimeout, match="1 of 1 are leased") as caught:
            async with pool.lease(timeout=SHORT):
                pytest.fail("served twice")
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.template == template
        assert caught.value.waited >= SHORT.total_seconds() * 0.9


async def test_callers_are_served_in_the_order_they_came(server: PostgresServer, template: str) -> None:
    served: list[int] = []

    async def one(number: int) -> None:
        async with pool.lease(timeout=WAIT) as database:
            served.append(number)
            database.keep_clean()

    async with pool_of(server, template, 1, 1) as pool:
        async with pool.lease(timeout=WAIT) as database:
            waiting = [asyncio.ensure_future(one(number)) for number in range(5)]
            await until(lambda: is_waiting(pool, 5))
            database.keep_clean()
        await asyncio.gather(*waiting)
    assert served == [0, 1, 2, 3, 4]


async def is_waiting(pool: DatabasePool, count: int) -> bool:
    return (await pool.statistics()).waiting == count


async def test_a_caller_that_is_cancelled_leaves_the_database_to_others(server: PostgresServer, template: str) -> None:
    async def one() -> None:
        async with pool.lease(timeout=WAIT) as database:
            database.keep_clean()

    async with pool_of(server, template, 1, 1) as pool:
        await until(lambda: is_ready(pool, 1))
        for steps in range(12):  # at every await of the hand-out
            task = asyncio.ensure_future(one())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        async with asyncio.timeout(WAIT.total_seconds()):
            await one()
        assert (await pool.statistics()).leased == 0


async def test_a_caller_that_is_cancelled_while_giving_back_has_given_back(
    server: PostgresServer, template: str
) -> None:
    async with pool_of(server, template, 1, 1) as pool:
        inside, end = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with pool.lease(timeout=WAIT):
                inside.set()
                await end.wait()

        task = asyncio.ensure_future(hold())
        await inside.wait()
        end.set()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with pool.lease(timeout=WAIT) as database:
            assert database.generation == 2


async def test_closing_tells_whoever_waits(server: PostgresServer, template: str) -> None:  # INT-10
    pool = DatabasePool(server, template, initial_size=0, max_size=1)
    await pool.open()
    assert await pool.open() is pool
    lease = pool.lease(timeout=WAIT)
    await lease.__aenter__()
    waiting = [asyncio.ensure_future(pool.lease(timeout=WAIT).__aenter__()) for _ in range(5)]
    await until(lambda: is_waiting(pool, 5))
    await pool.close()
    await pool.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PoolClosed] * 5
    await lease.__aexit__(None, None, None)  # given up already
    async with pool_of(server, template, 0, 1) as pool, pool.lease(timeout=WAIT) as database:
        assert database.generation == 2


async def test_a_pool_that_is_not_open_refuses_every_call(server: PostgresServer, template: str) -> None:
    pool = DatabasePool(server, template, initial_size=1, max_size=1)
    with pytest.raises(PoolClosed):
        async with pool.lease():
            pytest.fail("leased")
    calls: list[Awaitable[object]] = [
        pool.hand_out(),
        pool.take_back(0),
        pool.clear(),
        pool.discard(),
        pool.statistics(),
    ]
    for call in calls:
        with pytest.raises(PoolClosed):
            await call


async def test_a_lease_keeps_the_pool_from_being_cleared(server: PostgresServer, template: str) -> None:
    async with pool_of(server, template, 1, 2) as pool, pool.lease(timeout=WAIT) as database:
        with pytest.raises(DatabaseInUse) as caught:
            await pool.clear()
        assert caught.value.database == database.name
        with pytest.raises(DatabaseInUse):
            await pool.discard()
        assert await server.database_exists(database.name)
        async with pool.lease(timeout=WAIT):  # it is open as before
            pass


async def test_a_cleared_pool_is_filled_again(server: PostgresServer, template: str) -> None:  # INT-18
    async with pool_of(server, template, 2, 2) as pool:
        await until(lambda: is_ready(pool, 2))
        assert await pool.clear() == (f"{template}_test_000", f"{template}_test_001")
        async with pool.lease(timeout=WAIT) as database:
            assert (database.number, database.generation) == (0, 1)


async def test_a_discarded_pool_leaves_nothing(server: PostgresServer, template: str) -> None:  # INT-18
    pool = await DatabasePool(server, template, initial_size=1, max_size=1).open()
    async with pool.lease(timeout=WAIT):
        waiting = asyncio.ensure_future(pool.lease(timeout=WAIT).__aenter__())
        await until(lambda: is_waiting(pool, 1))
    with pytest.raises((PoolClosed, DatabaseInUse)):
        # The one that waits is either told, or was served first and keeps the pool from being cleared.
        await asyncio.gather(pool.discard(), waiting)
    await pool.close()
    async with pool_of(server, template, 0, 1) as pool:
        names = await pool.discard()
        assert not [name for name in names if await server.database_exists(name)]
        await pool.open()
        assert await pool.discard() == ()
    assert not await server.database_exists(f"{template}_test_000")


async def test_another_pool_of_the_template_may_have_another_size(
    server: PostgresServer, template: str
) -> None:  # INT-21, second half
    async with pool_of(server, template, 1, 1) as small, pool_of(server, template, 1, 3) as large:
        async with small.lease(timeout=WAIT), large.lease(timeout=WAIT), large.lease(timeout=WAIT):
            with pytest.raises(PoolTimeout):
                await small.lease(timeout=SHORT).__aenter__()
            assert (await small.statistics()).leased == 3


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"initial_size": 0, "max_size": 0}, "max_size"),
        ({"initial_size": -1, "max_size": 1}, "initial_size"),
        ({"initial_size": 2, "max_size": 1}, "initial_size"),
        ({"initial_size": 1, "max_size": 1, "max_databases": 0}, "max_databases"),
    ],
)
def test_impossible_sizes_are_refused(server: PostgresServer, options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        DatabasePool(server, "t", **options)
    assert caught.value.argument == argument


@pytest.mark.parametrize("timeout", [5, "5 s", timedelta(seconds=-1)])
async def test_a_time_out_that_is_no_duration_is_refused(server: PostgresServer, timeout: Any) -> None:
    """Also where nobody has to wait: a test must not fail only on a busy day."""
    pool = DatabasePool(server, "t", initial_size=1, max_size=1)
    for work in (
        lambda: pool.lease(timeout=timeout).__aenter__(),
        lambda: pool.hand_out(timeout=timeout),
        lambda: server.ensure_template_exists("t", str, timeout=timeout),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await work()
        assert caught.value.argument == "timeout"


@pytest.mark.parametrize("options", [{"template": "x" * 64}, {"name_prefix": "x" * 60}, {"owner": ""}])
def test_impossible_names_are_refused(server: PostgresServer, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidDatabaseName):
        DatabasePool(server, **{"template": "t", "max_size": 10, "initial_size": 1, **options})


@pytest.mark.parametrize("tail", ["y" * 50, "ü" * 22, '"; --'])
async def test_long_and_odd_names_of_templates_get_databases_of_their_own(
    server: PostgresServer, template: str, tail: str, rows_of: Callable[[str], Awaitable[list[str]]]
) -> None:
    odd = f"{template}{tail}"[:63]

    async def nothing(url: str) -> None:
        pass

    await server.ensure_template_exists(odd, nothing)
    async with pool_of(server, odd, 0, 1) as pool, pool.lease(timeout=WAIT) as database:
        assert len(database.name.encode()) <= 63
        async with pool_of(server, template, 0, 1) as other, other.lease(timeout=WAIT) as another:
            assert another.name != database.name
            assert await rows_of(another.url) == ["red"]


async def test_a_database_of_somebody_else_is_never_touched(
    server: PostgresServer, template: str, rows_of: Callable[[str], Awaitable[list[str]]]
) -> None:
    taken = f"{template}_test_000"
    await server.create_database(taken)
    async with pool_of(server, template, 1, 1) as pool, pool.lease(timeout=WAIT) as database:
        assert database.number == 1
        assert await rows_of(database.url) == ["red"]
    assert await server.database_exists(taken)


def test_the_blocking_twin_leases_from_threads(server: PostgresServer, template: str) -> None:
    names: list[str] = []
    barrier = threading.Barrier(3)

    def work() -> None:
        with pool.lease(timeout=WAIT) as database:
            names.append(database.name)
            barrier.wait(WAIT.total_seconds())

    with DatabasePool(server, template, initial_size=0, max_size=3).blocking as pool:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT.total_seconds())
        assert pool.template == template
        assert len(set(names)) == 3
        assert pool.statistics().returned_dirty == 3
        with pytest.raises(LookupError), pool.lease(timeout=WAIT):
            raise LookupError
        given = pool.hand_out(timeout=WAIT)
        assert pool.take_back(given.number, clean=True)
        assert pool.clear()
        pool.discard()
    with pytest.raises(PoolClosed):
        pool.statistics()


async def test_a_lease_that_was_lost_is_said_so(
    server: PostgresServer, template: str, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(server, template, 0, 1) as pool:
        async with pool.lease(timeout=WAIT) as database:
            async with connect(server.url_for("cascade_state_pools_1")) as books:
                await books.execute("DELETE FROM slots WHERE database = $1", database.name)
        with caplog.at_level(logging.WARNING):
            assert "was not this process's any more" in caplog.text
    await server.drop_database(database.name)


async def test_a_database_that_is_kept_leaves_the_pool(
    server: PostgresServer,
    template: str,
    rows_of: Callable[[str], Awaitable[list[str]]],
    change: Callable[[str], Awaitable[None]],
) -> None:
    async with pool_of(server, template, 1, 1) as pool:
        async with pool.lease(timeout=WAIT) as kept:
            await change(kept.url)
            kept.keep()
        async with pool.lease(timeout=WAIT) as other:  # there is room for another one, of another name
            assert other.name != kept.name
            assert await rows_of(other.url) == ["red"]
        assert kept.name not in await pool.clear()
        assert await rows_of(kept.url) == ["changed", "red"]


async def test_what_cannot_be_kept_is_a_warning(
    server: PostgresServer, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(server, template, 1, 1) as pool:
        lease = pool.lease(timeout=WAIT)
        database = await lease.__aenter__()
        database.keep()
        await pool.close()  # which gave the lease up
        await lease.__aexit__(None, None, None)
        assert not caplog.messages
