"""Timers: scheduled, cancelled, moved, ended with their flow (C-40, C-43). Claims are in `timer_claims`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    FlowInstanceNotFound,
    InvalidArgument,
    InvalidTransition,
    LeaseLost,
    TimerNotFound,
)
from cascade_state.ids import new_flow_instance_id, new_timer_id, partition_of
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import ScheduleTimer, Timer, TimerStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, OpenStore, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = ["TimerCancellationContract", "TimerKeysContract", "TimersContract"]

_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)


class TimersContract(StoreContract):
    """A timer is an instant at which a step of a flow must be woken (C-40)."""

    # C-40

    @rule("C-40")
    async def test_a_timer_is_stored_as_it_was_scheduled(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        due_at = clock.now() + _HOUR
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", due_at=due_at, payload={"try": 1})
        assert timer == Timer(
            timer_id=timer.timer_id,
            flow_instance_id=flow.flow_instance_id,
            step_id="ship",
            due_at=due_at,
            status=TimerStatus.PENDING,
            attempts=0,
            max_attempts=20,
            payload={"try": 1},
        )
        assert await store.timers.get(timer.timer_id) == timer
        assert await store.timers.find(timer.timer_id) == timer
        assert await store.timers.list_for_instance(flow.flow_instance_id) == [timer]

    @rule("C-40")
    async def test_a_due_time_is_absolute_to_the_microsecond_in_any_time_zone(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        there = timezone(timedelta(hours=5, minutes=45))
        due_at = datetime(2031, 3, 30, 2, 30, 0, 123_457, tzinfo=there)
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", due_at=due_at)
        stored = await store.timers.get(timer.timer_id)
        assert timer.due_at == stored.due_at == due_at
        assert stored.due_at.utcoffset() == timedelta(0)

    @rule("C-40", "C-51")
    async def test_after_is_added_to_the_clock_of_the_store_once(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        scheduled_at = clock.now()
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR + MOMENT)
        assert timer.due_at == scheduled_at + _HOUR + MOMENT
        clock.advance(_HOUR)
        assert (await store.timers.get(timer.timer_id)).due_at == scheduled_at + _HOUR + MOMENT

    @rule("C-40")
    async def test_timers_of_an_advance_are_scheduled_alike(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        flow = await store.advance(
            flow.suspend_for_timer("ship", after=_HOUR),
            schedule=[ScheduleTimer("charge", due_at=clock.now() + 2 * _HOUR, payload="second", max_attempts=3)],
        )
        waiting, extra = await store.timers.list_for_instance(flow.flow_instance_id)
        assert waiting.timer_id == flow.pending_timers["ship"]
        assert (waiting.step_id, waiting.due_at) == ("ship", clock.now() + _HOUR)
        assert (extra.step_id, extra.due_at) == ("charge", clock.now() + 2 * _HOUR)
        assert (extra.payload, extra.max_attempts) == ("second", 3)

    @rule("C-40")
    async def test_a_due_time_may_lie_in_the_past(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now() - _HOUR)
        assert [claimed.timer_id for claimed in await claim_timers(store)] == [timer.timer_id]

    @rule("C-40", "C-10")
    async def test_exactly_one_time_is_needed_and_it_must_be_aware(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        naive = clock.now().replace(tzinfo=None)
        for times in ({}, {"due_at": clock.now(), "after": _HOUR}, {"due_at": naive}, {"after": -MOMENT}):
            with pytest.raises(InvalidArgument):
                await store.timers.schedule(flow.flow_instance_id, "ship", **times)  # type: ignore[arg-type]
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []

    @rule("C-40")
    async def test_several_timers_of_one_step_and_the_flow_is_not_suspended(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        timers = [await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR) for _ in range(3)]
        listed = await store.timers.list_for_instance(flow.flow_instance_id)
        assert {timer.timer_id for timer in listed} == {timer.timer_id for timer in timers}
        assert len(listed) == 3
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-40")
    async def test_a_timer_lives_in_the_partition_of_its_flow(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
        count = store.options.partition_count
        assert partition_of(timer.timer_id, count) == partition_of(flow.flow_instance_id, count)

    @rule("C-40")
    async def test_an_unknown_flow_takes_no_timer(self, store: Store) -> None:
        unknown = new_flow_instance_id()
        with pytest.raises(FlowInstanceNotFound) as caught:
            await store.timers.schedule(unknown, "ship", after=_HOUR)
        assert caught.value.key == unknown

    @rule("C-24")
    async def test_a_flow_that_has_ended_takes_no_timer(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        ended = await store.advance(flow.complete())
        with pytest.raises(InvalidTransition) as caught:
            await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
        assert (caught.value.from_status, caught.value.to_status) == (ended.status, "WAITING_FOR_TIMER")
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []

    @rule("C-40", "C-26")
    async def test_timers_are_listed_by_due_time_then_id(self, store: Store, clock: FrozenClock) -> None:
        flow, other = await factories.add_flow(store), await factories.add_flow(store)
        timers = []
        for hours in (3, 1, 2, 1, 3):
            due_at = clock.now() + hours * _HOUR
            timers.append(await store.timers.schedule(flow.flow_instance_id, "ship", due_at=due_at))
            await store.timers.schedule(other.flow_instance_id, "ship", due_at=due_at)
        expected = sorted(timers, key=lambda timer: (timer.due_at, timer.timer_id))
        assert await store.timers.list_for_instance(flow.flow_instance_id) == expected
        listed, cursor = [], None
        for _ in range(3):
            page = await store.timers.list_for_instance(flow.flow_instance_id, limit=2, cursor=cursor)
            listed += page
            cursor = page.next_cursor
        assert (listed, cursor) == (expected, None)

    @rule("C-40")
    async def test_a_timer_that_is_not_there_is_not_found(self, store: Store) -> None:
        unknown = new_timer_id(new_flow_instance_id())
        assert await store.timers.find(unknown) is None
        with pytest.raises(TimerNotFound) as caught:
            await store.timers.get(unknown)
        assert caught.value.key == unknown

    # next_due_at

    @rule("C-41")
    async def test_the_next_due_time_is_that_of_the_earliest_timer(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        assert await store.timers.next_due_at() is None
        late = await store.timers.schedule(flow.flow_instance_id, "ship", after=2 * _HOUR)
        assert await store.timers.next_due_at() == late.due_at
        early = await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
        assert await store.timers.next_due_at() == early.due_at
        clock.advance(3 * _HOUR)
        assert await store.timers.next_due_at() == early.due_at
        await store.timers.cancel(early.timer_id)
        assert await store.timers.next_due_at() == late.due_at

    @rule("C-41")
    async def test_the_next_due_time_of_a_claimed_timer_is_the_end_of_its_lease(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store)
        await store.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now() - _HOUR)
        (claimed,) = await claim_timers(store)
        assert claimed.lease is not None
        assert await store.timers.next_due_at() == claimed.lease.expires_at
        later = await store.timers.schedule(flow.flow_instance_id, "ship", after=LEASE / 2)
        assert await store.timers.next_due_at() == later.due_at
        await store.timers.cancel(later.timer_id)
        await store.timers.complete([claimed])
        assert await store.timers.next_due_at() is None


class TimerKeysContract(StoreContract):
    """A repeated call with the same key makes no second timer (C-40)."""

    @rule("C-40")
    async def test_a_repeated_call_returns_the_timer_that_is_there(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        schedule = store.timers.schedule
        timer = await schedule(flow.flow_instance_id, "ship", after=_HOUR, payload=1, idempotency_key="reminder")
        again = await schedule(flow.flow_instance_id, "charge", after=_SECOND, payload=2, idempotency_key="reminder")
        assert again == timer
        assert await store.timers.list_for_instance(flow.flow_instance_id) == [timer]

    @rule("C-40")
    async def test_another_key_or_flow_or_no_key_makes_another_timer(self, store: Store) -> None:
        flow, other = await factories.add_flow(store), await factories.add_flow(store)
        timers = [
            await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR, idempotency_key="reminder"),
            await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR, idempotency_key="second reminder"),
            await store.timers.schedule(other.flow_instance_id, "ship", after=_HOUR, idempotency_key="reminder"),
            await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR),
        ]
        assert len({timer.timer_id for timer in timers}) == 4

    @rule("C-40")
    async def test_a_repeated_call_finds_a_timer_that_is_claimed_or_dead(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store)

        async def schedule() -> Timer:
            return await store.timers.schedule(
                flow.flow_instance_id, "ship", due_at=clock.now(), idempotency_key="reminder"
            )

        timer = await schedule()
        (claimed,) = await claim_timers(store)
        assert await schedule() == claimed
        dead = await store.timers.give_up(claimed, reason="enough")
        assert await schedule() == dead
        assert dead.timer_id == timer.timer_id

    @rule("C-40")
    async def test_a_timer_that_is_gone_is_made_again(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        first = await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR, idempotency_key="reminder")
        await store.timers.cancel(first.timer_id)
        again = await store.timers.schedule(flow.flow_instance_id, "ship", after=2 * _HOUR, idempotency_key="reminder")
        assert again.due_at == first.due_at + _HOUR
        assert await store.timers.list_for_instance(flow.flow_instance_id) == [again]

    @rule("C-40")
    @pytest.mark.parametrize("commits", [True, False])
    async def test_two_callers_at_the_same_time_make_one_timer(
        self, store: Store, other_store: Store, commits: bool
    ) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            first = await uow.timers.schedule(
                flow.flow_instance_id, "ship", after=_HOUR, payload="first", idempotency_key="reminder"
            )
            schedule = other_store.timers.schedule
            second = self.started(
                schedule(flow.flow_instance_id, "ship", after=_HOUR, payload="second", idempotency_key="reminder")
            )
            await self.settled(second)
            if not commits:
                await uow.rollback()
        made = await self.finished(second)
        assert made.payload == ("first" if commits else "second")
        assert made.timer_id == first.timer_id
        assert await store.timers.list_for_instance(flow.flow_instance_id) == [made]


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
