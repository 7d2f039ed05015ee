"""Worker: a handler that fails is tried again, until it succeeds or its attempts are used up."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from cascade_state.abc import Store, UnitOfWork
from cascade_state.coordination import Backoff, GiveUp, Retry
from cascade_state.errors import LeaseLost
from cascade_state.model.correlations import Delivery
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.timers import Timer, TimerStatus
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.rules import rule
from cascade_state.testing.contracts.working import Workers

__all__ = ["WorkerFailuresContract"]

_SECOND = timedelta(seconds=1)
_HOUR = timedelta(hours=1)


class WorkerFailuresContract(Workers):
    """A handler that fails is tried again, until it succeeds or its attempts are used up."""

    @rule("Workers", "C-44")
    async def test_what_raises_is_undone_recorded_and_tried_again(self, store: Store, clock: FrozenClock) -> None:
        timer = await self.timer(store)
        backoff = Backoff(initial=_SECOND, factor=3, jitter=0)
        waits = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            await uow.component_states.put(item.flow_instance_id, "ship", item.attempts)
            if item.attempts < 4:
                raise ValueError(f"attempt {item.attempts}\x00")

        async with self.running(store, on_timer=on_timer, backoff=backoff):
            for attempt in (1, 2, 3):
                await self.until(lambda attempt=attempt: self._failed(store, timer, attempt))  # type: ignore[misc]
                waiting = await store.timers.get(timer.timer_id)
                assert waiting.last_error == f"ValueError: attempt {attempt}"
                assert await store.component_states.find(timer.flow_instance_id, "ship") is None
                waits.append(waiting.due_at - clock.now())
                clock.set(waiting.due_at)
            await self.until(lambda: self.is_gone(store, timer))
        assert waits == [_SECOND, 3 * _SECOND, 9 * _SECOND]
        assert (await store.component_states.get(timer.flow_instance_id, "ship")).state == 4

    async def _failed(self, store: Store, timer: Timer, attempts: int) -> bool:
        found = await store.timers.get(timer.timer_id)
        return (found.attempts, found.status) == (attempts, TimerStatus.PENDING)

    @rule("Workers", "C-44")
    async def test_a_timer_that_always_fails_dies_and_blocks_nobody(self, store: Store, clock: FrozenClock) -> None:
        poison = await self.timer(store, max_attempts=3)
        others = [await self.timer(store) for _ in range(5)]

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            if item.timer_id == poison.timer_id:
                raise ValueError("poison")

        async with self.running(store, on_timer=on_timer, concurrency=1):
            for timer in others:
                await self.until(lambda timer=timer: self.is_gone(store, timer))  # type: ignore[misc]
            await self.until(lambda: store.timers.list_dead(), ticking=clock)
        (dead,) = await store.timers.list_dead()
        assert (dead.timer_id, dead.attempts, dead.last_error) == (poison.timer_id, 3, "ValueError: poison")

    @rule("Workers", "C-44")
    async def test_a_delivery_that_always_fails_becomes_a_dead_letter(self, store: Store, clock: FrozenClock) -> None:
        await self.delivery(store, {"n": 1})

        async def on_delivery(item: Delivery, uow: UnitOfWork) -> None:
            raise ValueError("poison")

        async with self.running(store, on_delivery=on_delivery):
            await self.until(lambda: store.correlations.list_dead_letters(), ticking=clock)
        (letter,) = await store.correlations.list_dead_letters()
        assert (letter.payload, letter.reason) == ({"n": 1}, "ValueError: poison")

    @rule("Workers")
    async def test_a_handler_may_ask_for_another_attempt_after_a_while(self, store: Store, clock: FrozenClock) -> None:
        timer = await self.timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            if item.attempts == 1:
                raise Retry(_HOUR, "carrier closed")

        async with self.running(store, on_timer=on_timer):
            await self.until(lambda: self._failed(store, timer, 1))
            waiting = await store.timers.get(timer.timer_id)
            assert (waiting.due_at, waiting.last_error) == (clock.now() + _HOUR, "carrier closed")
            clock.advance(_HOUR)
            await self.until(lambda: self.is_gone(store, timer))

    @rule("Workers")
    async def test_a_handler_may_give_up(self, store: Store, clock: FrozenClock) -> None:
        timer = await self.timer(store)
        flow = await self.delivery(store, {"n": 1})
        orphan = await self.orphan(store, clock)
        calls: list[object] = []

        async def give_up(item: Timer | Delivery | FlowInstance, uow: UnitOfWork) -> None:
            calls.append(item)
            await uow.component_states.put(item.flow_instance_id, "note", "undone")
            raise GiveUp("unknown address")

        async with self.running(store, on_timer=give_up, on_delivery=give_up, on_orphan=give_up) as worker:
            await self.until(lambda: len(calls) == 3 and worker.in_hand == 0)
            await asyncio.sleep(0.1)  # none of them comes again
        assert len(calls) == 3
        (dead,) = await store.timers.list_dead()
        assert (dead.timer_id, dead.last_error) == (timer.timer_id, "unknown address")
        (letter,) = await store.correlations.list_dead_letters()
        assert (letter.payload, letter.reason) == ({"n": 1}, "unknown address")
        assert (await store.flow_instances.get(orphan.flow_instance_id)).lease is None
        for flow_instance_id in (timer.flow_instance_id, flow.flow_instance_id, orphan.flow_instance_id):
            assert await store.component_states.find(flow_instance_id, "note") is None

    @rule("Workers")
    async def test_an_orphan_whose_handler_fails_is_tried_again(self, store: Store, clock: FrozenClock) -> None:
        flow = await self.orphan(store, clock)
        calls = 0

        async def on_orphan(item: FlowInstance, uow: UnitOfWork) -> None:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise ValueError("down")
            await uow.advance(item.complete(), lease=item.lease)

        async with self.running(store, on_orphan=on_orphan, backoff=Backoff(initial=_SECOND, jitter=0)):
            for attempt in (1, 2):
                await self.until(lambda attempt=attempt: calls == attempt)  # type: ignore[misc]
                await self.until(lambda attempt=attempt: self._waits(store, flow, attempt * _SECOND, clock))  # type: ignore[misc]
                clock.advance(attempt * _SECOND)
            await self.until(lambda: calls == 3)
        assert (await store.flow_instances.get(flow.flow_instance_id)).status is FlowStatus.COMPLETED

    async def _waits(self, store: Store, flow: FlowInstance, wait: timedelta, clock: FrozenClock) -> bool:
        lease = (await store.flow_instances.get(flow.flow_instance_id)).lease
        return lease is not None and lease.expires_at == clock.now() + wait

    @rule("Workers")
    async def test_a_handler_that_cancels_itself_has_failed(self, store: Store, clock: FrozenClock) -> None:
        timer = await self.timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            if item.attempts == 1:
                raise asyncio.CancelledError

        async with self.running(store, on_timer=on_timer):
            await self.until(lambda: self.is_gone(store, timer), ticking=clock)

    @rule("Workers")
    async def test_a_foreign_lease_that_is_lost_is_a_failure_like_any_other(
        self, store: Store, clock: FrozenClock
    ) -> None:
        timer = await self.timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            if item.attempts == 1:
                raise LeaseLost(entity="something else", key="x")

        async with self.running(store, on_timer=on_timer):
            await self.until(lambda: self.is_gone(store, timer), ticking=clock)
