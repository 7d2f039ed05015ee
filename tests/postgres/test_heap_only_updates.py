"""What is updated all the time touches no index: the indexes and storage parameters are chosen for that."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text

from cascade_state import FlowDefinition, FlowInstance, StepDefinition, Store, UnitOfWork

pytestmark = pytest.mark.postgres

STEPS = tuple(StepDefinition(step_id=f"step-{number}", component_type="http") for number in range(10))
ORDER = FlowDefinition(flow_id="order", name="Order", steps=STEPS)


async def updates(uow: UnitOfWork, table: str) -> tuple[int, int]:
    """Returns how many rows this transaction has updated in a table, and how many of them without its indexes."""
    query = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = :table")
    row = (await uow.connection.execute(query, {"table": table})).one()
    return row.n_tup_upd, row.n_tup_hot_upd


async def test_storing_a_step_writes_no_index_entry_for_the_flow(postgres_store: Store) -> None:
    definition = await postgres_store.flow_definitions.deploy(ORDER)
    async with postgres_store.begin() as uow:
        flow = await uow.advance(FlowInstance.create(definition, business_key="order-1").start())
        for step in STEPS:
            flow = await uow.advance(flow.complete_step(step.step_id, {}), put_states={"cart": {"step": step.step_id}})
        assert await updates(uow, "flow_instances") == (10, 10)
        assert await updates(uow, "component_states") == (9, 9)


async def test_a_lease_writes_no_index_entry(postgres_store: Store) -> None:
    definition = await postgres_store.flow_definitions.deploy(ORDER)
    flow = await postgres_store.advance(
        FlowInstance.create(definition).start().suspend_for_timer("step-1", after=timedelta(0))
    )
    await postgres_store.advance(flow.resume().suspend_for_event("step-2", "parcel-77"))
    await postgres_store.correlations.publish("parcel-77")
    await postgres_store.timers.schedule(flow.flow_instance_id, "step-3", after=timedelta(0))
    minute = timedelta(minutes=1)
    async with postgres_store.begin() as uow:
        (claimed,) = await uow.flow_instances.claim("worker-1", limit=1, lease_duration=minute)
        await uow.flow_instances.renew([claimed], minute)
        assert await updates(uow, "flow_instances") == (2, 2)
        deliveries = await uow.correlations.claim_delivered("worker-1", limit=1, lease_duration=minute)
        await uow.correlations.renew(deliveries, minute)
        assert await updates(uow, "correlations") == (2, 2)
        timers = await uow.timers.claim_due("worker-1", limit=1, lease_duration=minute)
        await uow.timers.renew(timers, minute)
        await uow.timers.release(timers)
        await uow.timers.claim_due("worker-2", limit=1, lease_duration=minute)
        assert await updates(uow, "timers") == (4, 4)


async def test_timers_that_are_scheduled_and_due_together_are_claimed_on_their_pages(postgres_store: Store) -> None:
    definition = await postgres_store.flow_definitions.deploy(ORDER)
    new = (FlowInstance.create(definition).start() for _ in range(200))
    await postgres_store.flow_instances.add_many([flow.suspend_for_timer("step-1", after=timedelta(0)) for flow in new])
    async with postgres_store.begin() as uow:
        claimed = await uow.timers.claim_due("worker-1", limit=200, lease_duration=timedelta(minutes=1))
        assert len(claimed) == 200
        assert await updates(uow, "timers") == (200, 200)
