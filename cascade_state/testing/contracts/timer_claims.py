"""Claiming timers: when, in which order, by whom, and what becomes of those that fail (C-41, C-42, C-44)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import LeaseLost, TimerNotFound
from cascade_state.ids import new_flow_instance_id, new_timer_id
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import WORN_OUT, Timer, TimerStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = ["FailingTimersContract", "TimerClaimsContract"]

_HOUR = timedelta(hours=1)


class TimerClaimsContract(StoreContract):
    """A due timer has one holder at a time (C-41, C-42)."""

    async def _due(self, store: Store, clock: FrozenClock, count: int) -> tuple[FlowInstance, list[Timer]]:
        """Returns a flow with timers that are due now, in the order in which they are claimed."""
        flow = await factories.add_flow(store)
        timers = [await store.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now()) for _ in range(count)]
        return flow, sorted(timers, key=lambda timer: timer.timer_id)

    # C-41

    @rule("C-41", "C-45")
    async def test_a_timer_is_due_from_its_very_instant_on(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
        clock.advance(_HOUR - MOMENT)
        assert await claim_timers(store) == []
        clock.advance(MOMENT)
        assert [claimed.timer_id for claimed in await claim_timers(store)] == [timer.timer_id]

    @rule("C-41")
    async def test_a_claim_gives_a_lease_and_counts_as_an_attempt(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", after=timedelta(0), payload={"try": 1})
        (claimed,) = await claim_timers(store, "worker-1")
        assert claimed.lease is not None
        assert (claimed.lease.holder, claimed.lease.expires_at) == ("worker-1", clock.now() + LEASE)
        assert (claimed.status, claimed.attempts) == (TimerStatus.CLAIMED, 1)
        assert (claimed.flow_instance_id, claimed.step_id) == (flow.flow_instance_id, "ship")
        assert (claimed.due_at, claimed.payload, claimed.max_attempts) == (timer.due_at, {"try": 1}, 20)
        assert await store.timers.get(timer.timer_id) == claimed

    @rule("C-41")
    async def test_a_claimed_timer_is_due_again_from_the_end_of_its_lease_on(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        await self._due(store, clock, 1)
        (first,) = await claim_timers(store, "worker-1")
        clock.advance(LEASE - MOMENT)
        assert await claim_timers(other_store, "worker-2") == []
        clock.advance(MOMENT)
        (second,) = await claim_timers(other_store, "worker-2")
        assert (second.timer_id, second.attempts) == (first.timer_id, 2)
        assert second.lease is not None
        assert second.lease.holder == "worker-2"

    @rule("C-41")
    async def test_the_earliest_is_claimed_first_and_ties_go_by_id(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        timers = []
        for minutes in (3, 1, 2, 1, 3, 1):
            due_at = clock.now() + timedelta(minutes=minutes)
            timers.append(await store.timers.schedule(flow.flow_instance_id, "ship", due_at=due_at))
        expected = [timer.timer_id for timer in sorted(timers, key=lambda timer: (timer.due_at, timer.timer_id))]
        clock.advance(_HOUR)
        claimed = []
        while batch := await claim_timers(store, limit=2):
            assert len(batch) <= 2
            claimed += [timer.timer_id for timer in batch]
        assert claimed == expected

    @rule("C-41")
    async def test_a_timer_whose_lease_expired_is_ordered_by_its_due_time_too(
        self, store: Store, clock: FrozenClock
    ) -> None:
        _, (old,) = await self._due(store, clock, 1)
        assert len(await claim_timers(store)) == 1
        clock.advance(LEASE)
        _, (new,) = await self._due(store, clock, 1)
        claimed = await claim_timers(store)
        assert [timer.timer_id for timer in claimed] == [old.timer_id, new.timer_id]

    # C-42

    @rule("C-42")
    async def test_two_claimers_never_hold_the_same_timer(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        _, timers = await self._due(store, clock, 24)
        claims = [
            self.started(claim_timers(target, f"worker-{number}", limit=5))
            for number, target in enumerate((store, other_store) * 4)
        ]
        batches = [await self.finished(claim) for claim in claims]
        for number, batch in enumerate(batches):
            assert {timer.lease.holder for timer in batch if timer.lease} <= {f"worker-{number}"}
        claimed = [timer.timer_id for batch in batches for timer in batch]
        claimed += [timer.timer_id for timer in await claim_timers(store)]
        assert sorted(claimed) == [timer.timer_id for timer in timers]

    @rule("C-42")
    async def test_a_claim_neither_sees_nor_waits_for_what_another_unit_of_work_holds(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        _, timers = await self._due(store, clock, 4)
        async with store.begin() as uow:
            mine = await claim_timers(uow, "worker-1", limit=3)
            theirs = await self.finished(self.started(claim_timers(other_store, "worker-2")))
            assert [timer.timer_id for timer in mine] == [timer.timer_id for timer in timers[:3]]
            assert [timer.timer_id for timer in theirs] == [timers[3].timer_id]
        assert await claim_timers(other_store, "worker-2") == []

    @rule("C-42", "C-01")
    async def test_a_claim_neither_sees_nor_waits_for_what_is_scheduled_or_moved_in_an_open_unit_of_work(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        flow, (moved,) = await self._due(store, clock, 1)
        async with store.begin() as uow:
            new = await uow.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now())
            await uow.timers.reschedule(moved.timer_id, clock.now() + _HOUR)
            assert await self.finished(self.started(claim_timers(other_store))) == []
        assert [timer.timer_id for timer in await claim_timers(other_store)] == [new.timer_id]

    @rule("C-42")
    async def test_a_claim_that_is_rolled_back_leaves_no_trace(self, store: Store, clock: FrozenClock) -> None:
        _, timers = await self._due(store, clock, 3)
        async with store.begin() as uow:
            assert len(await claim_timers(uow)) == 3
            await uow.rollback()
        for timer in timers:
            assert await store.timers.get(timer.timer_id) == timer
        assert [timer.attempts for timer in await claim_timers(store)] == [1, 1, 1]

    @rule("C-42", "C-44")
    async def test_a_claim_that_is_rolled_back_buries_nothing_either(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        await store.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now(), max_attempts=1)
        (claimed,) = await claim_timers(store)
        clock.advance(LEASE)
        async with store.begin() as uow:
            assert await claim_timers(uow) == []
            assert len(await uow.timers.list_dead()) == 1
            await uow.rollback()
        assert await store.timers.get(claimed.timer_id) == claimed
        assert await store.timers.list_dead() == []

    @rule("C-42")
    async def test_claims_in_one_unit_of_work_do_not_overlap(self, store: Store, clock: FrozenClock) -> None:
        _, timers = await self._due(store, clock, 3)
        async with store.begin() as uow:
            claimed = await claim_timers(uow, limit=2) + await claim_timers(uow, limit=2)
            assert await claim_timers(uow) == []
        assert [timer.timer_id for timer in claimed] == [timer.timer_id for timer in timers]

    # C-44

    @rule("C-44")
    async def test_a_completed_timer_is_gone(self, store: Store, clock: FrozenClock) -> None:
        flow, _ = await self._due(store, clock, 3)
        first, *others = await claim_timers(store)
        await store.timers.complete([first])
        assert await store.timers.find(first.timer_id) is None
        with pytest.raises(LeaseLost):
            await store.timers.complete([first])
        await store.timers.complete(others)
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []
        clock.advance(_HOUR)
        assert await claim_timers(store) == []

    @rule("C-44")
    async def test_a_timer_completed_in_the_commit_of_its_effect_fires_exactly_once(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store)
        flow = await store.advance(flow.suspend_for_timer("ship", after=timedelta(0)))
        (claimed,) = await claim_timers(store)
        advanced = await store.advance(flow.resume().complete_step("ship", {"fired": 1}), completes=[claimed])
        assert dict(advanced.pending_timers) == {}
        clock.advance(_HOUR)
        assert await claim_timers(store) == []
        assert (await store.flow_instances.get(flow.flow_instance_id)).step_output("ship", "fired") == 1

    @rule("C-44")
    async def test_a_timer_whose_effect_was_rolled_back_fires_again(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        flow = await store.advance(flow.suspend_for_timer("ship", after=timedelta(0)))
        (claimed,) = await claim_timers(store)
        async with store.begin() as uow:
            await uow.advance(flow.resume().complete_step("ship"), completes=[claimed])
            await uow.rollback()
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        assert await store.timers.get(claimed.timer_id) == claimed
        clock.advance(LEASE)
        (again,) = await claim_timers(store)
        assert (again.timer_id, again.attempts) == (claimed.timer_id, 2)
        await store.advance(flow.resume().complete_step("ship"), completes=[again])
        clock.advance(LEASE)
        assert await claim_timers(store) == []

    @rule("C-44")
    async def test_nothing_is_lost_and_nothing_fires_twice_when_holders_come_and_go(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        _, timers = await self._due(store, clock, 20)
        fired = []
        for turn in range(12):
            target = (store, other_store)[turn % 2]
            async with target.begin() as uow:
                claimed = await claim_timers(uow, f"worker-{turn}", limit=4)
                if turn % 3 == 0:  # dies before it commits
                    await uow.rollback()
                    continue
                done = claimed[: len(claimed) if turn % 3 == 1 else 1]  # all of them, or dies after the first
                await uow.timers.complete(done)
            fired += [timer.timer_id for timer in done]
            clock.advance(LEASE)
        fired += [timer.timer_id for timer in await claim_timers(store)]
        assert sorted(fired) == [timer.timer_id for timer in timers]


class FailingTimersContract(StoreContract):
    """A timer whose handling fails is tried again, until it is dead; it never blocks the others (C-44)."""

    async def _claimed(self, store: Store, clock: FrozenClock, *, max_attempts: int | None = None) -> Timer:
        """Returns a timer of a new flow, claimed."""
        flow = await factories.add_flow(store)
        await store.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now(), max_attempts=max_attempts)
        (claimed,) = await claim_timers(store)
        return claimed

    @rule("C-44")
    async def test_retry_gives_it_back_for_later_with_its_error(self, store: Store, clock: FrozenClock) -> None:
        claimed = await self._claimed(store, clock)
        clock.advance(MOMENT)
        back = await store.timers.retry(claimed, after=timedelta(minutes=5), error="carrier down")
        assert (back.status, back.lease) == (TimerStatus.PENDING, None)
        assert (back.due_at, back.attempts) == (clock.now() + timedelta(minutes=5), 1)
        assert back.last_error == "carrier down"
        assert await store.timers.get(claimed.timer_id) == back
        clock.set(back.due_at - MOMENT)
        assert await claim_timers(store) == []
        clock.set(back.due_at)
        (again,) = await claim_timers(store)
        assert (again.timer_id, again.attempts, again.last_error) == (claimed.timer_id, 2, "carrier down")

    @rule("C-44")
    async def test_release_gives_it_back_at_once_and_the_attempt_stays_counted(
        self, store: Store, clock: FrozenClock
    ) -> None:
        claimed = await self._claimed(store, clock)
        await store.timers.release([claimed])
        back = await store.timers.get(claimed.timer_id)
        assert (back.status, back.lease) == (TimerStatus.PENDING, None)
        assert (back.due_at, back.attempts) == (claimed.due_at, 1)
        (again,) = await claim_timers(store)
        assert again.attempts == 2

    @rule("C-44")
    async def test_a_retry_without_an_attempt_left_kills_it(self, store: Store, clock: FrozenClock) -> None:
        claimed = await self._claimed(store, clock, max_attempts=2)
        await store.timers.retry(claimed, after=timedelta(0), error="first try")
        (claimed,) = await claim_timers(store)
        dead = await store.timers.retry(claimed, after=timedelta(0), error="second try")
        assert (dead.status, dead.attempts, dead.last_error) == (TimerStatus.DEAD, 2, "second try")
        assert dead.lease is None
        assert await store.timers.list_dead() == [dead]
        clock.advance(_HOUR)
        assert await claim_timers(store) == []
        assert await store.timers.next_due_at() is None

    @rule("C-44")
    async def test_after_twenty_attempts_it_is_dead(self, store: Store, clock: FrozenClock) -> None:
        claimed = await self._claimed(store, clock)
        for attempt in range(2, 21):
            await store.timers.retry(claimed, after=timedelta(0), error="again")
            (claimed,) = await claim_timers(store)
            assert claimed.attempts == attempt
        dead = await store.timers.retry(claimed, after=timedelta(0), error="once too often")
        assert dead.status is TimerStatus.DEAD
        assert await claim_timers(store) == []

    @rule("C-44")
    async def test_a_timer_whose_holders_vanish_is_dead_in_the_end(self, store: Store, clock: FrozenClock) -> None:
        claimed = await self._claimed(store, clock, max_attempts=3)
        for attempt in (2, 3):
            clock.advance(LEASE)
            (claimed,) = await claim_timers(store)
            assert claimed.attempts == attempt
        clock.advance(LEASE)
        assert await claim_timers(store) == []
        (dead,) = await store.timers.list_dead()
        assert (dead.timer_id, dead.status, dead.attempts) == (claimed.timer_id, TimerStatus.DEAD, 3)
        assert dead.last_error == WORN_OUT
        with pytest.raises(LeaseLost):
            await store.timers.complete([claimed])

    @rule("C-44")
    @pytest.mark.parametrize("limit", [1, 3])
    async def test_poison_timers_do_not_block_the_others(self, store: Store, clock: FrozenClock, limit: int) -> None:
        flow = await factories.add_flow(store)
        for _ in range(10):
            await store.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now(), max_attempts=1)
        assert len(await claim_timers(store)) == 10
        clock.advance(LEASE)
        healthy = [await store.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now()) for _ in range(3)]
        claimed = await claim_timers(store, limit=limit)
        assert [timer.timer_id for timer in claimed] == sorted(timer.timer_id for timer in healthy)[:limit]
        assert len(await store.timers.list_dead()) == 10

    @rule("C-44")
    async def test_given_up_it_is_dead_at_once(self, store: Store, clock: FrozenClock) -> None:
        claimed = await self._claimed(store, clock)
        dead = await store.timers.give_up(claimed, reason="the carrier is no more")
        assert (dead.status, dead.last_error, dead.lease) == (TimerStatus.DEAD, "the carrier is no more", None)
        assert await store.timers.get(claimed.timer_id) == dead
        assert await store.timers.list_for_instance(claimed.flow_instance_id) == [dead]
        clock.advance(_HOUR)
        assert await claim_timers(store) == []
        assert await store.timers.next_due_at() is None

    @rule("C-44", "C-26")
    async def test_the_dead_are_listed_by_due_time_then_id(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        for minutes in (3, 1, 2, 1, 3):
            due_at = clock.now() + timedelta(minutes=minutes)
            await store.timers.schedule(flow.flow_instance_id, "ship", due_at=due_at)
        clock.advance(_HOUR)
        dead = [await store.timers.give_up(timer, reason="enough") for timer in await claim_timers(store)]
        await store.timers.schedule(flow.flow_instance_id, "ship", after=timedelta(0))
        assert dead == sorted(dead, key=lambda timer: (timer.due_at, timer.timer_id))
        listed: list[Timer] = []
        cursor = None
        for _ in range(3):
            page = await store.timers.list_dead(limit=2, cursor=cursor)
            listed += page
            cursor = page.next_cursor
        assert (listed, cursor) == (dead, None)

    @rule("C-44")
    async def test_the_dead_can_be_revived(self, store: Store, clock: FrozenClock) -> None:
        claimed = await self._claimed(store, clock, max_attempts=1)
        await store.timers.retry(claimed, after=_HOUR, error="enough")
        revived = await store.timers.revive(claimed.timer_id)
        assert (revived.status, revived.attempts, revived.lease) == (TimerStatus.PENDING, 0, None)
        assert await store.timers.get(claimed.timer_id) == revived
        assert await store.timers.list_dead() == []
        clock.set(max(clock.now(), revived.due_at))
        (again,) = await claim_timers(store)
        assert (again.timer_id, again.attempts) == (claimed.timer_id, 1)
        assert again.lease is not None
        assert claimed.lease is not None
        assert again.lease.token > claimed.lease.token

    @rule("C-44")
    async def test_a_revived_timer_keeps_its_due_time(self, store: Store, clock: FrozenClock) -> None:
        claimed = await self._claimed(store, clock)
        dead = await store.timers.give_up(claimed, reason="enough")
        clock.advance(_HOUR)
        assert (await store.timers.revive(dead.timer_id)).due_at == claimed.due_at

    @rule("C-44")
    async def test_reviving_the_living_changes_nothing(self, store: Store, clock: FrozenClock) -> None:
        claimed = await self._claimed(store, clock)
        assert await store.timers.revive(claimed.timer_id) == claimed
        await store.timers.complete([claimed])
        with pytest.raises(TimerNotFound):
            await store.timers.revive(claimed.timer_id)
        with pytest.raises(TimerNotFound):
            await store.timers.revive(new_timer_id(new_flow_instance_id()))

    @rule("C-44", "C-43")
    async def test_the_dead_can_be_cancelled(self, store: Store, clock: FrozenClock) -> None:
        claimed = await self._claimed(store, clock)
        await store.timers.give_up(claimed, reason="enough")
        assert await store.timers.cancel(claimed.timer_id)
        assert await store.timers.list_dead() == []
