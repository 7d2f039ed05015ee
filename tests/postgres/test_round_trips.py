"""Round trips of each operation, counted on the wire: on a store, in a unit of work, and in the caller's transaction.

Every operation runs a few times before it is counted, because a connection prepares a statement when it first sees it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeAlias

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cascade_state import FlowDefinition, FlowInstance, Store, UnitOfWork
from cascade_state.testing import factories
from tests.wire import Wire

pytestmark = pytest.mark.postgres

Target: TypeAlias = Store | UnitOfWork

_LEASE = timedelta(seconds=30)
_SECOND = timedelta(seconds=1)
_NOW = timedelta(microseconds=1)
_WARM_UP = 3


@dataclass(frozen=True)
class Operation:
    """One operation, with what it needs and how many round trips it may take."""

    name: str
    prepare: Callable[[Target, FlowDefinition], Awaitable[Any]]
    run: Callable[[Target, Any], Awaitable[Any]]
    at_least: int = 1
    at_most: int = 1


async def _nothing(target: Target, definition: FlowDefinition) -> FlowDefinition:
    return definition


async def _new_flow(target: Target, definition: FlowDefinition) -> FlowInstance:
    return factories.running_flow(definition, business_key=factories.unique("order"))


async def _flow(target: Target, definition: FlowDefinition) -> FlowInstance:
    return await target.advance(factories.running_flow(definition))


async def _flow_with_state(target: Target, definition: FlowDefinition) -> FlowInstance:
    return await target.advance(factories.running_flow(definition), put_states={"charge": {"n": 1}})


async def _held_flow(target: Target, definition: FlowDefinition) -> FlowInstance:
    await _flow(target, definition)
    return (await target.flow_instances.claim("holder", limit=1, lease_duration=_LEASE))[0]


async def _flow_with_timer(target: Target, definition: FlowDefinition) -> tuple[FlowInstance, Any]:
    flow = await _flow(target, definition)
    return flow, await target.timers.schedule(flow.flow_instance_id, "ship", after=_SECOND)


async def _held_timers(target: Target, definition: FlowDefinition) -> tuple[FlowInstance, list[Any]]:
    flow = await _flow(target, definition)
    for _ in range(3):
        await target.timers.schedule(flow.flow_instance_id, "ship", after=_NOW)
    return flow, await target.timers.claim_due("holder", lease_duration=_LEASE)


async def _waited_for(target: Target, definition: FlowDefinition) -> str:
    key = factories.unique("parcel")
    await factories.add_flow(target, definition, waits_for=key)
    return key


async def _deliveries(target: Target, definition: FlowDefinition) -> None:
    for _ in range(3):
        await target.correlations.publish(await _waited_for(target, definition), {"status": "delivered"})


async def _held_deliveries(target: Target, definition: FlowDefinition) -> list[Any]:
    await _deliveries(target, definition)
    return await target.correlations.claim_delivered("holder", lease_duration=_LEASE)


async def _thousand_flows(target: Target, definition: FlowDefinition) -> list[FlowInstance]:
    return [factories.running_flow(definition, business_key=factories.unique("many")) for _ in range(1000)]


async def _advance_with_everything(target: Target, prepared: tuple[FlowInstance, list[Any]]) -> FlowInstance:
    flow, timers = prepared
    return await target.advance(
        flow.complete_step("charge", {"receipt": "r-1"}).suspend_for_timer("ship", after=_SECOND),
        put_states={"charge": {"n": 2}},
        remove_states=("other",),
        completes=timers,
    )


OPERATIONS = (
    Operation("flow_definitions.find", _nothing, lambda target, made: target.flow_definitions.find(made.flow_id)),
    Operation("flow_instances.add", _new_flow, lambda target, flow: target.flow_instances.add(flow)),
    Operation("advance new", _new_flow, lambda target, flow: target.advance(flow)),
    Operation("flow_instances.get", _flow, lambda target, flow: target.flow_instances.get(flow.flow_instance_id)),
    Operation("flow_instances.find", _flow, lambda target, flow: target.flow_instances.find(flow.flow_instance_id)),
    Operation(
        "flow_instances.save", _flow, lambda target, flow: target.flow_instances.save(flow.complete_step("charge"))
    ),
    Operation("advance step", _flow, lambda target, flow: target.advance(flow.complete_step("charge", {"n": 1}))),
    Operation("advance with everything but a wait", _held_timers, _advance_with_everything),
    Operation("advance final", _flow, lambda target, flow: target.advance(flow.complete())),
    Operation(
        "advance with a wait",
        _flow,
        lambda target, flow: target.advance(flow.suspend_for_event("ship", factories.unique("key"))),
        at_most=2,
    ),
    Operation(
        "flow_instances.add_many of 1000",
        _thousand_flows,
        lambda target, flows: target.flow_instances.add_many(flows),
    ),
    Operation(
        "flow_instances.claim",
        _flow,
        lambda target, flow: target.flow_instances.claim("holder", limit=50, lease_duration=_LEASE),
    ),
    Operation("flow_instances.renew", _held_flow, lambda target, flow: target.flow_instances.renew([flow], _LEASE)),
    Operation("flow_instances.release", _held_flow, lambda target, flow: target.flow_instances.release([flow])),
    Operation(
        "component_states.put",
        _flow,
        lambda target, flow: target.component_states.put(flow.flow_instance_id, "charge", {"n": 1}),
    ),
    Operation(
        "component_states.put of none",
        _flow,
        lambda target, flow: target.component_states.put(flow.flow_instance_id, "charge", {"n": 1}, expected_version=0),
    ),
    Operation(
        "component_states.put over a version",
        _flow_with_state,
        lambda target, flow: target.component_states.put(flow.flow_instance_id, "charge", {"n": 1}, expected_version=1),
    ),
    Operation(
        "component_states.get",
        _flow_with_state,
        lambda target, flow: target.component_states.get(flow.flow_instance_id, "charge"),
    ),
    Operation(
        "component_states.remove",
        _flow_with_state,
        lambda target, flow: target.component_states.remove(flow.flow_instance_id, "charge"),
    ),
    Operation(
        "timers.schedule",
        _flow,
        lambda target, flow: target.timers.schedule(flow.flow_instance_id, "ship", after=_SECOND),
    ),
    Operation("timers.get", _flow_with_timer, lambda target, made: target.timers.get(made[1].timer_id)),
    Operation("timers.cancel", _flow_with_timer, lambda target, made: target.timers.cancel(made[1].timer_id)),
    Operation("timers.next_due_at", _flow_with_timer, lambda target, made: target.timers.next_due_at()),
    Operation(
        "timers.claim_due",
        _flow_with_timer,
        lambda target, made: target.timers.claim_due("holder", limit=10_000, lease_duration=_LEASE),
    ),
    Operation("timers.renew", _held_timers, lambda target, made: target.timers.renew(made[1], _LEASE)),
    Operation("timers.complete one", _held_timers, lambda target, made: target.timers.complete(made[1][:1])),
    Operation("timers.complete several", _held_timers, lambda target, made: target.timers.complete(made[1])),
    Operation("timers.release", _held_timers, lambda target, made: target.timers.release(made[1])),
    Operation(
        "timers.retry",
        _held_timers,
        lambda target, made: target.timers.retry(made[1][0], after=_SECOND, error="busy"),
    ),
    Operation(
        "correlations.publish to nobody",
        _nothing,
        lambda target, made: target.correlations.publish(factories.unique("parcel"), {"n": 1}),
        at_most=2,
    ),
    Operation(
        "correlations.publish to a waiter",
        _waited_for,
        lambda target, key: target.correlations.publish(key, {"n": 1}),
        at_most=2,
    ),
    Operation(
        "correlations.claim_delivered",
        _deliveries,
        lambda target, made: target.correlations.claim_delivered("holder", lease_duration=_LEASE),
    ),
    Operation(
        "correlations.renew",
        _held_deliveries,
        lambda target, deliveries: target.correlations.renew(deliveries, _LEASE),
    ),
    Operation(
        "correlations.complete",
        _held_deliveries,
        lambda target, deliveries: target.correlations.complete(deliveries),
    ),
    Operation("events.read", _flow, lambda target, flow: target.events.read(limit=10)),
)

each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    async with Wire(database_url) as wire:
        yield wire


@pytest.fixture
async def store(wire: Wire, open_stores: Callable[..., AbstractAsyncContextManager[Store]]) -> AsyncIterator[Store]:
    # Hints travel on their own, several operations in one, at a moment of their choosing.
    async with open_stores(wire.url, hints=False) as store:
        yield store


@pytest.fixture
async def definition(store: Store) -> FlowDefinition:
    return await factories.deploy_flow_definition(store)


@pytest.fixture
async def engine(wire: Wire) -> AsyncIterator[AsyncEngine]:
    """The caller's own engine, on the same wire."""
    engine = create_async_engine(wire.url.replace("postgresql:", "postgresql+asyncpg:"))
    yield engine
    await engine.dispose()


async def _counted(wire: Wire, operation: Operation, target: Target, definition: FlowDefinition) -> int:
    prepared = await operation.prepare(target, definition)
    before = wire.round_trips
    await operation.run(target, prepared)
    return wire.round_trips - before


async def _assert_counted(wire: Wire, operation: Operation, target: Target, definition: FlowDefinition) -> None:
    for _ in range(_WARM_UP):
        await _counted(wire, operation, target, definition)
    counted = await _counted(wire, operation, target, definition)
    assert operation.at_least <= counted <= operation.at_most, f"{counted} round trips"


@each_operation
async def test_on_a_store(operation: Operation, wire: Wire, store: Store, definition: FlowDefinition) -> None:
    await _assert_counted(wire, operation, store, definition)


@each_operation
async def test_in_a_unit_of_work(operation: Operation, wire: Wire, store: Store, definition: FlowDefinition) -> None:
    async with store.begin() as uow:
        await _assert_counted(wire, operation, uow, definition)


@each_operation
async def test_in_the_callers_transaction(
    operation: Operation, wire: Wire, store: Store, definition: FlowDefinition, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection, store.enlist(connection) as uow:
        await _assert_counted(wire, operation, uow, definition)


async def _three_steps(target: Target, flow: FlowInstance) -> None:
    await target.advance(flow)
    await target.component_states.put(flow.flow_instance_id, "charge", {"n": 1})
    await target.timers.schedule(flow.flow_instance_id, "ship", after=_SECOND)


async def test_a_unit_of_work_adds_two(wire: Wire, store: Store, definition: FlowDefinition) -> None:
    for _ in range(_WARM_UP + 1):
        before = wire.round_trips
        async with store.begin() as uow:
            await _three_steps(uow, factories.running_flow(definition))
    assert wire.round_trips - before == 3 + 2


async def test_a_unit_of_work_that_is_rolled_back_adds_two(
    wire: Wire, store: Store, definition: FlowDefinition
) -> None:
    for _ in range(_WARM_UP + 1):
        before = wire.round_trips
        async with store.begin() as uow:
            await _three_steps(uow, factories.running_flow(definition))
            await uow.rollback()
    assert wire.round_trips - before == 3 + 2


async def test_enlisting_adds_nothing_to_the_callers_begin_and_commit(
    wire: Wire, store: Store, definition: FlowDefinition, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        for _ in range(_WARM_UP + 1):
            before = wire.round_trips
            async with connection.begin(), store.enlist(connection) as uow:
                await _three_steps(uow, factories.running_flow(definition))
    assert wire.round_trips - before == 3 + 2


async def test_a_deployment_takes_four(wire: Wire, store: Store) -> None:
    for _ in range(_WARM_UP + 1):
        before = wire.round_trips
        await factories.deploy_flow_definition(store)
    assert wire.round_trips - before <= 4


async def test_a_lock_takes_one_in_a_unit_of_work_and_two_beyond_it(wire: Wire, store: Store) -> None:
    for _ in range(_WARM_UP + 1):
        counts = []
        async with store.begin() as uow:
            counts.append(wire.round_trips)
            await uow.lock("month")
            counts.append(wire.round_trips)
            lock = await store.locks.try_acquire("year")
            assert lock is not None
            counts.append(wire.round_trips)
            await lock.check()
            counts.append(wire.round_trips)
            await lock.release()
            counts.append(wire.round_trips)
    assert [after - before for before, after in pairwise(counts)] == [1, 2, 1, 1]


async def test_a_heartbeat_and_a_fence_take_one_and_a_change_of_membership_a_dozen(wire: Wire, store: Store) -> None:
    """With any number of workers; what is to be handed over costs two more, once."""
    beats, joins = set[int](), set[int]()
    for number in range(6):
        before = wire.round_trips
        await store.replica_sets.join("shipping", f"worker-{number}", stale_after=_LEASE)
        if number >= _WARM_UP:
            joins.add(wire.round_trips - before)
        for worker in range(number + 1):
            await store.replica_sets.beat("shipping", f"worker-{worker}", stale_after=_LEASE)
        before = wire.round_trips
        share = await store.replica_sets.beat("shipping", "worker-0", stale_after=_LEASE)
        beats.add(wire.round_trips - before)
        async with store.begin() as uow:
            before = wire.round_trips
            for partition, generation in share.generations.items():
                await uow.fence(partition, generation, "shipping")
            assert number < _WARM_UP or wire.round_trips - before == len(share.generations)
    assert beats == {1}
    assert max(joins) <= 13


async def test_the_wire_counts_each_question_once(wire: Wire) -> None:
    connection = await asyncpg.connect(wire.url)
    try:
        before = wire.round_trips
        for _ in range(5):
            await connection.execute("SELECT repeat('x', 200000)")  # an answer of many pieces
        assert wire.round_trips - before == 5
    finally:
        await connection.close()
