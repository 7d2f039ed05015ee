"""The order of the feed, where transaction ids alone would get it wrong."""

from __future__ import annotations

import pytest

from cascade_state import Store
from cascade_state.testing import factories
from cascade_state.testing.contracts.feed_reading import read_feed

pytestmark = pytest.mark.postgres


async def test_a_flow_advanced_by_an_older_transaction_keeps_its_order(postgres_store: Store) -> None:
    store = postgres_store
    definition = await factories.deploy_flow_definition(store)
    flow = await store.advance(factories.running_flow(definition))
    other = await store.advance(factories.running_flow(definition))
    async with store.begin() as uow:
        await uow.component_states.put(other.flow_instance_id, "charge", 1)  # this transaction has its id now
        flow = await store.advance(flow.complete_step("charge"))  # and this one a higher one
        await uow.advance(flow.complete_step("ship"))
    recorded = [event for event in await read_feed(store, 6) if event.flow_instance_id == flow.flow_instance_id]
    assert [event.sequence for event in recorded] == [1, 2, 3, 4]
    assert recorded == await store.flow_instances.history(flow.flow_instance_id)


async def test_nothing_is_handed_out_in_front_of_a_transaction_that_still_runs(postgres_store: Store) -> None:
    store = postgres_store
    definition = await factories.deploy_flow_definition(store)
    early, late = factories.running_flow(definition), factories.running_flow(definition)
    async with store.begin() as uow:
        await uow.advance(late)
        await store.advance(early)
        assert await store.events.read() == []
    assert [event.flow_instance_id for event in await read_feed(store, 4, limit=1)] == [
        late.flow_instance_id,
        late.flow_instance_id,
        early.flow_instance_id,
        early.flow_instance_id,
    ]
