"""Races that only two real connections can show, and processes that die between two statements."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from cascade_state import (
    AlreadyExists,
    FlowDefinitionNotFound,
    FlowInstance,
    FlowStatus,
    InvalidTransition,
    Store,
    TransactionAborted,
    open_store,
)
from cascade_state.ids import partition_of_key
from cascade_state.postgres import correlations, flow_instances
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from tests.contract.postgres_observer import PostgresObserver

pytestmark = pytest.mark.postgres

_LEASE = timedelta(seconds=30)


class _Died(Exception):
    """Stands for the end of the process."""


async def _in_time(work: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(work, 20)


async def _started(store: Store) -> FlowInstance:
    definition = await store.flow_definitions.deploy(factories.flow_definition())
    return await store.advance(FlowInstance.create(definition).start())


async def test_a_timer_scheduled_while_its_flow_ends_goes_with_the_flow(database_url: str) -> None:
    """C-24: the advance's DELETE cannot see the timer in its snapshot, so it must notice and look again."""
    observer = PostgresObserver(database_url)
    async with open_store(database_url) as store, open_store(database_url) as other:
        flow = await _started(store)
        async with other.begin() as uow:
            await uow.timers.schedule(flow.flow_instance_id, "a", after=timedelta(0))
            ending = asyncio.create_task(store.advance(flow.complete()))
            await _in_time(observer.settled([ending]))
            assert not ending.done()
        ended = await _in_time(ending)
        assert ended.status is FlowStatus.COMPLETED
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []
        assert await store.timers.claim_due("w", lease_duration=_LEASE) == []


async def test_scheduling_waits_for_an_advance_under_way_and_then_sees_that_the_flow_ended(database_url: str) -> None:
    observer = PostgresObserver(database_url)
    async with open_store(database_url) as store, open_store(database_url) as other:
        flow = await _started(store)
        async with other.begin() as uow:
            await uow.advance(flow.complete())
            scheduling = asyncio.create_task(store.timers.schedule(flow.flow_instance_id, "a", after=timedelta(0)))
            await _in_time(observer.settled([scheduling]))
            assert not scheduling.done()
        with pytest.raises(InvalidTransition):
            await _in_time(scheduling)


async def test_a_flow_added_while_its_definition_is_undeployed_finds_it_gone(database_url: str) -> None:
    observer = PostgresObserver(database_url)
    async with open_store(database_url) as store, open_store(database_url) as other:
        definition = await store.flow_definitions.deploy(factories.flow_definition())
        async with other.begin() as uow:
            await uow.flow_definitions.undeploy(definition.flow_id)
            adding = asyncio.create_task(store.flow_instances.add(FlowInstance.create(definition)))
            await _in_time(observer.settled([adding]))
            assert not adding.done()
        with pytest.raises(FlowDefinitionNotFound):
            await _in_time(adding)


async def test_a_blocked_advance_does_not_hold_up_others_that_share_its_line(database_url: str) -> None:
    """A coalesced batch must never wait for one caller's row on behalf of the others."""
    async with open_store(database_url) as store, open_store(database_url) as other:
        flows = [await _started(store) for _ in range(6)]
        async with other.begin() as uow:
            await uow.advance(flows[0].complete_step("a"))
            tasks = [asyncio.create_task(store.advance(flow.complete_step("a"))) for flow in flows]
            done, pending = await asyncio.wait(tasks[1:], timeout=20)
            assert not pending
            assert all(task.exception() is None for task in done)
            assert not tasks[0].done()
            await uow.rollback()
        assert (await _in_time(tasks[0])).version == 2


async def test_a_wait_whose_process_died_before_the_match_gets_its_early_event(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FrozenClock()
    async with open_store(database_url, clock=clock) as store, open_store(database_url, clock=clock) as other:
        flow = await _started(store)
        await store.correlations.publish("parcel-1", {"status": "delivered"}, event_id="e")
        monkeypatch.setattr(flow_instances, "match_keys", _die)
        with pytest.raises(_Died):
            await store.advance(flow.suspend_for_event("a", "parcel-1"))
        clock.advance(timedelta(seconds=2))
        (delivery,) = await other.correlations.claim_delivered("w", lease_duration=_LEASE)
        assert (delivery.event_id, delivery.flow_instance_id) == ("e", flow.flow_instance_id)
        assert await other.correlations.claim_delivered("w", lease_duration=_LEASE) == []


async def test_an_event_whose_process_died_before_the_match_reaches_its_waiter(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FrozenClock()
    async with open_store(database_url, clock=clock) as store, open_store(database_url, clock=clock) as other:
        flow = await store.advance((await _started(store)).suspend_for_event("a", "parcel-1"))
        with monkeypatch.context() as patch:
            patch.setattr(correlations, "match_keys", _die)
            with pytest.raises(_Died):
                await store.correlations.publish("parcel-1", {}, event_id="e")
        clock.advance(timedelta(seconds=2))
        (delivery,) = await other.correlations.claim_delivered("w", lease_duration=_LEASE)
        assert (delivery.event_id, delivery.flow_instance_id) == ("e", flow.flow_instance_id)
        # Re-sending what was not acknowledged changes nothing: the id is remembered.
        assert await other.correlations.publish("parcel-1", {}, event_id="e") == []


async def test_under_an_old_snapshot_the_match_is_left_to_the_next_claim(database_url: str) -> None:
    """REPEATABLE READ cannot see an event that was committed after its first statement; it must not be lost."""
    clock = FrozenClock()
    async with open_store(database_url, clock=clock) as store, open_store(database_url, clock=clock) as other:
        flow = await _started(store)
        async with store.begin(isolation="REPEATABLE READ") as uow:
            await uow.flow_instances.get(flow.flow_instance_id)  # the snapshot is taken here
            await other.correlations.publish("parcel-1", {}, event_id="e")
            await uow.advance(flow.suspend_for_event("a", "parcel-1"))
        clock.advance(timedelta(seconds=2))
        (delivery,) = await other.correlations.claim_delivered("w", lease_duration=_LEASE)
        assert delivery.event_id == "e"


@pytest.mark.parametrize("mode", ["first", "fifo"])
async def test_publishers_and_waiters_at_random_lose_and_double_nothing(database_url: str, mode: Any) -> None:
    """C-30: many waiters and events under few keys, on two stores at once; each event reaches exactly one waiter."""
    async with open_store(database_url) as store, open_store(database_url) as other:
        definition = await store.flow_definitions.deploy(factories.flow_definition())
        keys = [f"key-{uuid4()}" for _ in range(40)]

        async def wait(which: Store, key: str) -> None:
            await which.advance(FlowInstance.create(definition).start().suspend_for_event("a", key))

        async def publish(which: Store, key: str) -> None:
            await which.correlations.publish(key, {}, event_id=f"event of {key}", mode=mode)

        work = [act(which, key) for key in keys for act, which in ((wait, store), (publish, other))]
        await _in_time(asyncio.gather(*work))
        deliveries = await store.correlations.claim_delivered("w", limit=1000, lease_duration=_LEASE)
        assert sorted(delivery.event_id or "" for delivery in deliveries) == sorted(f"event of {key}" for key in keys)


async def test_a_commit_that_the_server_turned_into_a_rollback_is_not_taken_for_one(database_url: str) -> None:
    """A swallowed error of the caller's own SQL dooms the transaction; leaving the block must not look like success."""
    async with open_store(database_url) as store:
        flow = await _started(store)
        with pytest.raises(TransactionAborted):
            async with store.begin() as uow:
                await uow.advance(flow.complete_step("a"))
                with suppress(ProgrammingError):
                    await uow.connection.execute(text("SELECT * FROM there_is_no_such_table"))
        assert (await store.flow_instances.get(flow.flow_instance_id)).version == 1


async def _die(*_: object, **__: object) -> None:
    raise _Died


@pytest.mark.parametrize("way", ["add", "add_many", "import_"])
async def test_a_key_whose_taker_died_before_it_freed_it_can_be_taken(database_url: str, way: str) -> None:
    """C-25: whoever loses a race for a flow's id has taken the business key, and frees it in a second statement."""
    async with open_store(database_url) as store, open_store("memory://") as elsewhere:
        definition = await store.flow_definitions.deploy(factories.flow_definition())
        stored = await store.advance(FlowInstance.create(definition))
        async with store.begin() as uow:
            await uow.connection.execute(_STALE_KEY, {**_key_row(stored, "order-1")})
        wanted = FlowInstance.create(definition, business_key="order-1")
        if way == "add":
            added = await store.flow_instances.add(wanted)
        elif way == "add_many":
            other = FlowInstance.create(definition, business_key="order-1")
            first, second = await store.flow_instances.add_many([wanted, other])
            assert first.instance is not None
            assert isinstance(second.error, AlreadyExists)
            added = first.instance
        else:
            await elsewhere.flow_definitions.deploy(definition)
            await elsewhere.flow_instances.add(wanted)
            document = await elsewhere.flow_instances.export(wanted.flow_instance_id)
            await store.flow_instances.import_(document)
            added = await store.flow_instances.get(wanted.flow_instance_id)
        assert await store.flow_instances.find_by_business_key(definition.flow_id, "order-1") == added
        with pytest.raises(AlreadyExists) as caught:
            await store.flow_instances.add(FlowInstance.create(definition, business_key="order-1"))
        assert caught.value.existing_id == added.flow_instance_id


_STALE_KEY = text(
    "INSERT INTO idempotency_keys (partition_id, scope, key, flow_instance_id, created_at)"
    " VALUES (:partition_id, :scope, :key, :flow_instance_id, now())"
)


def _key_row(taker: FlowInstance, key: str) -> dict[str, Any]:
    return {
        "partition_id": partition_of_key(key, 256),
        "scope": f"business_key:{taker.flow_id}",
        "key": key,
        "flow_instance_id": taker.flow_instance_id,
    }
