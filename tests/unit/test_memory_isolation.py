"""What each isolation level gives; `cascade_state.memory.transaction` says it in words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from cascade_state import FlowDefinition, FlowInstance, StepDefinition, Store, open_store
from cascade_state.errors import TransactionAborted, UsageError, VersionConflict
from cascade_state.memory.store import MemoryStore

T = TypeVar("T")
LEASE = timedelta(seconds=30)
SNAPSHOTS = pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
DEFINITION = FlowDefinition(flow_id="order", steps=(StepDefinition(step_id="charge", component_type="http"),))


async def finished(work: Awaitable[T]) -> T:
    async with asyncio.timeout(10):
        return await work


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with MemoryStore("memory://", open_store("memory://").options) as store:
        yield store
        assert not store._data.locks.held
        assert not store._data.snapshots
        assert not store._data.undo.changes
        assert not store.open_transactions


@pytest.fixture
async def flow(store: MemoryStore) -> FlowInstance:
    definition = await store.flow_definitions.deploy(DEFINITION)
    return await store.advance(FlowInstance.create(definition).start())


@SNAPSHOTS
async def test_a_snapshot_goes_on_seeing_what_was(store: Store, flow: FlowInstance, isolation: Any) -> None:
    flow_id = flow.flow_instance_id
    await store.component_states.put(flow_id, "kept", 1)
    await store.component_states.put(flow_id, "gone", 1)
    async with store.begin(isolation=isolation) as uow:
        await store.component_states.put(flow_id, "kept", 2)
        await store.component_states.remove(flow_id, "gone")
        await store.component_states.put(flow_id, "new", 1)
        async with store.begin() as other:
            await other.advance(flow.suspend_for_event("charge", "k"))
            await other.timers.schedule(flow_id, "charge", after=timedelta(0))
        assert [state.step_id for state in await uow.component_states.list_for_instance(flow_id)] == ["gone", "kept"]
        assert (await uow.component_states.get(flow_id, "kept")).state == 1
        assert await uow.flow_instances.get(flow_id) == flow
        assert await uow.flow_instances.find_by_correlation("k") == []
        assert await uow.timers.list_for_instance(flow_id) == []
        assert len(await uow.events.read()) == 2
    assert (await store.component_states.get(flow_id, "kept")).state == 2
    assert len(await store.events.read()) == 3


@SNAPSHOTS
async def test_a_snapshot_sees_its_own_writes(store: Store, flow: FlowInstance, isolation: Any) -> None:
    async with store.begin(isolation=isolation) as uow:
        await uow.component_states.put(flow.flow_instance_id, "charge", 1)
        assert (await uow.component_states.get(flow.flow_instance_id, "charge")).state == 1
        assert await store.component_states.find(flow.flow_instance_id, "charge") is None
    assert (await store.component_states.get(flow.flow_instance_id, "charge")).state == 1


@SNAPSHOTS
async def test_the_first_updater_wins(store: Store, flow: FlowInstance, isolation: Any) -> None:
    uow = store.begin(isolation=isolation)
    await uow.__aenter__()
    await store.advance(flow.complete_step("charge"))
    with pytest.raises(TransactionAborted):
        await uow.advance(flow.fail("late"))
    with pytest.raises(TransactionAborted):  # as in PostgreSQL, nothing works in it any more
        await uow.flow_instances.get(flow.flow_instance_id)
    with pytest.raises(TransactionAborted):
        await uow.__aexit__(None, None, None)
    assert (await store.flow_instances.get(flow.flow_instance_id)).completed_steps == {"charge"}


@SNAPSHOTS
async def test_waiting_for_one_that_commits_loses_and_for_one_that_rolls_back_wins(
    store: Store, flow: FlowInstance, isolation: Any
) -> None:
    for commits in (False, True):
        async with store.begin() as first:
            await first.component_states.put(flow.flow_instance_id, "charge", "first")
            second = store.begin(isolation=isolation)
            await second.__aenter__()
            waiting = asyncio.ensure_future(second.component_states.put(flow.flow_instance_id, "charge", "second"))
            await turns()
            assert not waiting.done()
            if not commits:
                await first.rollback()
        if commits:
            with pytest.raises(TransactionAborted):
                await finished(waiting)
            await second.rollback()
        else:
            await finished(waiting)
            await second.__aexit__(None, None, None)
            assert await store.component_states.remove(flow.flow_instance_id, "charge")
    assert (await store.component_states.get(flow.flow_instance_id, "charge")).state == "first"


async def test_a_snapshot_never_misses_the_wait_of_its_event(store: Store, flow: FlowInstance) -> None:
    async def publish(uow: Any) -> Any:
        await uow.flow_instances.count()
        if not await store.correlations.list_waiting("k"):
            await store.advance(flow.suspend_for_event("charge", "k"))  # unseen by this snapshot
        return await uow.correlations.publish("k", 1)

    (delivery,) = await finished(store.run(publish, isolation="REPEATABLE READ"))
    assert delivery.flow_instance_id == flow.flow_instance_id


async def test_a_claim_under_a_snapshot_passes_over_what_others_changed(store: Store, flow: FlowInstance) -> None:
    first = await store.timers.schedule(flow.flow_instance_id, "a", after=timedelta(0))
    second = await store.timers.schedule(flow.flow_instance_id, "b", after=timedelta(0))
    async with store.begin(isolation="REPEATABLE READ") as uow:
        await store.timers.cancel(first.timer_id)
        claimed = await uow.timers.claim_due("w", lease_duration=LEASE)
    assert [timer.timer_id for timer in claimed] == [second.timer_id]


async def test_write_skew_passes_under_repeatable_read_and_not_under_serializable(
    store: Store, flow: FlowInstance
) -> None:
    async def skew(isolation: Any) -> int:
        one, other = store.begin(isolation=isolation), store.begin(isolation=isolation)
        committed = 0
        for uow in (one, other):
            await uow.__aenter__()
        for uow, mine, theirs in ((one, "a", "b"), (other, "b", "a")):
            if await uow.component_states.find(flow.flow_instance_id, theirs) is None:
                await uow.component_states.put(flow.flow_instance_id, mine, 1)
        for uow in (one, other):
            try:
                await uow.__aexit__(None, None, None)
                committed += 1
            except TransactionAborted:
                pass
        for step_id in ("a", "b"):
            await store.component_states.remove(flow.flow_instance_id, step_id)
        return committed

    assert await skew("REPEATABLE READ") == 2
    assert await skew("SERIALIZABLE") == 1


async def test_a_serializable_reader_is_never_in_the_way(store: Store, flow: FlowInstance) -> None:
    async with store.begin(isolation="SERIALIZABLE") as uow:
        assert await uow.flow_instances.count() == 1
        await store.component_states.put(flow.flow_instance_id, "charge", 1)
        assert await uow.component_states.find(flow.flow_instance_id, "charge") is None


async def test_one_of_two_that_wait_for_each_other_is_aborted_and_the_other_goes_on(
    store: Store, flow: FlowInstance
) -> None:
    flow_id = flow.flow_instance_id
    async with store.begin() as survivor:
        await survivor.component_states.put(flow_id, "a", "survivor")
        victim = store.begin()
        await victim.__aenter__()
        await victim.component_states.put(flow_id, "b", "victim")
        waiting = asyncio.ensure_future(survivor.component_states.put(flow_id, "b", "survivor"))
        await turns()
        with pytest.raises(TransactionAborted):
            await finished(victim.component_states.put(flow_id, "a", "victim"))
        await finished(waiting)
        with pytest.raises(TransactionAborted):
            await victim.component_states.find(flow_id, "a")
        await victim.rollback()
    states = await store.component_states.list_for_instance(flow_id)
    assert [state.state for state in states] == ["survivor", "survivor"]


async def test_an_abort_inside_a_savepoint_is_undone_with_it(store: Store, flow: FlowInstance) -> None:
    flow_id = flow.flow_instance_id
    async with store.begin() as other:
        await other.component_states.put(flow_id, "b", "other")
        async with store.begin() as uow:
            await uow.component_states.put(flow_id, "a", "before")
            with pytest.raises(TransactionAborted):
                async with uow.savepoint():
                    async with uow.savepoint():
                        await uow.component_states.put(flow_id, "c", "inside")
                    waiting = asyncio.ensure_future(other.component_states.put(flow_id, "c", "other"))
                    await turns()
                    assert not waiting.done()
                    await finished(uow.component_states.put(flow_id, "b", "inside"))
            await finished(waiting)
            await uow.component_states.put(flow_id, "d", "after")
    states = {state.step_id: state.state for state in await store.component_states.list_for_instance(flow_id)}
    assert states == {"a": "before", "b": "other", "c": "other", "d": "after"}


async def test_an_abort_that_a_caller_hides_in_a_savepoint_still_stops_the_rest(
    store: Store, flow: FlowInstance
) -> None:
    uow = store.begin(isolation="REPEATABLE READ")
    await uow.__aenter__()
    await store.advance(flow.complete_step("charge"))
    with pytest.raises(TransactionAborted):
        async with uow.savepoint(), uow.savepoint():
            with pytest.raises(TransactionAborted):
                await uow.advance(flow.fail("late"))
        # leaving the savepoints cleanly is refused: what was done inside is gone
    await uow.component_states.put(flow.flow_instance_id, "a", 1)  # the savepoint was rolled back to
    await uow.__aexit__(None, None, None)
    assert await store.component_states.find(flow.flow_instance_id, "a") is not None


async def test_rolling_back_to_a_savepoint_gives_its_locks_back(store: Store, flow: FlowInstance) -> None:
    async with store.begin() as uow:
        await uow.component_states.put(flow.flow_instance_id, "a", 1)
        with pytest.raises(ZeroDivisionError):
            async with uow.savepoint():
                await uow.component_states.put(flow.flow_instance_id, "b", 1)
                raise ZeroDivisionError
        await finished(store.component_states.put(flow.flow_instance_id, "b", 2))
        waiting = asyncio.ensure_future(store.component_states.put(flow.flow_instance_id, "a", 2))
        await turns()
        assert not waiting.done()
    assert (await finished(waiting)).version == 2


async def test_a_stale_write_does_not_wait_to_be_told(store: Store, flow: FlowInstance) -> None:
    newer = await store.advance(flow.complete_step("charge"))
    async with store.begin() as uow:
        await uow.advance(newer.complete())
        with pytest.raises(VersionConflict):  # whatever becomes of the open one, this version is over
            await finished(store.advance(flow.fail("stale")))


async def test_a_failed_call_keeps_no_lock(store: Store, flow: FlowInstance) -> None:
    async with store.begin() as uow:
        with pytest.raises(VersionConflict):
            await uow.component_states.put(flow.flow_instance_id, "a", 1, expected_version=7)
        await finished(store.component_states.put(flow.flow_instance_id, "a", 2))


async def test_removing_a_flow_waits_for_a_state_that_is_being_put(store: Store, flow: FlowInstance) -> None:
    async with store.begin() as uow:
        await uow.component_states.put(flow.flow_instance_id, "a", 1)
        await finished(store.advance(flow.complete_step("charge")))  # an advance need not wait
        waiting = asyncio.ensure_future(store.flow_instances.remove(flow.flow_instance_id))
        await turns()
        assert not waiting.done()
    assert await finished(waiting)


async def test_a_purge_passes_over_flows_that_somebody_works_on(store: MemoryStore, flow: FlowInstance) -> None:
    ended = await store.advance(flow.fail("x"))
    assert ended.completed_at is not None
    before = ended.completed_at + timedelta(seconds=1)
    async with store.begin() as uow:
        await uow.component_states.put(flow.flow_instance_id, "a", 1)
        assert await finished(store.flow_instances.purge(before)) == 0
        assert await finished(store.flow_instances.purge(before, dry_run=True)) == 1
    assert await store.flow_instances.purge(before) == 1


async def test_a_read_only_unit_of_work_can_have_a_snapshot(store: Store, flow: FlowInstance) -> None:
    async with store.begin(isolation="REPEATABLE READ", read_only=True) as uow:
        await store.advance(flow.fail("x"))
        assert (await uow.flow_instances.get(flow.flow_instance_id)).status == "RUNNING"
        with pytest.raises(UsageError):
            await uow.advance(flow.fail("x"))
