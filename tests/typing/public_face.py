"""What type checkers make of the public face; `make types` checks this file, nothing runs it."""

from datetime import datetime, timedelta
from typing import assert_type
from uuid import UUID

from cascade_state import (
    AddResult,
    Correlation,
    CursorList,
    DeadLetter,
    Delivery,
    FlowDefinition,
    FlowEvent,
    FlowInstance,
    FlowInstanceFilter,
    FlowStatus,
    Lease,
    Page,
    ScheduleTimer,
    Statistics,
    Store,
    Timer,
    UnitOfWork,
    open_store,
)


async def stores(flow: FlowInstance, delivery: Delivery, timer: Timer) -> None:
    async with open_store("memory://") as store:
        assert_type(store, Store)
        async with store.begin() as uow:
            assert_type(uow, UnitOfWork)
            assert_type(await uow.advance(flow, completes=[delivery, timer]), FlowInstance)
            async with uow.savepoint() as inner:
                assert_type(inner, UnitOfWork)
        assert_type(await store.run(_count), int)
        assert_type(await store.statistics(), Statistics)


async def _count(uow: UnitOfWork) -> int:
    return await uow.flow_instances.count(FlowInstanceFilter(statuses=[FlowStatus.RUNNING]))


async def repositories(store: Store, identity: UUID, at: datetime) -> None:
    lease = timedelta(seconds=30)
    assert_type(await store.flow_definitions.get("order"), FlowDefinition)
    assert_type(await store.flow_definitions.find("order", 2), FlowDefinition | None)
    assert_type(await store.flow_definitions.list_latest(), CursorList[FlowDefinition])
    assert_type(await store.flow_instances.find(identity), FlowInstance | None)
    assert_type(await store.flow_instances.add_many([]), list[AddResult])
    assert_type(await store.flow_instances.list_page(), Page[FlowInstance])
    assert_type(await store.flow_instances.history(identity), CursorList[FlowEvent])
    assert_type(await store.correlations.publish("key", {"a": 1}), list[Delivery])
    assert_type(await store.correlations.list_waiting("key"), CursorList[Correlation])
    assert_type(await store.correlations.list_dead_letters(), CursorList[DeadLetter])
    assert_type(await store.timers.claim_due("worker", lease_duration=lease), list[Timer])
    assert_type(await store.timers.next_due_at(), datetime | None)
    assert_type(await store.timers.cancel(identity), bool)
    async for instance in store.flow_instances.iterate():
        assert_type(instance, FlowInstance)
        assert_type(instance.lease, Lease | None)
        await store.advance(instance, schedule=[ScheduleTimer("step", due_at=at)])
