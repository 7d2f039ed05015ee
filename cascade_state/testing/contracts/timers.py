"""Timers: scheduled once, under a key or without (C-40). See also `timer_cancellation` and `timer_claims`."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    FlowInstanceNotFound,
    InvalidArgument,
    InvalidTransition,
    TimerNotFound,
)
from cascade_state.ids import new_flow_instance_id, new_timer_id, partition_of
from cascade_state.model.timers import ScheduleTimer, Timer, TimerStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = ["TimerKeysContract", "TimersContract"]

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
                await store.timers.schedule(flow.flow_instance_id, "ship", **times)
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
        listed: list[Timer] = []
        cursor = None
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
