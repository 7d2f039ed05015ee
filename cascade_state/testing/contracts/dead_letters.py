"""Dead letters: what reached nobody is listed and can be published again (C-35)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import InvalidArgument
from cascade_state.model.correlations import DeadLetter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_deliveries
from cascade_state.testing.contracts.rules import rule

__all__ = ["DeadLettersContract"]

_DAY = timedelta(hours=24)
_SECOND = timedelta(seconds=1)


async def _delivered(store: Store, key: str = "parcel-77", payload: object = None) -> FlowInstance:
    """Returns a flow that has a delivery under the key."""
    flow = await factories.add_flow(store, waits_for=key)
    assert len(await store.correlations.publish(key, payload)) == 1
    return flow


class DeadLettersContract(StoreContract):
    """What reached nobody is listed and can be published again (C-35)."""

    async def _expired(self, store: Store, clock: FrozenClock, *keys: str) -> list[DeadLetter]:
        """Returns the dead letters of events that nobody came for, in their order."""
        for key in keys:
            await store.correlations.publish(key, {"of": key}, event_id=f"event of {key}")
            clock.advance(_SECOND)
        clock.advance(_DAY)
        assert await claim_deliveries(store) == []
        return await store.correlations.list_dead_letters()

    @rule("C-35")
    @pytest.mark.parametrize("mode", ["first", "fifo"])
    async def test_an_event_nobody_came_for_is_a_dead_letter_once_it_expires(
        self, store: Store, clock: FrozenClock, mode: str
    ) -> None:
        published_at = clock.now()
        await store.correlations.publish("parcel-77", {"status": "delivered"}, event_id="evt-1", mode=mode)  # type: ignore[arg-type]
        clock.advance(_DAY - MOMENT)
        await claim_deliveries(store)
        assert await store.correlations.list_dead_letters() == []
        clock.advance(MOMENT)
        await claim_deliveries(store)
        assert await store.correlations.list_dead_letters() == [
            DeadLetter(
                correlation_key="parcel-77",
                event_id="evt-1",
                payload={"status": "delivered"},
                published_at=published_at,
                reason="expired",
            )
        ]

    @rule("C-35")
    async def test_an_event_that_was_delivered_is_never_a_dead_letter(self, store: Store, clock: FrozenClock) -> None:
        await _delivered(store)
        (delivery,) = await claim_deliveries(store)
        await store.correlations.complete([delivery])
        clock.advance(2 * _DAY)
        await claim_deliveries(store)
        assert await store.correlations.list_dead_letters() == []

    @rule("C-35", "C-26")
    async def test_dead_letters_are_listed_in_publish_order_and_continued_by_a_cursor(
        self, store: Store, clock: FrozenClock
    ) -> None:
        keys = ["parcel-3", "parcel-1", "parcel-5", "parcel-2", "parcel-4"]
        letters = await self._expired(store, clock, *keys)
        assert [letter.correlation_key for letter in letters] == keys
        listed: list[DeadLetter] = []
        cursor = None
        for _ in range(3):
            page = await store.correlations.list_dead_letters(limit=2, cursor=cursor)
            listed += page
            cursor = page.next_cursor
        assert (listed, cursor) == (letters, None)

    @rule("C-35")
    async def test_a_dead_letter_is_published_again_to_who_waits_now(self, store: Store, clock: FrozenClock) -> None:
        (letter, kept) = await self._expired(store, clock, "parcel-77", "parcel-78")
        flow = await factories.add_flow(store, waits_for="parcel-77")
        (made,) = await store.correlations.republish(letter)
        assert (made.flow_instance_id, made.event_id) == (flow.flow_instance_id, letter.event_id)
        assert made.payload == {"of": "parcel-77"}
        assert await store.correlations.list_dead_letters() == [kept]
        assert len(await claim_deliveries(store)) == 1

    @rule("C-35", "C-33")
    async def test_publishing_again_passes_the_deduplication(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.correlations.publish("parcel-77", "unusable", event_id="evt-1")
        (delivery,) = await claim_deliveries(store)
        await store.correlations.give_up(delivery, reason="not now")
        assert await store.correlations.publish("parcel-77", "unusable", event_id="evt-1") == []
        (letter,) = await store.correlations.list_dead_letters()
        (made,) = await store.correlations.republish(letter)
        assert (made.flow_instance_id, made.event_id) == (flow.flow_instance_id, "evt-1")
        assert await store.correlations.list_dead_letters() == []

    @rule("C-35")
    async def test_a_dead_letter_published_again_is_kept_for_a_day_when_nobody_waits(
        self, store: Store, clock: FrozenClock
    ) -> None:
        (first, second) = await self._expired(store, clock, "parcel-77", "parcel-78")
        assert await store.correlations.republish(first) == []
        assert await store.correlations.republish(second) == []
        assert await store.correlations.list_dead_letters() == []
        clock.advance(_DAY - MOMENT)
        await factories.add_flow(store, waits_for="parcel-77")
        (delivery,) = await claim_deliveries(store)
        assert delivery.payload == {"of": "parcel-77"}
        clock.advance(MOMENT)
        await claim_deliveries(store)
        assert [letter.correlation_key for letter in await store.correlations.list_dead_letters()] == ["parcel-78"]

    @rule("C-35", "C-02")
    async def test_a_republication_that_is_rolled_back_leaves_the_dead_letter(
        self, store: Store, clock: FrozenClock
    ) -> None:
        letters = await self._expired(store, clock, "parcel-77")
        async with store.begin() as uow:
            await uow.correlations.republish(letters[0])
            assert await uow.correlations.list_dead_letters() == []
            await uow.rollback()
        assert await store.correlations.list_dead_letters() == letters

    @rule("C-35")
    async def test_what_holds_no_event_cannot_be_published_again(self, store: Store, clock: FrozenClock) -> None:
        letter = DeadLetter(
            correlation_key="parcel-77", event_id=None, payload=None, published_at=clock.now(), reason="worn out"
        )
        for unusable in (letter, "parcel-77", None):
            with pytest.raises(InvalidArgument) as caught:
                await store.correlations.republish(unusable)  # type: ignore[arg-type]
            assert caught.value.argument == "dead_letter"
