"""Members of a replica set, as tasks of one process, on both back ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from cascade_state import InvalidArgument, LeaseLost, Store, StoreNotOpen, open_store
from cascade_state.coordination import Member
from cascade_state.model.replica_sets import Membership
from cascade_state.testing.contracts import rule
from tests.coordination.helping import INTERVAL, PATIENCE, a_set, settled, until


async def generations(store: Store) -> dict[int, int]:
    return {item.partition_id: item.generation for item in await store.replica_sets.list_assignments("shipping")}


async def test_a_member_knows_its_share_and_may_write_with_it(store: Store) -> None:
    async with a_set(store, metadata={"rack": 7}).join() as member:
        assert member.partitions == frozenset(range(store.options.partition_count))
        assert member.generations == dict.fromkeys(range(store.options.partition_count), 1)
        assert (member.replica_set, member.generation, member.is_alive, member.releasing) == ("shipping", 1, True, {})
        (worker,) = await store.replica_sets.list_workers("shipping")
        assert worker.worker_id == member.worker_id
        assert set(worker.metadata) == {"host", "pid", "rack"}
        async with store.begin() as uow:
            await uow.fence(3, member.generations[3], member.replica_set)
    assert not member.is_alive
    assert member.partitions == frozenset()
    assert await store.replica_sets.list_workers() == []


async def test_a_worker_name_used_twice_gives_two_workers(store: Store) -> None:
    replica_set = a_set(store, worker_name="rhine")
    async with replica_set.join() as first, replica_set.join() as second:
        assert first.worker_id != second.worker_id
        assert first.worker_id.startswith("rhine-")
        assert second.worker_id.startswith("rhine-")
        await settled([first, second], store.options.partition_count)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("heartbeat_interval", {"stale_after": 3 * INTERVAL - timedelta(microseconds=1)}),
        ("heartbeat_interval", {"heartbeat_interval": timedelta(0)}),
        ("heartbeat_interval", {"heartbeat_interval": 5}),
        ("stale_after", {"stale_after": timedelta(0)}),
        ("stale_after", {"stale_after": None}),
        ("worker_name", {"worker_name": ""}),
        ("worker_name", {"worker_name": "x" * 500}),
        ("name", {"name": "a\0b"}),
        ("metadata", {"metadata": ["rhine"]}),
    ],
)
async def test_unusable_options_are_refused_before_anything_is_sent(
    memory_store: Store, argument: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        a_set(memory_store, **options)
    assert caught.value.argument == argument
    assert a_set(memory_store, stale_after=3 * INTERVAL).heartbeat_interval == INTERVAL


@rule("ORC-13")
async def test_twenty_members_that_join_at_once_share_fairly_and_leave_nothing_behind(store: Store) -> None:
    async with AsyncExitStack() as stack:
        joins = [stack.enter_async_context(a_set(store).join()) for _ in range(20)]
        members = await asyncio.gather(*joins)
        await settled(members, store.options.partition_count)
        assert len({member.worker_id for member in members}) == 20
        await until(lambda: {member.generation for member in members} == {20}, members)
    assert await store.replica_sets.list_workers() == []
    assert {item.owner for item in await store.replica_sets.list_assignments("shipping")} == {None}


@rule("ORC-03", "ORC-11")
async def test_joining_and_leaving_move_no_more_than_needed(store: Store) -> None:
    count = store.options.partition_count
    async with a_set(store).join() as first, a_set(store).join() as second:
        await settled([first, second], count)
        before = await generations(store)
        async with a_set(store).join() as third:
            await settled([first, second, third], count)
            during = await generations(store)
            assert sum(during[partition] != before[partition] for partition in range(count)) == count // 3
            left = set(third.partitions)
        await settled([first, second], count)
        after = await generations(store)
        assert {partition for partition in range(count) if after[partition] != during[partition]} == left


@rule("ORC-08")
async def test_sets_of_different_names_know_nothing_of_each_other(store: Store) -> None:
    everything = frozenset(range(store.options.partition_count))
    async with a_set(store, "shipping").join() as shipping, a_set(store, "billing").join() as billing:
        assert shipping.partitions == billing.partitions == everything
        async with a_set(store, "billing").join() as another:
            await settled([billing, another], store.options.partition_count)
            assert shipping.partitions == everything
            assert (shipping.generation, another.generation) == (1, 2)
        assert (await store.statistics()).workers_alive == 2


HOUR = timedelta(hours=1)


async def test_hints_tell_the_others_who_joins_and_who_leaves_long_before_their_heartbeats(store: Store) -> None:
    count = store.options.partition_count
    seldom: dict[str, Any] = {"heartbeat_interval": HOUR, "stale_after": 3 * HOUR}
    async with a_set(store, **seldom).join() as first:
        async with a_set(store, **seldom).join() as second, a_set(store, **seldom).join() as third:
            await settled([first, second, third], count)
        await settled([first], count)
        assert first.generation == 5


async def test_members_without_hints_find_it_out_by_their_heartbeats(database_url: str) -> None:
    async with open_store(database_url, hints=False) as store, a_set(store).join() as first:
        async with a_set(store).join() as second:
            await settled([first, second], store.options.partition_count)
        await settled([first], store.options.partition_count)


# Handing over


async def test_a_partition_is_handed_over_when_the_work_in_hand_is_done(store: Store) -> None:
    last = store.options.partition_count - 1
    async with a_set(store).join() as first:
        with first.working_in(last) as generation, first.working_in(last):
            assert generation == first.generations[last]
            async with a_set(store).join() as second:
                await until(lambda: set(first.releasing) == {last} and len(second.share.awaited) == 1, [first, second])
                assert first.releasing == {last: generation}
                assert last not in first.partitions | second.partitions
                async with store.begin() as uow:
                    await uow.fence(last, generation, "shipping")
                with pytest.raises(LeaseLost) as caught, first.working_in(last):
                    pytest.fail("nothing new may begin")
                assert caught.value.holder == first.worker_id
        async with a_set(store).join() as third:
            await settled([first, third], store.options.partition_count)


async def test_whoever_has_work_in_hand_for_too_long_loses_the_partition_all_the_same(store: Store) -> None:
    last = store.options.partition_count - 1
    patience = timedelta(seconds=1)
    async with a_set(store, stale_after=patience).join() as first:
        with first.working_in(last) as generation:
            async with a_set(store).join() as second:
                await settled([first, second], store.options.partition_count)
                async with store.begin() as uow:
                    with pytest.raises(LeaseLost):
                        await uow.fence(last, generation, "shipping")


@rule("ORC-02")
async def test_in_a_healthy_set_nothing_that_holds_its_partition_is_ever_refused(store: Store) -> None:
    """Members come and go; whoever works under `working_in` and fences first always commits."""
    works, stop = Counter[str](), asyncio.Event()

    async def work(member: Member) -> None:
        while not stop.is_set():
            for partition in list(member.partitions)[:5]:
                try:
                    holding = member.working_in(partition)
                    generation = holding.__enter__()
                except LeaseLost:
                    continue  # it went meanwhile; nothing had begun
                try:
                    async with store.begin() as uow:
                        await asyncio.sleep(0)
                        await uow.fence(partition, generation, member.replica_set)
                    works[member.worker_id] += 1
                finally:
                    holding.__exit__(None, None, None)
            await asyncio.sleep(0)

    async with a_set(store).join() as first, asyncio.TaskGroup() as group:
        group.create_task(work(first))
        for _ in range(4):
            async with a_set(store).join() as guest:
                working = group.create_task(work(guest))
                await settled([first, guest], store.options.partition_count)
                await until(lambda: works[guest.worker_id] > 20, [guest])
                stop.set()
                await working
                stop.clear()
                group.create_task(work(first))
        stop.set()
    assert len(works) == 5


# Being told


async def test_a_change_wakes_whoever_waits_for_it(store: Store) -> None:
    async with a_set(store).join() as first:
        known = first.share
        waiting = asyncio.ensure_future(first.changed())
        async with a_set(store).join():
            async with asyncio.timeout(PATIENCE):
                seen = await waiting
                assert seen != known
                assert (await first.changed(since=known)) != known
        async with asyncio.timeout(PATIENCE):
            while first.share.generation != 3:
                await first.changed(since=seen)
                seen = first.share
        ending = asyncio.ensure_future(first.changed())
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        assert (await ending).partitions == frozenset()
        assert (await first.changed()).partitions == frozenset()


# Going silent, and coming back


@rule("ORC-13")
async def test_a_member_that_was_removed_joins_again_under_a_new_id_and_says_so(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="cascade_state.coordination")
    async with a_set(store).join() as member:
        former, before = member.worker_id, dict(member.generations)
        await store.replica_sets.leave("shipping", former)
        await until(lambda: member.worker_id != former and member.is_alive, [member])
        assert member.generations == dict.fromkeys(before, 3)
        with pytest.raises(LeaseLost):
            async with store.begin() as uow:
                await uow.fence(0, before[0], "shipping")
        assert [worker.worker_id for worker in await store.replica_sets.list_workers()] == [member.worker_id]
    told = [record.getMessage() for record in caplog.records if "joined again" in record.message]
    assert len(told) == 1
    assert f"worker_id={member.worker_id} former_worker_id={former}" in told[0]


async def test_while_the_event_loop_is_blocked_the_time_goes_on(store: Store) -> None:
    async with a_set(store, stale_after=timedelta(seconds=1)).join() as member:
        known = member.share
        time.sleep(1.1)  # noqa: ASYNC251 - a handler that does not give way
        assert not member.is_alive
        assert (member.partitions, member.generations, member.releasing) == (frozenset(), {}, {})
        with pytest.raises(LeaseLost), member.working_in(0):
            pytest.fail("it must not work before it was heard again")
        await until(lambda: member.is_alive and len(member.partitions) == len(known.partitions), [member])


async def test_a_database_clock_that_jumps_costs_time_and_nothing_else(store: Store, clock: Any) -> None:
    """Ahead by an hour everybody looks silent: they remove each other, join again, and share as before."""
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(a_set(store).join()) for _ in range(3)]
        await settled(members, store.options.partition_count)
        for jump in (timedelta(hours=1), -timedelta(hours=2), timedelta(days=3)):
            clock.set(clock.now() + jump)
            beat = clock.now()

            async def all_heard(beat: Any = beat) -> bool:
                workers = await store.replica_sets.list_workers("shipping")
                return len(workers) == 3 and all(worker.heartbeat_at == beat for worker in workers)

            async with asyncio.timeout(PATIENCE):
                while not await all_heard():  # noqa: ASYNC110 - a clock that was set wakes nobody
                    await asyncio.sleep(INTERVAL.total_seconds())
            await settled(members, store.options.partition_count)


async def test_a_heartbeat_that_fails_for_whatever_reason_is_repeated(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beat, failures = store.replica_sets.beat, [RuntimeError("a bug"), LeaseLost(entity="worker", key="k")]

    async def failing(*arguments: Any, **options: Any) -> Membership:
        if failures:
            raise failures.pop(0)
        return await beat(*arguments, **options)

    async with a_set(store).join() as member:
        former = member.worker_id
        monkeypatch.setattr(store.replica_sets, "beat", failing)
        await until(lambda: not failures and member.worker_id != former and member.is_alive, [member])
    assert "a bug" in caplog.text


# Leaving


async def test_what_ends_the_block_passes_unchanged_and_the_member_has_left(store: Store) -> None:
    error = ValueError("of the caller")
    with pytest.raises(ValueError, match="of the caller") as caught:
        async with a_set(store).join():
            raise error
    assert caught.value is error
    assert await store.replica_sets.list_workers() == []


async def test_a_member_whose_store_is_closed_ends_quietly(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with open_store(store_url) as keeper, AsyncExitStack() as stack:
        closed = await stack.enter_async_context(open_store(store_url))
        joining = a_set(closed).join()
        member = await joining.__aenter__()
        await stack.aclose()
        await joining.__aexit__(None, None, None)
        assert not member.is_alive
        assert "could not leave" in caplog.text
        assert [worker.worker_id for worker in await keeper.replica_sets.list_workers()] == [member.worker_id]


async def test_joining_a_store_that_is_not_open_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with open_store("memory://") as closed:
        replica_set = a_set(closed)
    with pytest.raises(StoreNotOpen):
        async with replica_set.join():
            pytest.fail("the store is closed")
    assert caplog.records == []


async def test_without_a_clock_that_counts_sleep_the_monotonic_one_serves(
    memory_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    async with a_set(memory_store, stale_after=3 * INTERVAL).join() as member:
        until = member._alive_until
        assert time.monotonic() < until <= time.monotonic() + 3 * INTERVAL.total_seconds()
        member._expire()  # as a timer does that fires too early
        assert caplog.records == []
