"""Deliveries: claimed, redelivered, acknowledged with their effect (C-34).

What a stale lease may not do is in `leases`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from cascade_state.abc import Store
from cascade_state.errors import LeaseLost
from cascade_state.model.correlations import DeadLetter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, OpenStore, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_deliveries
from cascade_state.testing.contracts.rules import rule

__all__ = ["DeliveriesContract"]

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
