"""Deliveries that wear out while others use their keys, and flows that are brought in where events wait for them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from cascade_state import AlreadyExists, Store, open_store
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock

pytestmark = pytest.mark.postgres

_LEASE = timedelta(seconds=30)


async def test_a_broadcast_that_wears_out_at_several_flows_is_one_dead_letter(database_url: str) -> None:
    clock = FrozenClock()
    async with open_store(database_url, clock=clock, max_attempts=1) as store:
        for _ in range(3):
            await factories.add_flow(store, waits_for="parcel-1")
        assert len(await store.correlations.publish("parcel-1", {}, event_id="e", mode="broadcast")) == 3
        assert len(await store.correlations.claim_delivered("w", lease_duration=_LEASE)) == 3
        clock.advance(_LEASE)
        assert await store.correlations.claim_delivered("w", lease_duration=_LEASE) == []
        (letter,) = await store.correlations.list_dead_letters()
        assert letter.event_id == "e"
        assert len(await store.correlations.list_waiting("parcel-1")) == 3


async def test_a_claim_does_not_wait_for_the_key_of_a_worn_out_delivery(database_url: str) -> None:
    clock = FrozenClock()
    async with (
        open_store(database_url, clock=clock, max_attempts=1) as store,
        open_store(database_url, clock=clock) as other,
    ):
        await _worn(store, clock)
        async with other.begin() as uow:
            await uow.correlations.publish("parcel-1", {}, event_id="later", mode="fifo")  # holds the key's lock
            async with asyncio.timeout(10):
                assert await store.correlations.claim_delivered("w", lease_duration=_LEASE) == []
        clock.advance(timedelta(seconds=2))
        (delivery,) = await store.correlations.claim_delivered("w", lease_duration=_LEASE)
        assert delivery.event_id == "later"


async def test_an_imported_wait_gets_the_event_that_came_before_it(database_url: str) -> None:
    async with open_store("memory://") as source, open_store(database_url) as store:
        flow = await factories.add_flow(source, waits_for="parcel-1")
        document = await source.flow_instances.export(flow.flow_instance_id)
        await store.correlations.publish("parcel-1", {}, event_id="early")
        await store.flow_instances.import_(document)
        (delivery,) = await store.correlations.claim_delivered("w", lease_duration=_LEASE)
        assert (delivery.event_id, delivery.flow_instance_id) == ("early", flow.flow_instance_id)


async def _worn(store: Store, clock: FrozenClock) -> None:
    await factories.add_flow(store, waits_for="parcel-1")
    await store.correlations.publish("parcel-1", {}, event_id="first")
    assert len(await store.correlations.claim_delivered("w", lease_duration=_LEASE)) == 1
    clock.advance(_LEASE)


async def test_an_imported_delivery_can_be_given_up(database_url: str) -> None:
    async with open_store("memory://") as source, open_store(database_url) as store:
        flow = await factories.add_flow(source, waits_for="parcel-1")
        await source.correlations.publish("parcel-1", {"a": 1}, event_id="e")
        await store.flow_instances.import_(await source.flow_instances.export(flow.flow_instance_id))
        (delivery,) = await store.correlations.claim_delivered("w", lease_duration=_LEASE)
        await store.correlations.give_up(delivery, reason="no")
        (letter,) = await store.correlations.list_dead_letters()
        assert (letter.event_id, letter.payload, letter.reason) == ("e", {"a": 1}, "no")


async def test_an_import_that_is_refused_leaves_its_unit_of_work_as_it_was(database_url: str) -> None:
    async with open_store("memory://") as source, open_store(database_url) as store:
        flow = await factories.add_flow(source)
        child = await source.advance(flow.child(await source.flow_definitions.get(flow.flow_id)).start())
        document = await source.flow_instances.export(flow.flow_instance_id)
        await store.flow_instances.import_(await source.flow_instances.export(child.flow_instance_id))
        async with store.begin() as uow:
            with pytest.raises(AlreadyExists):
                await uow.flow_instances.import_(document)  # the parent is new, the child is not
        assert await store.flow_instances.find(flow.flow_instance_id) is None
