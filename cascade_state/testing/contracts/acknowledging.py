"""`advance` under leases: of the flow, and of the timers and deliveries that it acknowledges (C-23)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    LeaseLost,
    VersionConflict,
)
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["AcknowledgingContract"]

_NOW = timedelta(0)


class AcknowledgingContract(StoreContract):
    """Whose lease is lost writes nothing."""

    # C-23

    @rule("C-23")
    async def test_the_lease_of_a_claimed_flow_is_checked(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        (mine,) = await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        assert mine == flow  # claiming does not change the version
        assert mine.lease is not None
        advanced = await store.advance(mine.complete_step("charge"), lease=mine.lease)
        assert advanced.lease == mine.lease
        clock.advance(LEASE)
        (theirs,) = await store.flow_instances.claim("worker-2", lease_duration=LEASE)
        with pytest.raises(LeaseLost) as caught:
            await store.advance(advanced.complete_step("ship"), lease=mine.lease, put_states={"ship": 1})
        assert (caught.value.entity, caught.value.key) == ("flow instance", flow.flow_instance_id)
        assert (caught.value.token, caught.value.holder) == (mine.lease.token, "worker-1")
        assert await store.flow_instances.get(flow.flow_instance_id) == advanced
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []
        ended = await store.advance(theirs.complete_step("ship").complete(), lease=theirs.lease)
        assert ended.lease is None
        with pytest.raises(LeaseLost):
            await store.flow_instances.release([theirs])

    @rule("C-23")
    async def test_an_expired_lease_that_nobody_took_still_holds(self, store: Store, clock: FrozenClock) -> None:
        await factories.add_flow(store)
        (mine,) = await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        clock.advance(10 * LEASE)
        assert (await store.advance(mine.complete_step("charge"), lease=mine.lease)).version == mine.version + 1

    @rule("C-23")
    async def test_a_released_lease_does_not_hold(self, store: Store) -> None:
        await factories.add_flow(store)
        (mine,) = await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        await store.flow_instances.release([mine])
        with pytest.raises(LeaseLost):
            await store.advance(mine.complete_step("charge"), lease=mine.lease)

    @rule("C-23")
    async def test_without_a_lease_only_the_version_is_checked(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        (held,) = await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        advanced = await store.advance(flow.complete_step("charge"))
        with pytest.raises(VersionConflict):
            await store.advance(held.complete_step("ship"), lease=held.lease)
        assert (await store.advance(advanced.complete_step("ship"), lease=held.lease)).version == 3

    @rule("C-23")
    async def test_a_lost_timer_or_delivery_refuses_the_whole_advance(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        flow = await store.advance(flow.suspend_for_timer("charge", after=_NOW))
        await store.correlations.publish("parcel-77", {})
        (timer,) = await store.timers.claim_due("worker-1", lease_duration=LEASE)
        (delivery,) = await store.correlations.claim_delivered("worker-1", lease_duration=LEASE)
        step = flow.resume().complete_step("charge").complete_step("ship").complete()
        clock.advance(LEASE)
        (timer_taken,) = await store.timers.claim_due("worker-2", lease_duration=LEASE)
        with pytest.raises(LeaseLost) as caught:
            await store.advance(step, completes=[delivery, timer], put_states={"charge": 1})
        assert (caught.value.entity, caught.value.key) == ("timer", timer.timer_id)
        (delivery_taken,) = await store.correlations.claim_delivered("worker-2", lease_duration=LEASE)
        with pytest.raises(LeaseLost) as caught:
            await store.advance(step, completes=[timer_taken, delivery], put_states={"charge": 1})
        assert (caught.value.entity, caught.value.key) == ("delivery", "parcel-77")
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []
        assert len(await store.timers.list_for_instance(flow.flow_instance_id)) == 1
        ended = await store.advance(step, completes=[timer_taken, delivery_taken])
        assert ended.is_terminal

    @rule("C-23")
    async def test_what_was_never_claimed_cannot_be_completed(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        timer = await store.timers.schedule(flow.flow_instance_id, "charge", after=_NOW)
        (delivery,) = await store.correlations.publish("parcel-77", {})
        for item in (timer, delivery):
            with pytest.raises(LeaseLost):
                await store.advance(flow, completes=[item])
        made_up = replace(timer, lease=factories.lease(token=0))
        with pytest.raises(LeaseLost):
            await store.advance(flow, completes=[made_up])
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-23")
    async def test_a_timer_of_another_flow_can_be_completed(self, store: Store) -> None:
        parent = await factories.add_flow(store)
        child = await store.advance(parent.child(await factories.deploy_flow_definition(store)).start())
        await store.timers.schedule(child.flow_instance_id, "charge", after=_NOW)
        (timer,) = await store.timers.claim_due("worker-1", lease_duration=LEASE)
        await store.advance(parent.complete_step("charge"), completes=[timer])
        assert await store.timers.find(timer.timer_id) is None
