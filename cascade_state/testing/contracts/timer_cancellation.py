"""Timers that are cancelled, moved, or end with their flow (C-24, C-43)."""

from __future__ import annotations

from datetime import UTC, timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    InvalidTransition,
    LeaseLost,
    TimerNotFound,
)
from cascade_state.ids import new_timer_id
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import Timer, TimerStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, OpenStore, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = ["TimerCancellationContract"]

_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)


class TimerCancellationContract(StoreContract):
    """A timer that was cancelled, moved or ended with its flow does not fire (C-43)."""

    async def _due(self, store: Store, clock: FrozenClock) -> tuple[FlowInstance, Timer]:
        """Returns a flow with a timer that is due now."""
        flow = await factories.add_flow(store)
        return flow, await store.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now())

    # C-43

    @rule("C-43")
    async def test_cancel_says_whether_it_cancelled(self, store: Store, clock: FrozenClock) -> None:
        _, timer = await self._due(store, clock)
        assert await store.timers.cancel(timer.timer_id) is True
        assert await store.timers.cancel(timer.timer_id) is False
        assert await store.timers.find(timer.timer_id) is None

    @rule("C-43")
    async def test_a_cancelled_timer_never_fires(self, store: Store, clock: FrozenClock) -> None:
        flow, timer = await self._due(store, clock)
        kept = await store.timers.schedule(flow.flow_instance_id, "charge", due_at=clock.now())
        await store.timers.cancel(timer.timer_id)
        clock.advance(_HOUR)
        assert [claimed.timer_id for claimed in await claim_timers(store)] == [kept.timer_id]

    @rule("C-43")
    async def test_an_advance_cancels_timers(self, store: Store, clock: FrozenClock) -> None:
        flow, timer = await self._due(store, clock)
        gone = new_timer_id(flow.flow_instance_id)
        await store.advance(flow.complete_step("charge"), cancel=[timer.timer_id, gone])
        assert await claim_timers(store) == []

    @rule("C-43", "C-50")
    async def test_cancelling_takes_a_claimed_timer_from_its_holder(self, store: Store, clock: FrozenClock) -> None:
        flow, timer = await self._due(store, clock)
        (claimed,) = await claim_timers(store)
        assert await store.timers.cancel(timer.timer_id)
        with pytest.raises(LeaseLost):
            await store.timers.complete([claimed])
        with pytest.raises(LeaseLost):
            await store.timers.retry(claimed, after=_SECOND, error="late")
        with pytest.raises(LeaseLost):
            await store.advance(flow.complete_step("ship"), completes=[claimed])
        assert await store.timers.renew([claimed], LEASE) == []
        assert await store.timers.find(timer.timer_id) is None
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-43", "C-02")
    async def test_a_cancellation_that_is_rolled_back_did_not_happen(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        _, timer = await self._due(store, clock)
        async with store.begin() as uow:
            assert await uow.timers.cancel(timer.timer_id)
            assert await self.finished(self.started(claim_timers(other_store))) == []
            await uow.rollback()
        assert [claimed.timer_id for claimed in await claim_timers(other_store)] == [timer.timer_id]

    @rule("C-43")
    async def test_two_cancel_and_one_of_them_did_it(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        _, timer = await self._due(store, clock)
        async with store.begin() as uow:
            assert await uow.timers.cancel(timer.timer_id)
            second = self.started(other_store.timers.cancel(timer.timer_id))
            await self.settled(second)
        assert await self.finished(second) is False

    @rule("C-43")
    async def test_a_cancellation_waits_for_who_completes_in_an_open_unit_of_work(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        for commits in (True, False):
            _, timer = await self._due(store, clock)
            (claimed,) = await claim_timers(store)
            async with store.begin() as uow:
                await uow.timers.complete([claimed])
                cancelling = self.started(other_store.timers.cancel(timer.timer_id))
                await self.settled(cancelling)
                if not commits:
                    await uow.rollback()
            assert await self.finished(cancelling) is not commits

    # Moving

    @rule("C-43")
    async def test_a_timer_moves_to_another_instant(self, store: Store, clock: FrozenClock) -> None:
        _, timer = await self._due(store, clock)
        later = clock.now() + _HOUR
        moved = await store.timers.reschedule(timer.timer_id, later)
        assert (moved.timer_id, moved.due_at, moved.status) == (timer.timer_id, later, TimerStatus.PENDING)
        assert await store.timers.get(timer.timer_id) == moved
        assert await store.timers.next_due_at() == later
        clock.set(later - MOMENT)
        assert await claim_timers(store) == []
        clock.set(later)
        (claimed,) = await claim_timers(store)
        assert (claimed.timer_id, claimed.attempts) == (timer.timer_id, 1)

    @rule("C-43")
    async def test_a_timer_moves_into_the_past(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
        await store.timers.reschedule(timer.timer_id, clock.now() - _HOUR)
        assert [claimed.timer_id for claimed in await claim_timers(store)] == [timer.timer_id]

    @rule("C-43", "C-50")
    async def test_moving_takes_a_claimed_timer_from_its_holder(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        _, timer = await self._due(store, clock)
        (claimed,) = await claim_timers(store)
        moved = await other_store.timers.reschedule(timer.timer_id, clock.now())
        assert (moved.status, moved.lease) == (TimerStatus.PENDING, None)
        with pytest.raises(LeaseLost):
            await store.timers.complete([claimed])
        assert await store.timers.renew([claimed], LEASE) == []
        (again,) = await claim_timers(other_store)
        assert again.lease is not None
        assert claimed.lease is not None
        assert again.lease.token > claimed.lease.token
        with pytest.raises(LeaseLost):
            await store.timers.release([claimed])
        await other_store.timers.complete([again])

    @rule("C-43")
    async def test_what_is_gone_cannot_be_moved(self, store: Store, clock: FrozenClock) -> None:
        _, timer = await self._due(store, clock)
        await store.timers.cancel(timer.timer_id)
        with pytest.raises(TimerNotFound):
            await store.timers.reschedule(timer.timer_id, clock.now())

    @rule("C-43", "C-44")
    async def test_a_dead_timer_that_is_moved_stays_dead(self, store: Store, clock: FrozenClock) -> None:
        _, timer = await self._due(store, clock)
        (claimed,) = await claim_timers(store)
        await store.timers.give_up(claimed, reason="enough")
        moved = await store.timers.reschedule(timer.timer_id, clock.now() - _HOUR)
        assert moved.status is TimerStatus.DEAD
        assert moved.due_at == clock.now() - _HOUR
        assert await claim_timers(store) == []

    # Going with the flow

    @rule("C-24", "C-43")
    async def test_the_timers_of_a_flow_end_with_it(self, store: Store, clock: FrozenClock) -> None:
        flow, timer = await self._due(store, clock)
        later = await store.timers.schedule(flow.flow_instance_id, "charge", after=_HOUR)
        await store.advance(flow.cancel("enough"))
        for gone in (timer, later):
            assert await store.timers.find(gone.timer_id) is None
        clock.advance(_HOUR)
        assert await claim_timers(store) == []

    @rule("C-24", "C-43")
    @pytest.mark.parametrize("commits", [True, False])
    async def test_a_timer_scheduled_while_the_flow_ends_does_not_outlive_it(
        self, store: Store, other_store: Store, commits: bool
    ) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            await uow.advance(flow.cancel("enough"))
            scheduling = self.started(other_store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR))
            await self.settled(scheduling)
            if not commits:
                await uow.rollback()
        if commits:
            with pytest.raises(InvalidTransition):
                await self.finished(scheduling)
        else:
            await self.finished(scheduling)
        timers = await store.timers.list_for_instance(flow.flow_instance_id)
        assert len(timers) == (0 if commits else 1)

    @rule("C-24", "C-43")
    async def test_a_flow_that_ends_while_a_timer_is_scheduled_takes_it_along(
        self, store: Store, other_store: Store
    ) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            timer = await uow.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
            ending = self.started(other_store.advance(flow.cancel("enough")))
            await self.settled(ending)
        await self.finished(ending)
        assert await store.timers.find(timer.timer_id) is None
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []

    @rule("C-43")
    async def test_resuming_drops_the_timer_that_was_waited_for(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        flow = await store.advance(flow.suspend_for_timer("ship", after=_HOUR))
        other = await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
        await store.advance(flow.resume())
        clock.advance(_HOUR)
        assert [claimed.timer_id for claimed in await claim_timers(store)] == [other.timer_id]

    @rule("C-43")
    async def test_suspending_again_replaces_the_timer(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        flow = await store.advance(flow.suspend_for_timer("ship", after=_HOUR))
        flow = await store.advance(flow.suspend_for_timer("ship", after=2 * _HOUR))
        clock.advance(_HOUR)
        assert await claim_timers(store) == []
        clock.advance(_HOUR)
        (claimed,) = await claim_timers(store)
        assert claimed.timer_id == flow.pending_timers["ship"]

    @rule("C-40")
    async def test_a_store_opened_with_its_own_limit_gives_it_to_its_timers(
        self, store: Store, open_store_again: OpenStore
    ) -> None:
        flow = await factories.add_flow(store)
        async with open_store_again(max_attempts=3) as impatient:
            timer = await impatient.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
            own = await impatient.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR, max_attempts=7)
        assert (await store.timers.get(timer.timer_id)).max_attempts == 3
        assert (await store.timers.get(own.timer_id)).max_attempts == 7
        assert timer.due_at.tzinfo is UTC
