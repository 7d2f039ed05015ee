"""A feed consumer over a store that fails: connections break, commits fail, and answers of commits get lost."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from typing import Any

import pytest

from cascade_state import FeedConsumer, FlowEvent, Store, UnitOfWork
from cascade_state.errors import FeedConsumerNotFound, SerializationError
from cascade_state.memory.store import MemoryStore
from cascade_state.testing import factories
from cascade_state.testing.contracts import rule
from cascade_state.testing.contracts.feed_consumers import Journal, running, until
from cascade_state.testing.fault_plan import FaultPlan
from cascade_state.testing.faults import Fault
from tests.coordination.feed_effects import QUICK

_FLOWS = 12
_EVENTS = 3


def consumer(store: Store, handler: Any, **options: Any) -> FeedConsumer:
    # Long enough that a worker whose heartbeats fail a few times is not taken for dead on a busy machine.
    defaults = {**QUICK, "handle_signals": False, "stale_after": timedelta(seconds=20)}
    return FeedConsumer(store, name="invoices", handler=handler, **{**defaults, **options})


async def is_caught_up(store: Store) -> bool:
    return await store.feeds.find("invoices") is not None and not (await store.feeds.lag("invoices")).events


async def check_effects(store: Store, journal: Journal, count: int) -> None:
    flows = {event.flow_instance_id for event in journal.seen}
    assert len(flows) == count
    for flow in flows:
        states = await store.component_states.list_for_instance(flow)
        assert sorted(state.step_id for state in states) == [f"event-{number}" for number in range(1, _EVENTS + 1)]
        assert {state.version for state in states} == {1}  # each was written once


async def add_flows(store: Store, count: int = _FLOWS) -> None:
    for _ in range(count):
        flow = await factories.add_flow(store)
        await store.advance(flow.complete_step("charge"))


@pytest.mark.parametrize("seed", range(3))
@rule("Feed")
async def test_effects_are_exactly_once_over_a_store_that_fails_at_random(store: Store, seed: int) -> None:
    await add_flows(store)
    plan = FaultPlan(store, seed=seed, rate=0.15)
    journal = Journal()
    async with running(consumer(plan, journal)):
        await until(lambda: is_caught_up(store))
    assert plan.fired
    await check_effects(store, journal, _FLOWS)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("feeds.register", "before_commit"),
        Fault("replica_sets.join", "drop_connection", times=2),
        Fault("feeds.find_news", "drop_connection", times=2),
        Fault("feeds.read_batch", "drop_connection"),
        Fault("feeds.complete", "drop_connection"),
        Fault("commit", "before_commit"),
        Fault("commit", "after_commit"),
    ],
    ids=lambda fault: f"{fault.call} {fault.kind}",
)
@rule("Feed")
async def test_a_fault_at_any_place_is_got_over(store: Store, fault: Fault) -> None:
    await add_flows(store, 1)
    plan = FaultPlan(store, fault)
    journal = Journal()
    async with running(consumer(plan, journal, strict=True)):  # none of these is the handler's
        await until(lambda: is_caught_up(store))
    assert len(plan.fired) == fault.times
    await check_effects(store, journal, 1)


async def test_a_failure_that_cannot_be_noted_is_tried_again_all_the_same(store: Store) -> None:
    await add_flows(store, 1)
    plan = FaultPlan(store, Fault("feeds.retry", "before_commit", times=2))
    journal = Journal()
    (first,) = {event.flow_instance_id for event in await _read(store)}
    journal.broken.add(first)

    async def is_noted() -> bool:
        return bool(await store.feeds.list_failing("invoices"))

    async with running(consumer(plan, journal)):
        await until(is_noted)
        journal.broken.clear()
        await until(lambda: is_caught_up(store))
    assert len(plan.fired) == 2
    assert len(journal.calls) >= 4
    await check_effects(store, journal, 1)


async def _read(store: Store) -> list[FlowEvent]:
    async def is_there() -> bool:
        return len(await store.events.read()) == _EVENTS

    await until(is_there)
    return await store.events.read()


async def test_a_consumer_that_is_removed_while_it_runs_ends_with_an_error(store: Store) -> None:
    async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
        pass

    plan = FaultPlan(
        store, Fault("feeds.find_news", "before_commit", error=lambda: FeedConsumerNotFound(key="invoices"))
    )
    with pytest.raises(FeedConsumerNotFound):
        await asyncio.wait_for(consumer(plan, handle).run(), 20)


async def test_an_event_that_cannot_be_read_stops_its_partition_once_those_before_it_are_handled(
    memory_store: MemoryStore,
) -> None:
    await add_flows(memory_store, 1)
    ((key, row),) = [
        (key, row) for key, row in memory_store._data.tables["flow_events"]._rows.items() if row.sequence == _EVENTS
    ]
    memory_store._data.tables["flow_events"].set(key, row._replace(payload="{broken"))
    journal = Journal()
    with pytest.raises(SerializationError):
        await asyncio.wait_for(consumer(memory_store, journal, strict=True).run(), 20)
    assert [event.sequence for event in journal.seen] == [1, 2]
    (failure,) = await memory_store.feeds.list_failing()
    assert failure.last_error.startswith("SerializationError")
    memory_store._data.tables["flow_events"].set(key, row)
    async with running(consumer(memory_store, journal)):
        await until(lambda: is_caught_up(memory_store))
    await check_effects(memory_store, journal, 1)


async def test_signals_stop_it_and_a_second_one_hurries_it(memory_store: MemoryStore) -> None:
    async def runs() -> bool:
        return (await memory_store.statistics()).workers_alive == 1

    await add_flows(memory_store, 1)
    journal = Journal()
    for number in (signal.SIGTERM, signal.SIGINT):
        run = asyncio.ensure_future(consumer(memory_store, journal, handle_signals=True).run())
        await until(runs)
        await until(lambda: is_caught_up(memory_store))
        os.kill(os.getpid(), number)
        await asyncio.wait_for(run, 20)
    await check_effects(memory_store, journal, 1)

    await add_flows(memory_store, 1)
    journal.gate = asyncio.Event()
    journal.entered.clear()
    patient = consumer(memory_store, journal, handle_signals=True, grace_period=timedelta(hours=1))
    run = asyncio.ensure_future(patient.run())
    await asyncio.wait_for(journal.entered.wait(), 20)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
    await asyncio.wait_for(run, 20)
    assert (await memory_store.feeds.lag("invoices")).events == _EVENTS
