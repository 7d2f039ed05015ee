"""Steps of several flows in one statement: each is guarded as if it travelled alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from cascade_state import AlreadyExists, FlowInstance, LeaseLost, Store, open_store
from cascade_state.model.advance import Limits, plan_advance
from cascade_state.postgres.advance_values import ADVANCE
from cascade_state.postgres.coalescing import Line
from cascade_state.testing import factories
from tests.contract.postgres_observer import PostgresObserver
from tests.wire import Wire

pytestmark = pytest.mark.postgres

_LEASE = timedelta(seconds=30)


async def _in_time(work: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(work, 20)


async def _batch(store: Store, *steps: Awaitable[Any]) -> list[Any]:
    """Runs steps as one batch: another step of the same line is in flight when they are handed in."""
    leader = store.advance((await factories.add_flow(store)).complete_step("leader"))
    outcomes = await _in_time(asyncio.gather(leader, *steps, return_exceptions=True))
    return list(outcomes[1:])


async def test_one_timer_is_acknowledged_by_one_of_two_flows_in_a_batch(database_url: str) -> None:
    async with open_store(database_url) as store:
        flows = [await factories.add_flow(store) for _ in range(2)]
        await store.timers.schedule(flows[0].flow_instance_id, "a", after=timedelta(0))
        (timer,) = await store.timers.claim_due("w", lease_duration=_LEASE)
        outcomes = await _batch(store, *(store.advance(flow.complete_step("a"), completes=[timer]) for flow in flows))
        assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [LeaseLost]


async def test_one_delivery_is_acknowledged_by_one_of_two_flows_in_a_batch(database_url: str) -> None:
    async with open_store(database_url) as store:
        await factories.add_flow(store, waits_for="parcel-1")
        await store.correlations.publish("parcel-1", {})
        (delivery,) = await store.correlations.claim_delivered("w", lease_duration=_LEASE)
        flows = [await factories.add_flow(store) for _ in range(2)]
        outcomes = await _batch(
            store, *(store.advance(flow.complete_step("a"), completes=[delivery]) for flow in flows)
        )
        assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [LeaseLost]


async def test_a_step_that_shares_its_batch_with_an_end_is_not_disturbed_by_a_timer(database_url: str) -> None:
    """Only a flow that ends must notice timers that are scheduled at the same time."""
    observer = PostgresObserver(database_url)
    async with open_store(database_url) as store, open_store(database_url) as other:
        ending, going = [await factories.add_flow(store) for _ in range(2)]
        plans = [plan_advance(flow, limits=Limits()) for flow in (ending.complete(), going.complete_step("a"))]

        async def batch() -> Sequence[Any]:
            async with store.begin() as uow:
                executor = uow._executor  # type: ignore[attr-defined]
                return await executor.fetch(*ADVANCE.prepare(plans, executor))  # type: ignore[no-any-return]

        async with other.begin() as uow:
            await uow.timers.schedule(going.flow_instance_id, "a", after=timedelta(hours=1))
            running = asyncio.create_task(batch())
            await _in_time(observer.settled([running]))
            assert not running.done()
        assert sorted(record["item"] for record in await _in_time(running)) == [0, 1]


async def test_steps_that_wait_share_their_statements_and_each_gets_its_event_once(database_url: str) -> None:
    async with Wire(database_url) as wire, open_store(wire.url, hints=False) as store:
        flows = [await factories.add_flow(store) for _ in range(24)]
        keys = [f"parcel-{number}" for number in range(24)]
        for key in keys[::2]:
            await store.correlations.publish(key, {"key": key})
        before = wire.round_trips
        waits = [store.advance(flow.suspend_for_event("a", key)) for flow, key in zip(flows, keys, strict=True)]
        await _in_time(asyncio.gather(*waits))
        assert wire.round_trips - before <= 24, "alone they take two each"
        await _in_time(asyncio.gather(*(store.correlations.publish(key, {"key": key}) for key in keys[1::2])))
        deliveries = await store.correlations.claim_delivered("w", limit=100, lease_duration=_LEASE)
        assert sorted(delivery.correlation_key for delivery in deliveries) == sorted(keys)
        assert {delivery.correlation_key: delivery.flow_instance_id for delivery in deliveries} == {
            key: flow.flow_instance_id for flow, key in zip(flows, keys, strict=True)
        }
        assert all(delivery.payload == {"key": delivery.correlation_key} for delivery in deliveries)


async def test_steps_that_wait_for_one_key_are_served_in_the_order_of_their_calls(database_url: str) -> None:
    async with open_store(database_url) as store:
        flows = [await factories.add_flow(store) for _ in range(6)]
        await _batch(store, *(store.advance(flow.suspend_for_event("a", "parcel-1")) for flow in flows))
        for flow in flows:
            (delivery,) = await store.correlations.publish("parcel-1", {}, mode="first")
            assert delivery.flow_instance_id == flow.flow_instance_id


async def test_an_add_that_lost_its_id_leaves_no_business_key_behind(database_url: str) -> None:
    observer = PostgresObserver(database_url)
    async with open_store(database_url) as store, open_store(database_url) as other:
        definition = await store.flow_definitions.deploy(factories.flow_definition())
        identity = uuid4()
        first = FlowInstance.create(definition, flow_instance_id=identity, business_key="order-1")
        second = FlowInstance.create(definition, flow_instance_id=identity, business_key="order-2")
        async with other.begin() as uow:
            await uow.flow_instances.add(first)
            adding = asyncio.create_task(store.flow_instances.add(second))
            await _in_time(observer.settled([adding]))
            assert not adding.done()
        with pytest.raises(AlreadyExists):
            await _in_time(adding)
        await store.flow_instances.add(FlowInstance.create(definition, business_key="order-2"))


async def test_an_error_that_nobody_foresaw_does_not_stop_the_line() -> None:
    gate = asyncio.Event()

    async def run(items: Sequence[str]) -> Sequence[str]:
        await gate.wait()
        if "bad" in items:
            raise ValueError("cannot be prepared")
        return items

    line: Line[str, str] = Line(run, lambda item: (item[0],))
    tasks = [asyncio.create_task(line.submit(item)) for item in ("leader", "bad", "boat", "good")]
    await asyncio.sleep(0)
    gate.set()
    outcomes = await _in_time(asyncio.gather(*tasks, return_exceptions=True))
    assert [isinstance(outcome, ValueError) for outcome in outcomes] == [False, True, False, False]
    assert await _in_time(line.submit("next")) == "next"
