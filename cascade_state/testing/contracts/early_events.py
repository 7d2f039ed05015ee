"""Events that come before their waiter: kept for it, for a while (C-30)."""

from __future__ import annotations

from datetime import timedelta

from cascade_state.abc import Store
from cascade_state.model.correlations import Delivery
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_deliveries
from cascade_state.testing.contracts.rules import rule

__all__ = ["EarlyEventsContract"]

_DAY = timedelta(hours=24)
_SECOND = timedelta(seconds=1)


def _payloads(deliveries: list[Delivery]) -> list[object]:
    return [delivery.payload for delivery in deliveries]


class EarlyEventsContract(StoreContract):
    """An event that comes before its waiter is kept for it, for a while (C-30)."""

    @rule("C-30")
    async def test_an_event_that_came_first_is_delivered_when_the_wait_is_committed(
        self, store: Store, clock: FrozenClock
    ) -> None:
        assert await store.correlations.publish("parcel-77", {"status": "delivered"}, event_id="evt-1") == []
        assert await claim_deliveries(store) == []
        waits_from = clock.advance(_SECOND)
        flow = await factories.add_flow(store, waits_for="parcel-77")
        assert await store.correlations.list_waiting("parcel-77") == []
        assert await store.flow_instances.find_by_correlation("parcel-77") == [flow]
        (delivery,) = await claim_deliveries(store)
        assert (delivery.flow_instance_id, delivery.step_id) == (flow.flow_instance_id, "ship")
        assert (delivery.event_id, delivery.payload) == ("evt-1", {"status": "delivered"})
        assert delivery.delivered_at == waits_from

    @rule("C-30")
    async def test_an_event_that_came_first_finds_a_step_that_was_running_before(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        await store.correlations.publish("parcel-77", "early")
        flow = await store.advance(flow.complete_step("charge").suspend_for_event("ship", "parcel-77"))
        assert flow.waits == {"ship": "parcel-77"}
        assert _payloads(await claim_deliveries(store)) == ["early"]

    @rule("C-30")
    async def test_publishing_and_waiting_in_one_unit_of_work(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        async with store.begin() as uow:
            await uow.correlations.publish("parcel-77", "event first")
            await factories.add_flow(uow, definition, waits_for="parcel-77")
            await factories.add_flow(uow, definition, waits_for="parcel-78")
            assert len(await uow.correlations.publish("parcel-78", "wait first")) == 1
            assert await claim_deliveries(store) == []
        assert sorted(map(str, _payloads(await claim_deliveries(store)))) == ["event first", "wait first"]

    @rule("C-30")
    async def test_an_event_outlives_a_wait_that_is_rolled_back(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        await store.correlations.publish("parcel-77", "early")
        async with store.begin() as uow:
            await factories.add_flow(uow, definition, waits_for="parcel-77")
            await uow.rollback()
        assert await claim_deliveries(store) == []
        kept = await factories.add_flow(store, definition, waits_for="parcel-77")
        (delivery,) = await claim_deliveries(store)
        assert (delivery.flow_instance_id, delivery.payload) == (kept.flow_instance_id, "early")

    @rule("C-30")
    async def test_an_event_is_kept_for_a_day(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        await store.correlations.publish("parcel-77", "in time")
        await store.correlations.publish("parcel-78", "too late")
        clock.advance(_DAY - MOMENT)
        await factories.add_flow(store, definition, waits_for="parcel-77")
        clock.advance(MOMENT)
        await factories.add_flow(store, definition, waits_for="parcel-78")
        assert _payloads(await claim_deliveries(store)) == ["in time"]
        assert len(await store.correlations.list_waiting("parcel-78")) == 1

    @rule("C-30")
    async def test_an_event_is_kept_until_it_expires(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        expires_at = clock.now() + 30 * _DAY
        await store.correlations.publish("parcel-77", "in time", expires_at=expires_at)
        await store.correlations.publish("parcel-78", "too late", expires_at=expires_at)
        clock.set(expires_at - MOMENT)
        await factories.add_flow(store, definition, waits_for="parcel-77")
        clock.set(expires_at)
        await factories.add_flow(store, definition, waits_for="parcel-78")
        assert _payloads(await claim_deliveries(store)) == ["in time"]

    @rule("C-30", "C-35")
    async def test_an_event_that_has_expired_when_it_is_published_reaches_nobody(
        self, store: Store, clock: FrozenClock
    ) -> None:
        await factories.add_flow(store, waits_for="parcel-77")
        assert await store.correlations.publish("parcel-77", "stale", expires_at=clock.now()) == []
        assert await claim_deliveries(store) == []
        assert len(await store.correlations.list_waiting("parcel-77")) == 1

    @rule("C-30")
    async def test_waiting_again_for_the_same_key_keeps_the_delivery(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.correlations.publish("parcel-77", "early")
        await store.advance(flow.suspend_for_event("ship", "parcel-77"))
        assert _payloads(await claim_deliveries(store)) == ["early"]
