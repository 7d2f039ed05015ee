"""Publishing: every event finds its waiter, whoever comes first (C-30 … C-33).

Deliveries once made are in `deliveries`; all orders of concurrent publishers and waiters are in `interleavings`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import InvalidArgument, LeaseLost
from cascade_state.model.correlations import Delivery
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_deliveries
from cascade_state.testing.contracts.rules import rule

__all__ = ["EarlyEventsContract", "PublishModesContract", "PublishingContract"]

_DAY = timedelta(hours=24)
_SECOND = timedelta(seconds=1)

_ENDS: dict[str, Callable[[FlowInstance], FlowInstance]] = {
    "resume": lambda flow: flow.resume(),
    "resume of the step": lambda flow: flow.resume("ship"),
    "fail": lambda flow: flow.fail({"reason": "broken"}),
    "cancel": lambda flow: flow.cancel("not wanted"),
    "complete": lambda flow: flow.resume().complete(),
    "a wait for another key": lambda flow: flow.suspend_for_event("ship", "another key"),
}


def _payloads(deliveries: list[Delivery]) -> list[object]:
    return [delivery.payload for delivery in deliveries]


class PublishingContract(StoreContract):
    """An event reaches the step that waits for its key, once."""

    @rule("C-30")
    async def test_an_event_is_delivered_to_the_step_that_waits(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        delivered_at = clock.advance(_SECOND)
        (delivery,) = await store.correlations.publish("parcel-77", {"status": "delivered"}, event_id="evt-1")
        assert delivery == Delivery(
            correlation_key="parcel-77",
            flow_instance_id=flow.flow_instance_id,
            step_id="ship",
            event_id="evt-1",
            payload={"status": "delivered"},
            delivered_at=delivered_at,
        )
        (claimed,) = await claim_deliveries(store)
        assert (claimed.flow_instance_id, claimed.step_id) == (flow.flow_instance_id, "ship")
        assert (claimed.event_id, claimed.payload) == ("evt-1", {"status": "delivered"})
        assert (claimed.delivered_at, claimed.timed_out) == (delivered_at, False)

    @rule("C-30")
    async def test_a_delivery_does_not_change_the_instance(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.correlations.publish("parcel-77", {})
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-30")
    async def test_an_event_of_another_key_reaches_nobody(self, store: Store) -> None:
        await factories.add_flow(store, waits_for="parcel-77")
        for key in ("parcel-7", "parcel-777", "PARCEL-77", "parcel-77 "):
            assert await store.correlations.publish(key, {}) == []
        assert await claim_deliveries(store) == []
        assert len(await store.correlations.list_waiting("parcel-77")) == 1

    @rule("C-30")
    async def test_an_event_without_an_id_is_given_one_of_its_own(self, store: Store) -> None:
        await factories.add_flow(store, waits_for="parcel-77")
        await factories.add_flow(store, waits_for="parcel-77")
        (first,) = await store.correlations.publish("parcel-77", 1)
        (second,) = await store.correlations.publish("parcel-77", 2)
        assert first.event_id
        assert second.event_id
        assert first.event_id != second.event_id

    @rule("C-30")
    async def test_a_waiting_step_is_listed_until_its_event_comes(self, store: Store, clock: FrozenClock) -> None:
        expires_at = clock.now() + _DAY
        first = await factories.add_flow(store, waits_for="parcel-77", expires_at=expires_at)
        clock.advance(_SECOND)
        second = await factories.add_flow(store, waits_for="parcel-77")
        waits = await store.correlations.list_waiting("parcel-77")
        assert [wait.flow_instance_id for wait in waits] == [first.flow_instance_id, second.flow_instance_id]
        assert [wait.created_at for wait in waits] == [first.created_at, second.created_at]
        assert [wait.expires_at for wait in waits] == [expires_at, None]
        assert {(wait.correlation_key, wait.step_id) for wait in waits} == {("parcel-77", "ship")}
        await store.correlations.publish("parcel-77", {})
        assert await store.correlations.list_waiting("parcel-77") == waits[1:]

    @rule("C-30", "C-26")
    async def test_a_long_list_of_waiting_steps_is_continued_by_its_cursor(
        self, store: Store, clock: FrozenClock
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        for number in range(5):
            await factories.add_flow(store, definition, waits_for="parcel-77")
            if number % 2:
                clock.advance(_SECOND)
        everything = await store.correlations.list_waiting("parcel-77")
        listed, cursor = [], None
        for _ in range(3):
            page = await store.correlations.list_waiting("parcel-77", limit=2, cursor=cursor)
            listed += page
            cursor = page.next_cursor
        assert cursor is None
        assert listed == everything
        assert len({wait.flow_instance_id for wait in listed}) == 5
        first_page = await store.correlations.list_waiting("parcel-77", limit=2)
        with pytest.raises(InvalidArgument):
            await store.correlations.list_waiting("parcel-78", cursor=first_page.next_cursor)

    @rule("C-30")
    async def test_a_publication_that_is_rolled_back_reaches_nobody(self, store: Store) -> None:
        await factories.add_flow(store, waits_for="parcel-77")
        async with store.begin() as uow:
            assert len(await uow.correlations.publish("parcel-77", {}, event_id="evt-1")) == 1
            await uow.rollback()
        assert await claim_deliveries(store) == []
        assert len(await store.correlations.list_waiting("parcel-77")) == 1
        assert len(await store.correlations.publish("parcel-77", {}, event_id="evt-1")) == 1

    # C-31

    @rule("C-31")
    async def test_a_second_event_does_not_match_a_wait_that_has_its_delivery(self, store: Store) -> None:
        await factories.add_flow(store, waits_for="parcel-77")
        assert len(await store.correlations.publish("parcel-77", "first")) == 1
        assert await store.correlations.publish("parcel-77", "second") == []
        assert await store.correlations.publish("parcel-77", "third", mode="fifo") == []
        assert await store.correlations.publish("parcel-77", "fourth", mode="broadcast") == []
        assert _payloads(await claim_deliveries(store)) == ["first"]
        assert await store.correlations.list_waiting("parcel-77") == []

    @rule("C-31")
    async def test_a_flow_is_found_by_its_key_until_it_is_resumed(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        other = await factories.add_flow(store, waits_for="parcel-78")
        assert await store.flow_instances.find_by_correlation("parcel-77") == [flow]
        await store.correlations.publish("parcel-77", {})
        assert await store.flow_instances.find_by_correlation("parcel-77") == [flow]
        (delivery,) = await claim_deliveries(store)
        await store.advance(flow.resume(), completes=[delivery])
        assert await store.flow_instances.find_by_correlation("parcel-77") == []
        assert await store.flow_instances.find_by_correlation("parcel-78") == [other]

    @rule("C-31")
    @pytest.mark.parametrize("end", sorted(_ENDS))
    async def test_a_wait_that_ended_is_gone(self, store: Store, end: str) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.advance(_ENDS[end](flow))
        assert await store.flow_instances.find_by_correlation("parcel-77") == []
        assert await store.correlations.list_waiting("parcel-77") == []
        assert await store.correlations.publish("parcel-77", {}) == []
        assert await claim_deliveries(store) == []

    @rule("C-31")
    @pytest.mark.parametrize("end", sorted(_ENDS))
    async def test_a_delivery_goes_with_the_wait_that_ended(self, store: Store, end: str) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.correlations.publish("parcel-77", {})
        await store.advance(_ENDS[end](flow))
        assert await store.flow_instances.find_by_correlation("parcel-77") == []
        assert await claim_deliveries(store) == []

    @rule("C-31", "C-50")
    @pytest.mark.parametrize("end", sorted(_ENDS))
    async def test_who_holds_a_delivery_loses_it_with_the_wait(self, store: Store, end: str) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.correlations.publish("parcel-77", {})
        (delivery,) = await claim_deliveries(store)
        await store.advance(_ENDS[end](flow))
        with pytest.raises(LeaseLost):
            await store.correlations.complete([delivery])

    @rule("C-31")
    async def test_resuming_one_step_leaves_the_other_waiting(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        flow = factories.running_flow(definition).suspend_for_event("charge", "payment-1")
        flow = await store.advance(flow.suspend_for_event("ship", "parcel-77"))
        await store.correlations.publish("payment-1", "paid")
        (paid,) = await claim_deliveries(store)
        flow = await store.advance(flow.resume("charge").complete_step("charge"), completes=[paid])
        assert await store.flow_instances.find_by_correlation("payment-1") == []
        assert await store.flow_instances.find_by_correlation("parcel-77") == [flow]
        await store.correlations.publish("parcel-77", "there")
        assert _payloads(await claim_deliveries(store)) == ["there"]

    @rule("C-31")
    async def test_cancelling_a_wait_says_whether_there_was_one(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        assert not await store.correlations.cancel(flow.flow_instance_id, "charge")
        assert await store.correlations.cancel(flow.flow_instance_id, "ship")
        assert not await store.correlations.cancel(flow.flow_instance_id, "ship")
        assert await store.correlations.publish("parcel-77", {}) == []
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-31")
    async def test_cancelling_takes_a_delivery_from_its_holder(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.correlations.publish("parcel-77", {})
        (delivery,) = await claim_deliveries(store)
        assert await store.correlations.cancel(flow.flow_instance_id, "ship")
        with pytest.raises(LeaseLost):
            await store.correlations.complete([delivery])
        assert await store.flow_instances.find_by_correlation("parcel-77") == []

    # C-33

    @rule("C-33")
    @pytest.mark.parametrize("mode", ["first", "fifo", "broadcast"])
    async def test_an_event_id_is_delivered_once_however_often_it_is_published(self, store: Store, mode: str) -> None:
        definition = await factories.deploy_flow_definition(store)
        flow = await factories.add_flow(store, definition, waits_for="parcel-77")
        assert len(await store.correlations.publish("parcel-77", 1, event_id="evt-1", mode=mode)) == 1  # type: ignore[arg-type]
        await factories.add_flow(store, definition, waits_for="parcel-77")
        assert await store.correlations.publish("parcel-77", 2, event_id="evt-1", mode=mode) == []  # type: ignore[arg-type]
        (delivery,) = await claim_deliveries(store)
        assert delivery.payload == 1
        await store.advance(flow.resume(), completes=[delivery])
        assert await store.correlations.publish("parcel-77", 3, event_id="evt-1", mode=mode) == []  # type: ignore[arg-type]
        assert await claim_deliveries(store) == []

    @rule("C-33")
    async def test_an_event_that_is_kept_is_kept_once(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        for payload in (1, 2, 3):
            assert await store.correlations.publish("parcel-77", payload, event_id="evt-1", mode="fifo") == []
        await factories.add_flow(store, definition, waits_for="parcel-77")
        await factories.add_flow(store, definition, waits_for="parcel-77")
        assert _payloads(await claim_deliveries(store)) == [1]
        assert len(await store.correlations.list_waiting("parcel-77")) == 1

    @rule("C-33")
    async def test_within_one_unit_of_work_too(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        await factories.add_flow(store, definition, waits_for="parcel-77")
        await factories.add_flow(store, definition, waits_for="parcel-77")
        async with store.begin() as uow:
            assert len(await uow.correlations.publish("parcel-77", 1, event_id="evt-1")) == 1
            assert await uow.correlations.publish("parcel-77", 2, event_id="evt-1") == []
        assert _payloads(await claim_deliveries(store)) == [1]

    @rule("C-33")
    async def test_an_event_id_belongs_to_its_key(self, store: Store) -> None:
        await factories.add_flow(store, waits_for="parcel-77")
        await factories.add_flow(store, waits_for="parcel-78")
        assert len(await store.correlations.publish("parcel-77", 1, event_id="evt-1")) == 1
        assert len(await store.correlations.publish("parcel-78", 2, event_id="evt-1")) == 1

    @rule("C-33")
    async def test_an_event_id_is_remembered_until_its_event_expires(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        expires_at = clock.now() + _SECOND
        for _ in range(3):
            await factories.add_flow(store, definition, waits_for="parcel-77")
        publish = store.correlations.publish
        assert len(await publish("parcel-77", 1, event_id="evt-1", expires_at=expires_at)) == 1
        clock.set(expires_at - MOMENT)
        assert await publish("parcel-77", 2, event_id="evt-1") == []
        clock.set(expires_at)
        assert len(await publish("parcel-77", 3, event_id="evt-1")) == 1
        clock.advance(_DAY - MOMENT)
        assert await publish("parcel-77", 4, event_id="evt-1") == []
        clock.advance(MOMENT)
        assert len(await publish("parcel-77", 5, event_id="evt-1")) == 1

    @rule("C-33")
    async def test_a_publication_that_was_rolled_back_is_not_remembered(self, store: Store) -> None:
        async with store.begin() as uow:
            await uow.correlations.publish("parcel-77", 1, event_id="evt-1")
            await uow.rollback()
        await factories.add_flow(store, waits_for="parcel-77")
        assert len(await store.correlations.publish("parcel-77", 2, event_id="evt-1")) == 1

    @rule("C-33")
    async def test_an_event_that_reached_nobody_is_remembered_too(self, store: Store) -> None:
        await store.correlations.publish("parcel-77", "kept", event_id="evt-1")
        await store.correlations.publish("parcel-77", "dropped", event_id="evt-2")
        await store.correlations.publish("parcel-78", "nobody there", event_id="evt-3", mode="broadcast")
        definition = await factories.deploy_flow_definition(store)
        for key in ("parcel-77", "parcel-77", "parcel-78"):
            await factories.add_flow(store, definition, waits_for=key)
        assert await store.correlations.publish("parcel-77", "again", event_id="evt-2") == []
        assert await store.correlations.publish("parcel-78", "again", event_id="evt-3") == []
        assert _payloads(await claim_deliveries(store)) == ["kept"]


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
