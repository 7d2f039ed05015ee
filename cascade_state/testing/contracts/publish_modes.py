"""Who gets an event, and what is kept: first, fifo and broadcast (C-32)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import InvalidArgument
from cascade_state.model.correlations import Delivery
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.claiming import claim_deliveries
from cascade_state.testing.contracts.rules import rule

__all__ = ["PublishModesContract"]

_DAY = timedelta(hours=24)
_SECOND = timedelta(seconds=1)


def _payloads(deliveries: list[Delivery]) -> list[object]:
    return [delivery.payload for delivery in deliveries]


class PublishModesContract(StoreContract):
    """Who gets an event, and what is kept (C-32)."""

    async def _waiting(
        self, store: Store, clock: FrozenClock, count: int, key: str = "parcel-77"
    ) -> list[FlowInstance]:
        """Returns flows that wait for the key, the oldest first."""
        definition = await factories.deploy_flow_definition(store)
        flows = []
        for _ in range(count):
            flows.append(await factories.add_flow(store, definition, waits_for=key))
            clock.advance(_SECOND)
        return flows

    @rule("C-32")
    @pytest.mark.parametrize("mode", ["first", "fifo"])
    async def test_one_waiter_gets_it_the_oldest(self, store: Store, clock: FrozenClock, mode: str) -> None:
        flows = await self._waiting(store, clock, 3)
        for number, flow in enumerate(flows):
            (delivery,) = await store.correlations.publish("parcel-77", number, mode=mode)  # type: ignore[arg-type]
            assert delivery.flow_instance_id == flow.flow_instance_id
        assert _payloads(await claim_deliveries(store)) == [0, 1, 2]

    @rule("C-32")
    async def test_waiters_of_one_instant_are_ordered_by_flow_then_step(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        flows = [factories.running_flow(definition) for _ in range(2)]
        flows = [flow.suspend_for_event("ship", "key").suspend_for_event("charge", "key") for flow in flows]
        for flow in reversed(flows):
            await store.advance(flow)
        expected = sorted((flow.flow_instance_id, step_id) for flow in flows for step_id in ("charge", "ship"))
        reached = []
        for _ in expected:
            (delivery,) = await store.correlations.publish("key", {})
            reached.append((delivery.flow_instance_id, delivery.step_id))
        assert reached == expected

    @rule("C-32")
    async def test_first_keeps_one_event_a_key(self, store: Store, clock: FrozenClock) -> None:
        for number in range(3):
            assert await store.correlations.publish("parcel-77", number, mode="first") == []
            clock.advance(_SECOND)
        first, second = await self._waiting(store, clock, 2)
        (delivery,) = await claim_deliveries(store)
        assert (delivery.flow_instance_id, delivery.payload) == (first.flow_instance_id, 0)
        (wait,) = await store.correlations.list_waiting("parcel-77")
        assert wait.flow_instance_id == second.flow_instance_id
        assert await store.correlations.list_dead_letters() == []

    @rule("C-32")
    async def test_first_keeps_another_event_once_the_kept_one_is_delivered(
        self, store: Store, clock: FrozenClock
    ) -> None:
        await store.correlations.publish("parcel-77", "first")
        await self._waiting(store, clock, 1)
        await store.correlations.publish("parcel-77", "second")
        await self._waiting(store, clock, 1)
        assert _payloads(await claim_deliveries(store)) == ["first", "second"]

    @rule("C-32")
    async def test_first_keeps_another_event_once_the_kept_one_has_expired(
        self, store: Store, clock: FrozenClock
    ) -> None:
        await store.correlations.publish("parcel-77", "first", expires_at=clock.now() + _SECOND)
        clock.advance(_SECOND)
        await store.correlations.publish("parcel-77", "second")
        await self._waiting(store, clock, 1)
        assert _payloads(await claim_deliveries(store)) == ["second"]

    @rule("C-32")
    async def test_fifo_queues_events_in_publish_order(self, store: Store, clock: FrozenClock) -> None:
        for number in range(4):
            assert await store.correlations.publish("parcel-77", number, mode="fifo") == []
            clock.advance(_SECOND)
        flows = await self._waiting(store, clock, 4)
        claimed = await claim_deliveries(store)
        assert _payloads(claimed) == [0, 1, 2, 3]
        assert [delivery.flow_instance_id for delivery in claimed] == [flow.flow_instance_id for flow in flows]

    @rule("C-32")
    async def test_fifo_keeps_the_order_within_one_unit_of_work_and_one_instant(
        self, store: Store, clock: FrozenClock
    ) -> None:
        async with store.begin() as uow:
            for number in range(12):
                await uow.correlations.publish("parcel-77", number, mode="fifo", event_id=f"evt-{99 - number}")
        await self._waiting(store, clock, 12)
        assert _payloads(await claim_deliveries(store)) == list(range(12))

    @rule("C-32")
    async def test_fifo_queues_what_comes_while_the_waiter_is_busy(self, store: Store, clock: FrozenClock) -> None:
        (flow,) = await self._waiting(store, clock, 1)
        for number in range(5):
            await store.correlations.publish("parcel-77", number, mode="fifo")
        received = []
        for _ in range(5):
            (delivery,) = await claim_deliveries(store)
            received.append(delivery.payload)
            flow = await store.advance(flow.resume().suspend_for_event("ship", "parcel-77"), completes=[delivery])
        assert received == [0, 1, 2, 3, 4]
        assert await claim_deliveries(store) == []
        assert len(await store.correlations.list_waiting("parcel-77")) == 1

    @rule("C-32")
    async def test_broadcast_goes_to_every_current_waiter(self, store: Store, clock: FrozenClock) -> None:
        flows = await self._waiting(store, clock, 3)
        made = await store.correlations.publish("parcel-77", {"to": "all"}, event_id="evt-1", mode="broadcast")
        expected = {flow.flow_instance_id for flow in flows}
        assert {delivery.flow_instance_id for delivery in made} == expected
        claimed = await claim_deliveries(store)
        assert {delivery.flow_instance_id for delivery in claimed} == expected
        assert [(delivery.event_id, delivery.payload) for delivery in claimed] == [("evt-1", {"to": "all"})] * 3
        assert await store.correlations.list_waiting("parcel-77") == []

    @rule("C-32")
    async def test_broadcast_keeps_nothing(self, store: Store, clock: FrozenClock) -> None:
        assert await store.correlations.publish("parcel-77", "nobody there", mode="broadcast") == []
        await self._waiting(store, clock, 1)
        assert await claim_deliveries(store) == []
        assert len(await store.correlations.publish("parcel-77", "somebody there", mode="broadcast")) == 1
        await self._waiting(store, clock, 1)
        assert _payloads(await claim_deliveries(store)) == ["somebody there"]
        clock.advance(2 * _DAY)
        await claim_deliveries(store)
        assert await store.correlations.list_dead_letters() == []

    @rule("C-32")
    async def test_broadcast_does_not_touch_who_has_a_delivery_already(self, store: Store, clock: FrozenClock) -> None:
        first, second = await self._waiting(store, clock, 2)
        await store.correlations.publish("parcel-77", "mine")
        (made,) = await store.correlations.publish("parcel-77", "for all", mode="broadcast")
        assert made.flow_instance_id == second.flow_instance_id
        received = {delivery.flow_instance_id: delivery.payload for delivery in await claim_deliveries(store)}
        assert received == {first.flow_instance_id: "mine", second.flow_instance_id: "for all"}

    @rule("C-32")
    async def test_an_unknown_mode_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidArgument) as caught:
            await store.correlations.publish("parcel-77", {}, mode="last")  # type: ignore[arg-type]
        assert caught.value.argument == "mode"
