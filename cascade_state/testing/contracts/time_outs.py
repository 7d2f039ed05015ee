"""Waits that expire: an explicit outcome, never a null payload (C-35)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import LeaseLost
from cascade_state.model.flow_status import FlowStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, OpenStore, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_deliveries
from cascade_state.testing.contracts.rules import rule

__all__ = ["TimeOutsContract"]

_DAY = timedelta(hours=24)
_SECOND = timedelta(seconds=1)


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

    @rule("C-35")
    async def test_what_times_out_with_a_claim_comes_behind_what_was_delivered(
        self, store: Store, clock: FrozenClock
    ) -> None:
        expires_at = clock.now() + _SECOND
        for number in range(8):
            await factories.add_flow(store, waits_for=f"parcel-{number}", expires_at=expires_at)
        await factories.add_flow(store, waits_for="parcel-77")
        clock.set(expires_at)
        await store.correlations.publish("parcel-77", "at the same instant")
        (first,) = await claim_deliveries(store, limit=1)
        assert (first.timed_out, first.payload) == (False, "at the same instant")
        assert [delivery.timed_out for delivery in await claim_deliveries(store, limit=10)] == [True] * 8

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
