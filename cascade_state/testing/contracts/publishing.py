"""Publishing: an event reaches the step that waits for its key, once (C-30, C-31, C-33).

Events that come first are in `early_events`, who gets an event in `publish_modes`, deliveries once made in
`deliveries`, and all orders of concurrent publishers and waiters in `interleavings`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import InvalidArgument, LeaseLost
from cascade_state.model.correlations import Correlation, Delivery
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_deliveries
from cascade_state.testing.contracts.rules import rule

__all__ = ["PublishingContract"]

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
        listed: list[Correlation] = []
        cursor = None
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
