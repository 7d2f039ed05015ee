"""Deliveries, time-outs and dead letters: claimed, redelivered, acknowledged with their effect (C-34, C-35).

What a stale lease may not do is in `leases`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from cascade_state.abc import Store
from cascade_state.errors import InvalidArgument, LeaseLost
from cascade_state.model.correlations import DeadLetter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, OpenStore, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_deliveries
from cascade_state.testing.contracts.rules import rule

__all__ = ["DeadLettersContract", "DeliveriesContract", "TimeOutsContract"]

_DAY = timedelta(hours=24)
_SECOND = timedelta(seconds=1)


async def _delivered(store: Store, key: str = "parcel-77", payload: object = None) -> FlowInstance:
    """Returns a flow that has a delivery under the key."""
    flow = await factories.add_flow(store, waits_for=key)
    assert len(await store.correlations.publish(key, payload)) == 1
    return flow


class DeliveriesContract(StoreContract):
    """A delivery is handed out under a lease until the commit of its effect acknowledges it (C-34)."""

    @pytest_asyncio.fixture
    async def impatient_store(self, store: Store, open_store_again: OpenStore) -> AsyncIterator[Store]:
        """A store that hands a delivery out twice at most."""
        async with open_store_again(max_attempts=2) as opened:
            yield opened

    @rule("C-34")
    async def test_a_claim_gives_a_lease_and_counts_as_an_attempt(self, store: Store, clock: FrozenClock) -> None:
        await _delivered(store)
        (claimed,) = await claim_deliveries(store, "worker-1")
        assert claimed.lease is not None
        assert (claimed.lease.holder, claimed.lease.expires_at) == ("worker-1", clock.now() + LEASE)
        assert claimed.attempts == 1

    @rule("C-34")
    async def test_what_is_claimed_is_redelivered_when_its_lease_expires(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        await _delivered(store)
        (first,) = await claim_deliveries(store, "worker-1")
        assert await claim_deliveries(other_store, "worker-2") == []
        clock.advance(LEASE - MOMENT)
        assert await claim_deliveries(other_store, "worker-2") == []
        clock.advance(MOMENT)
        (second,) = await claim_deliveries(other_store, "worker-2")
        assert (second.event_id, second.payload) == (first.event_id, first.payload)
        assert second.attempts == 2
        assert second.lease is not None
        assert first.lease is not None
        assert (second.lease.holder, second.lease.token > first.lease.token) == ("worker-2", True)

    @rule("C-34")
    async def test_claims_are_in_the_order_of_delivery_and_not_more_than_asked(
        self, store: Store, clock: FrozenClock
    ) -> None:
        for key in ("parcel-3", "parcel-1", "parcel-2"):
            await _delivered(store, key)
            clock.advance(_SECOND)
        first = await claim_deliveries(store, limit=2)
        second = await claim_deliveries(store, limit=2)
        assert [item.correlation_key for item in (*first, *second)] == ["parcel-3", "parcel-1", "parcel-2"]
        assert len(first) == 2

    @rule("C-34")
    async def test_deliveries_of_one_instant_are_claimed_in_the_order_of_their_keys(self, store: Store) -> None:
        for key in ("parcel-3", "parcel-1", "parcel-2"):
            await _delivered(store, key)
        claimed = [(await claim_deliveries(store, limit=1))[0].correlation_key for _ in range(3)]
        assert claimed == ["parcel-1", "parcel-2", "parcel-3"]

    @rule("C-34", "C-01")
    async def test_a_claim_neither_sees_nor_waits_for_what_another_unit_of_work_holds(
        self, store: Store, other_store: Store
    ) -> None:
        await _delivered(store, "parcel-1")
        await _delivered(store, "parcel-2")
        async with store.begin() as uow:
            (mine,) = await claim_deliveries(uow, "worker-1", limit=1)
            claiming = self.started(claim_deliveries(other_store, "worker-2"))
            (theirs,) = await self.finished(claiming)
            assert {mine.correlation_key, theirs.correlation_key} == {"parcel-1", "parcel-2"}
            await uow.rollback()
        (again,) = await claim_deliveries(other_store, "worker-2")
        assert (again.correlation_key, again.attempts) == (mine.correlation_key, 1)

    @rule("C-34", "C-01")
    async def test_a_claim_neither_sees_nor_waits_for_what_is_delivered_in_an_open_unit_of_work(
        self, store: Store, other_store: Store
    ) -> None:
        await factories.add_flow(store, waits_for="parcel-77")
        async with store.begin() as uow:
            assert len(await uow.correlations.publish("parcel-77", {})) == 1
            assert await self.finished(self.started(claim_deliveries(other_store))) == []
        assert len(await claim_deliveries(other_store)) == 1

    @rule("C-34")
    async def test_concurrent_claimers_share_deliveries_without_overlap(self, store: Store, other_store: Store) -> None:
        for number in range(12):
            await _delivered(store, f"parcel-{number}")
        claims = [
            self.started(claim_deliveries(target, f"worker-{number}", limit=3))
            for number, target in enumerate((store, other_store) * 3)
        ]
        claimed = [delivery.correlation_key for claim in claims for delivery in await self.finished(claim)]
        claimed += [delivery.correlation_key for delivery in await claim_deliveries(store)]
        assert sorted(claimed) == sorted(f"parcel-{number}" for number in range(12))

    @rule("C-34")
    async def test_an_acknowledgement_commits_with_its_effect(self, store: Store, clock: FrozenClock) -> None:
        flow = await _delivered(store, payload={"status": "delivered"})
        (delivery,) = await claim_deliveries(store)
        flow = await store.advance(flow.resume().complete_step("ship", delivery.payload), completes=[delivery])
        clock.advance(LEASE)
        assert await claim_deliveries(store) == []
        stored = await store.flow_instances.get(flow.flow_instance_id)
        assert stored.step_output("ship", "status") == "delivered"
        assert stored.status is FlowStatus.RUNNING

    @rule("C-34")
    async def test_an_acknowledgement_that_is_rolled_back_did_not_happen(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flow = await _delivered(store)
        async with store.begin() as uow:
            (delivery,) = await claim_deliveries(uow)
            await uow.advance(flow.resume().complete_step("ship"), completes=[delivery])
            await uow.rollback()
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        (again,) = await claim_deliveries(store)
        assert again.attempts == 1
        async with store.begin() as uow:
            await uow.advance(flow.resume().complete_step("ship"), completes=[again])
            await uow.rollback()
        assert await claim_deliveries(store) == []
        clock.advance(LEASE)
        (once_more,) = await claim_deliveries(store)
        assert once_more.attempts == 2
        await store.advance(flow.resume().complete_step("ship"), completes=[once_more])

    @rule("C-34")
    async def test_complete_acknowledges_without_an_advance(self, store: Store, clock: FrozenClock) -> None:
        flow = await _delivered(store)
        (delivery,) = await claim_deliveries(store)
        await store.correlations.complete([delivery])
        clock.advance(LEASE)
        assert await claim_deliveries(store) == []
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        with pytest.raises(LeaseLost):
            await store.correlations.complete([delivery])

    @rule("C-34")
    async def test_release_gives_it_back_at_once_and_the_attempt_stays_counted(self, store: Store) -> None:
        await _delivered(store)
        (delivery,) = await claim_deliveries(store)
        await store.correlations.release([delivery])
        (again,) = await claim_deliveries(store)
        assert again.attempts == 2

    @rule("C-34")
    async def test_retry_gives_it_back_for_later(self, store: Store, clock: FrozenClock) -> None:
        await _delivered(store)
        (delivery,) = await claim_deliveries(store)
        await store.correlations.retry(delivery, after=timedelta(minutes=5), error="carrier down")
        clock.advance(timedelta(minutes=5) - MOMENT)
        assert await claim_deliveries(store) == []
        clock.advance(MOMENT)
        (again,) = await claim_deliveries(store)
        assert (again.event_id, again.attempts) == (delivery.event_id, 2)

    @rule("C-34", "C-35")
    async def test_a_retry_without_an_attempt_left_is_a_dead_letter(
        self, impatient_store: Store, clock: FrozenClock
    ) -> None:
        store = impatient_store
        published_at = clock.now()
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.correlations.publish("parcel-77", {"status": "lost"}, event_id="evt-1")
        (delivery,) = await claim_deliveries(store)
        await store.correlations.retry(delivery, after=timedelta(0), error="first try")
        clock.advance(_SECOND)
        (delivery,) = await claim_deliveries(store)
        await store.correlations.retry(delivery, after=timedelta(0), error="second try")
        assert await store.correlations.list_dead_letters() == [
            DeadLetter(
                correlation_key="parcel-77",
                event_id="evt-1",
                payload={"status": "lost"},
                published_at=published_at,
                reason="second try",
            )
        ]
        (wait,) = await store.correlations.list_waiting("parcel-77")
        assert (wait.flow_instance_id, wait.created_at) == (flow.flow_instance_id, flow.created_at)
        assert await claim_deliveries(store) == []

    @rule("C-34", "C-35")
    async def test_a_delivery_that_wears_out_tells_its_last_error(
        self, impatient_store: Store, clock: FrozenClock
    ) -> None:
        store = impatient_store
        await _delivered(store)
        (delivery,) = await claim_deliveries(store)
        await store.correlations.retry(delivery, after=timedelta(0), error="carrier down")
        assert len(await claim_deliveries(store)) == 1
        clock.advance(LEASE)
        assert await claim_deliveries(store) == []
        (letter,) = await store.correlations.list_dead_letters()
        assert letter.reason == "carrier down"

    @rule("C-34", "C-35")
    async def test_a_delivery_whose_holders_vanish_is_a_dead_letter_in_the_end(
        self, impatient_store: Store, clock: FrozenClock
    ) -> None:
        store = impatient_store
        await _delivered(store)
        for attempt in (1, 2):
            (delivery,) = await claim_deliveries(store)
            assert delivery.attempts == attempt
            clock.advance(LEASE)
        assert await claim_deliveries(store) == []
        (letter,) = await store.correlations.list_dead_letters()
        assert letter.event_id == delivery.event_id
        assert letter.reason
        assert len(await store.correlations.list_waiting("parcel-77")) == 1
        assert len(await store.correlations.publish("parcel-77", "another")) == 1

    @rule("C-34")
    async def test_deliveries_that_wear_out_do_not_block_the_others(
        self, impatient_store: Store, clock: FrozenClock
    ) -> None:
        store = impatient_store
        for number in range(5):
            await _delivered(store, f"poison-{number}")
        for _ in range(2):
            assert len(await claim_deliveries(store)) == 5
            clock.advance(LEASE)
        await _delivered(store, "healthy")
        (claimed,) = await claim_deliveries(store, limit=1)
        assert claimed.correlation_key == "healthy"
        assert len(await store.correlations.list_dead_letters()) == 5

    @rule("C-34", "C-35")
    async def test_given_up_is_a_dead_letter_and_the_step_waits_again(self, store: Store, clock: FrozenClock) -> None:
        flow = await _delivered(store, payload="unusable")
        (delivery,) = await claim_deliveries(store)
        clock.advance(_SECOND)
        await store.correlations.give_up(delivery, reason="not for us")
        (letter,) = await store.correlations.list_dead_letters()
        assert (letter.event_id, letter.payload, letter.reason) == (delivery.event_id, "unusable", "not for us")
        (wait,) = await store.correlations.list_waiting("parcel-77")
        assert (wait.flow_instance_id, wait.created_at) == (flow.flow_instance_id, flow.created_at)
        (made,) = await store.correlations.publish("parcel-77", "usable")
        assert made.flow_instance_id == flow.flow_instance_id
        (again,) = await claim_deliveries(store)
        assert (again.payload, again.attempts) == ("usable", 1)

    @rule("C-34", "C-32")
    async def test_a_step_that_waits_again_gets_the_next_event_of_the_queue(self, store: Store) -> None:
        await factories.add_flow(store, waits_for="parcel-77")
        for number in range(3):
            await store.correlations.publish("parcel-77", number, mode="fifo")
        received = []
        for _ in range(3):
            (delivery,) = await claim_deliveries(store)
            received.append(delivery.payload)
            await store.correlations.give_up(delivery, reason="skipped")
        assert received == [0, 1, 2]
        assert [letter.payload for letter in await store.correlations.list_dead_letters()] == [0, 1, 2]


class TimeOutsContract(StoreContract):
    """A wait that expires has an explicit outcome (C-35)."""

    @rule("C-35")
    async def test_an_expired_wait_is_delivered_as_timed_out(self, store: Store, clock: FrozenClock) -> None:
        expires_at = clock.now() + _DAY
        flow = await factories.add_flow(store, waits_for="parcel-77", expires_at=expires_at)
        clock.set(expires_at - MOMENT)
        assert await claim_deliveries(store) == []
        clock.set(expires_at)
        (delivery,) = await claim_deliveries(store)
        assert delivery.timed_out
        assert (delivery.flow_instance_id, delivery.step_id) == (flow.flow_instance_id, "ship")
        assert (delivery.correlation_key, delivery.event_id, delivery.payload) == ("parcel-77", None, None)
        assert (delivery.delivered_at, delivery.attempts) == (expires_at, 1)
        assert delivery.lease is not None

    @rule("C-35")
    async def test_a_null_payload_is_no_time_out(self, store: Store, clock: FrozenClock) -> None:
        await factories.add_flow(store, waits_for="parcel-77", expires_at=clock.now() + _DAY)
        await store.correlations.publish("parcel-77", None, event_id="evt-1")
        (delivery,) = await claim_deliveries(store)
        assert (delivery.timed_out, delivery.payload, delivery.event_id) == (False, None, "evt-1")

    @rule("C-35")
    async def test_a_delivery_made_in_time_does_not_time_out_later(self, store: Store, clock: FrozenClock) -> None:
        expires_at = clock.now() + _SECOND
        await factories.add_flow(store, waits_for="parcel-77", expires_at=expires_at)
        await store.correlations.publish("parcel-77", "in time")
        clock.set(expires_at)
        (delivery,) = await claim_deliveries(store)
        assert (delivery.timed_out, delivery.payload) == (False, "in time")

    @rule("C-35")
    @pytest.mark.parametrize("mode", ["first", "fifo", "broadcast"])
    async def test_an_event_that_comes_too_late_does_not_reach_the_wait(
        self, store: Store, clock: FrozenClock, mode: str
    ) -> None:
        expires_at = clock.now() + _SECOND
        await factories.add_flow(store, waits_for="parcel-77", expires_at=expires_at)
        clock.set(expires_at)
        assert await store.correlations.list_waiting("parcel-77") == []
        assert await store.correlations.publish("parcel-77", "too late", mode=mode) == []  # type: ignore[arg-type]
        (delivery,) = await claim_deliveries(store)
        assert (delivery.timed_out, delivery.payload) == (True, None)

    @rule("C-35")
    async def test_an_event_that_was_kept_does_not_reach_a_wait_that_is_born_expired(
        self, store: Store, clock: FrozenClock
    ) -> None:
        await store.correlations.publish("parcel-77", "early")
        await factories.add_flow(store, waits_for="parcel-77", expires_at=clock.now())
        (delivery,) = await claim_deliveries(store)
        assert delivery.timed_out

    @rule("C-35", "C-34")
    async def test_a_time_out_is_redelivered_until_it_is_acknowledged(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77", expires_at=clock.now())
        (first,) = await claim_deliveries(store)
        clock.advance(LEASE)
        (second,) = await claim_deliveries(store)
        assert (first.timed_out, second.timed_out, second.attempts) == (True, True, 2)
        with pytest.raises(LeaseLost):
            await store.advance(flow.resume(), completes=[first])
        ended = await store.advance(flow.resume().fail_step("ship", "timed out"), completes=[second])
        assert (ended.status, dict(ended.waits)) == (FlowStatus.RUNNING, {})
        clock.advance(LEASE)
        assert await claim_deliveries(store) == []
        assert await store.flow_instances.find_by_correlation("parcel-77") == []

    @rule("C-35")
    async def test_a_time_out_that_is_given_up_only_loses_its_wait(self, store: Store, clock: FrozenClock) -> None:
        await factories.add_flow(store, waits_for="parcel-77", expires_at=clock.now())
        (delivery,) = await claim_deliveries(store)
        await store.correlations.give_up(delivery, reason="nobody cares")
        clock.advance(LEASE)
        assert await claim_deliveries(store) == []
        assert await store.correlations.list_waiting("parcel-77") == []
        assert await store.correlations.list_dead_letters() == []
        assert await store.correlations.publish("parcel-77", {}) == []

    @rule("C-35")
    async def test_a_time_out_whose_holders_vanish_ends_without_a_dead_letter(
        self, store: Store, open_store_again: OpenStore, clock: FrozenClock
    ) -> None:
        await factories.add_flow(store, waits_for="parcel-77", expires_at=clock.now())
        async with open_store_again(max_attempts=1) as impatient:
            assert len(await claim_deliveries(impatient)) == 1
            clock.advance(LEASE)
            assert await claim_deliveries(impatient) == []
            clock.advance(LEASE)
            assert await claim_deliveries(impatient) == []
        assert await store.correlations.list_dead_letters() == []
        assert await store.correlations.publish("parcel-77", {}) == []

    @rule("C-35")
    async def test_a_wait_renewed_with_a_later_expiry_lives_longer(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77", expires_at=clock.now() + _SECOND)
        later = clock.now() + _DAY
        await store.advance(flow.suspend_for_event("ship", "parcel-77", expires_at=later))
        clock.advance(_SECOND)
        assert await claim_deliveries(store) == []
        clock.set(later)
        assert [delivery.timed_out for delivery in await claim_deliveries(store)] == [True]

    @rule("C-35", "C-02")
    async def test_a_time_out_that_is_rolled_back_comes_again(self, store: Store, clock: FrozenClock) -> None:
        await factories.add_flow(store, waits_for="parcel-77", expires_at=clock.now())
        async with store.begin() as uow:
            assert len(await claim_deliveries(uow)) == 1
            await uow.rollback()
        (delivery,) = await claim_deliveries(store)
        assert (delivery.timed_out, delivery.attempts) == (True, 1)

    @rule("C-35")
    async def test_two_claimers_get_a_time_out_once(self, store: Store, other_store: Store, clock: FrozenClock) -> None:
        for number in range(10):
            await factories.add_flow(store, waits_for=f"parcel-{number}", expires_at=clock.now())
        claims = [self.started(claim_deliveries(target)) for target in (store, other_store, store, other_store)]
        claimed = [delivery for claim in claims for delivery in await self.finished(claim)]
        claimed += await claim_deliveries(store)
        assert sorted(delivery.correlation_key for delivery in claimed) == [f"parcel-{number}" for number in range(10)]
        assert all(delivery.timed_out for delivery in claimed)


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
        listed, cursor = [], None
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
