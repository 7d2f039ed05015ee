"""Worker: handlers get what is ready, and what they do commits with its acknowledgement, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.coordination import Backoff, GiveUp, Retry, Worker
from cascade_state.errors import InvalidArgument, LeaseLost, UnitOfWorkFinished, UsageError
from cascade_state.model.correlations import Delivery
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.timers import Timer, TimerStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, PATIENCE, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = [
    "WorkerContract",
    "WorkerFailuresContract",
    "WorkerMisuseContract",
    "WorkerSettlingContract",
    "WorkerStoppingContract",
]

_NOW = timedelta(0)
_SECOND = timedelta(seconds=1)
_HOUR = timedelta(hours=1)
_SOON = timedelta(milliseconds=50)
_AT_ONCE = Backoff(initial=MOMENT, maximum=MOMENT, jitter=0)


class _Workers(StoreContract):
    """Ways to run a worker in a test and to wait for what it does."""

    @asynccontextmanager
    async def running(self, store: Store, **options: Any) -> AsyncIterator[Worker]:
        """Runs a worker for as long as the block lasts, and checks that it stops well."""
        options.setdefault("poll_interval", _SOON)
        options.setdefault("backoff", _AT_ONCE)
        worker = Worker(store, handle_signals=False, **options)
        task = self.started(worker.run())
        try:
            yield worker
        finally:
            await self.finished(worker.stop())
            await self.finished(task)

    async def until(self, condition: Callable[[], Any | Awaitable[Any]], *, ticking: FrozenClock | None = None) -> None:
        """Waits until a condition holds; the patience of the suite is the limit.

        Args:
            ticking: A clock that is moved a little meanwhile, so that what is to be tried again at once is due.
        """
        async with asyncio.timeout(PATIENCE):
            while True:
                holds = condition()
                if await holds if isinstance(holds, Awaitable) else holds:
                    return
                if ticking is not None:
                    ticking.advance(MOMENT)
                await asyncio.sleep(0.002)

    async def timer(self, store: Store, *, after: timedelta = _NOW, **options: Any) -> Timer:
        flow = await factories.add_flow(store)
        return await store.timers.schedule(flow.flow_instance_id, "ship", after=after, **options)

    async def delivery(self, store: Store, payload: Any = None) -> FlowInstance:
        key = factories.unique("key")
        flow = await factories.add_flow(store, waits_for=key)
        await store.correlations.publish(key, payload)
        return flow

    async def orphan(self, store: Store, clock: FrozenClock) -> FlowInstance:
        flow = await factories.add_flow(store)
        only = FlowInstanceFilter(flow_id=flow.flow_id)
        assert len(await store.flow_instances.claim("vanished", filter=only, lease_duration=LEASE)) == 1
        clock.advance(LEASE)
        return flow

    async def is_gone(self, store: Store, timer: Timer) -> bool:
        return await store.timers.find(timer.timer_id) is None


class WorkerContract(_Workers):
    """What is ready reaches its handler."""

    @rule("Workers", "C-44")
    async def test_a_timer_that_is_due_is_handled_and_gone(self, store: Store) -> None:
        timer = await self.timer(store, payload={"n": 1})
        seen: list[Timer] = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            seen.append(item)
            await uow.component_states.put(item.flow_instance_id, "ship", {"fired": item.payload})

        async with self.running(store, on_timer=on_timer) as worker:
            await self.until(lambda: self.is_gone(store, timer))
            assert worker.worker_id is not None
            (item,) = seen
            assert (item.timer_id, item.attempts) == (timer.timer_id, 1)
            assert item.lease is not None
            assert item.lease.holder == worker.worker_id
        assert (await store.component_states.get(timer.flow_instance_id, "ship")).state == {"fired": {"n": 1}}

    @rule("Workers", "C-45")
    async def test_a_timer_is_handled_when_its_instant_comes_and_not_before(
        self, store: Store, clock: FrozenClock
    ) -> None:
        handled: list[Timer] = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            handled.append(item)

        async with self.running(store, on_timer=on_timer, poll_interval=_HOUR):
            timer = await self.timer(store, after=_HOUR)
            clock.advance(_HOUR - timedelta(microseconds=1))
            await asyncio.sleep(0.1)  # it has every chance to come early
            assert handled == []
            clock.advance(timedelta(microseconds=1))
            await self.until(lambda: self.is_gone(store, timer))
        assert [item.timer_id for item in handled] == [timer.timer_id]

    @rule("Workers", "Hints")
    async def test_a_hint_wakes_it_long_before_its_poll(self, store: Store, other_store: Store) -> None:
        handled: list[object] = []

        async def handle(item: Timer | Delivery, uow: UnitOfWork) -> None:
            handled.append(item)

        async with self.running(store, on_timer=handle, on_delivery=handle, poll_interval=_HOUR):
            await asyncio.sleep(0.2)  # it is asleep by now
            await self.timer(other_store)
            await self.until(lambda: len(handled) == 1)
            await self.delivery(other_store, {"n": 1})
            await self.until(lambda: len(handled) == 2)

    @rule("Workers", "C-34")
    async def test_a_delivery_is_handled_and_acknowledged(self, store: Store) -> None:
        flow = await self.delivery(store, {"status": "delivered"})

        async def on_delivery(item: Delivery, uow: UnitOfWork) -> None:
            found = await uow.flow_instances.get(item.flow_instance_id)
            await uow.advance(found.resume().complete_step("ship", item.payload), completes=[item])

        async with self.running(store, on_delivery=on_delivery):
            await self.until(lambda: self._has_step(store, flow))
        stored = await store.flow_instances.get(flow.flow_instance_id)
        assert stored.step_output("ship", "status") == "delivered"
        assert (await store.statistics()).deliveries_pending == 0

    async def _has_step(self, store: Store, flow: FlowInstance) -> bool:
        return "ship" in (await store.flow_instances.get(flow.flow_instance_id)).completed_steps

    @rule("Workers", "C-35")
    async def test_a_wait_that_expires_is_handled_as_a_time_out(self, store: Store, clock: FrozenClock) -> None:
        await factories.add_flow(store, waits_for="parcel-77", expires_at=clock.now() + _HOUR)
        handled: list[Delivery] = []

        async def on_delivery(item: Delivery, uow: UnitOfWork) -> None:
            handled.append(item)

        async with self.running(store, on_delivery=on_delivery, poll_interval=_HOUR):
            clock.advance(_HOUR)
            await self.until(lambda: handled)
        assert handled[0].timed_out

    @rule("Workers", "C-50")
    async def test_an_orphan_is_handled_and_its_lease_given_back(self, store: Store, clock: FrozenClock) -> None:
        flow = await self.orphan(store, clock)
        unclaimed = await factories.add_flow(store)
        handled: list[FlowInstance] = []

        async def on_orphan(item: FlowInstance, uow: UnitOfWork) -> None:
            handled.append(await uow.advance(item.complete_step("charge"), lease=item.lease))

        async with self.running(store, on_orphan=on_orphan):
            await self.until(lambda: handled)
            await self.until(lambda: self._is_free(store, flow))
            await asyncio.sleep(0.1)  # it is not found again
        assert [item.flow_instance_id for item in handled] == [flow.flow_instance_id]
        stored = await store.flow_instances.get(flow.flow_instance_id)
        assert stored.status is FlowStatus.RUNNING
        assert stored.completed_steps == {"charge"}
        assert (await store.flow_instances.get(unclaimed.flow_instance_id)).version == 1

    async def _is_free(self, store: Store, flow: FlowInstance) -> bool:
        return (await store.flow_instances.get(flow.flow_instance_id)).lease is None

    @rule("Workers")
    async def test_several_workers_share_the_work_and_do_nothing_twice(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store)
        timers = [
            await store.timers.schedule(flow.flow_instance_id, f"step-{number}", after=_NOW) for number in range(60)
        ]
        handled: dict[str, list[str]] = {"one": [], "two": []}
        both = asyncio.Barrier(2)

        def handler(name: str) -> Callable[[Timer, UnitOfWork], Awaitable[None]]:
            async def on_timer(item: Timer, uow: UnitOfWork) -> None:
                if not handled[name]:
                    handled[name].append(item.step_id)
                    async with asyncio.timeout(PATIENCE):
                        await both.wait()  # each of them works
                else:
                    handled[name].append(item.step_id)

            return on_timer

        async with (
            self.running(store, on_timer=handler("one"), concurrency=4),
            self.running(other_store, on_timer=handler("two"), concurrency=4),
        ):
            await self.until(lambda: sum(map(len, handled.values())) >= len(timers))
            for timer in timers:
                await self.until(lambda timer=timer: self.is_gone(store, timer))  # type: ignore[misc]
        assert sorted(handled["one"] + handled["two"]) == sorted(timer.step_id for timer in timers)
        assert handled["one"]
        assert handled["two"]

    @rule("Workers")
    async def test_no_more_handlers_run_at_once_than_asked_for_and_no_more_is_claimed(self, store: Store) -> None:
        timers = [await self.timer(store) for _ in range(9)]
        running = most = 0
        go_on = asyncio.Event()

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await go_on.wait()
            running -= 1

        async with self.running(store, on_timer=on_timer, concurrency=3, grace_period=_HOUR) as worker:
            await self.until(lambda: running == 3)
            assert worker.in_hand == 3
            pending = [timer for timer in timers if (await store.timers.get(timer.timer_id)).attempts == 0]
            assert len(pending) == 6
            go_on.set()
            for timer in timers:
                await self.until(lambda timer=timer: self.is_gone(store, timer))  # type: ignore[misc]
        assert most == 3

    @rule("Workers")
    async def test_a_backlog_of_one_kind_does_not_starve_the_other(self, store: Store) -> None:
        for _ in range(30):
            await self.timer(store)
        delivered = asyncio.Event()
        before: list[str] = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            before.append(item.step_id)

        async def on_delivery(item: Delivery, uow: UnitOfWork) -> None:
            delivered.set()

        await self.delivery(store)
        async with self.running(store, on_timer=on_timer, on_delivery=on_delivery, concurrency=1):
            await self.finished(delivered.wait())
            assert len(before) < 30

    @rule("Workers")
    async def test_it_works_in_a_replica_set_too(self, store: Store, other_store: Store) -> None:
        handled: dict[str, set[int]] = {"one": set(), "two": set()}

        def handler(name: str) -> Callable[[Timer, UnitOfWork], Awaitable[None]]:
            async def on_timer(item: Timer, uow: UnitOfWork) -> None:
                handled[name].add(item.flow_instance_id.int & 0xFF)

            return on_timer

        options: dict[str, Any] = {
            "replica_set": "shipping",
            "heartbeat_interval": timedelta(milliseconds=100),
            "stale_after": timedelta(seconds=20),
        }
        async with (
            self.running(store, on_timer=handler("one"), **options),
            self.running(other_store, on_timer=handler("two"), **options),
        ):
            await self.until(lambda: self._is_shared(store))
            timers = [await self.timer(store) for _ in range(40)]
            for timer in timers:
                await self.until(lambda timer=timer: self.is_gone(store, timer))  # type: ignore[misc]
        assert handled["one"]
        assert handled["two"]
        assert not handled["one"] & handled["two"]
        assert await store.replica_sets.list_workers("shipping") == []

    async def _is_shared(self, store: Store) -> bool:
        owners = [item.owner for item in await store.replica_sets.list_assignments("shipping")]
        return sorted(owners.count(owner) for owner in set(owners) - {None}) == [128, 128]


class WorkerSettlingContract(_Workers):
    """The effect and the acknowledgement commit together, whoever of handler and worker acknowledges."""

    _SETTLING: dict[str, Callable[[Timer, UnitOfWork], Awaitable[object]]] = {  # noqa: RUF012 - never changed
        "nothing": lambda item, uow: asyncio.sleep(0),
        "complete": lambda item, uow: uow.timers.complete([item]),
        "cancel": lambda item, uow: uow.timers.cancel(item.timer_id),
        "remove": lambda item, uow: uow.flow_instances.remove(item.flow_instance_id),
        "give up": lambda item, uow: uow.timers.give_up(item, reason="enough"),
    }

    @rule("Workers", "C-44")
    @pytest.mark.parametrize("way", sorted(_SETTLING))
    async def test_a_handler_may_settle_its_item_in_any_way(self, store: Store, way: str) -> None:
        timer = await self.timer(store)
        calls = 0

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            nonlocal calls
            calls += 1
            await uow.flow_instances.remove(item.flow_instance_id) if way == "remove" else None
            if way != "remove":
                await uow.component_states.put(item.flow_instance_id, "ship", calls)
                await self._SETTLING[way](item, uow)

        async with self.running(store, on_timer=on_timer) as worker:
            await self.until(lambda: calls and worker.in_hand == 0)
            await asyncio.sleep(0.1)  # it does not come back
        assert calls == 1
        if way != "remove":
            assert (await store.component_states.get(timer.flow_instance_id, "ship")).state == 1
        assert await claim_timers(store) == []

    @rule("Workers", "C-24")
    async def test_ending_the_flow_settles_its_timer_and_its_delivery(self, store: Store) -> None:
        timer = await self.timer(store)
        flow = await self.delivery(store)
        calls: list[object] = []

        async def end(item: Timer | Delivery, uow: UnitOfWork) -> None:
            calls.append(item)
            await uow.advance((await uow.flow_instances.get(item.flow_instance_id)).cancel("enough"))

        async with self.running(store, on_timer=end, on_delivery=end) as worker:
            await self.until(lambda: len(calls) == 2 and worker.in_hand == 0)
        for flow_instance_id in (timer.flow_instance_id, flow.flow_instance_id):
            assert (await store.flow_instances.get(flow_instance_id)).status is FlowStatus.CANCELLED
        assert len(calls) == 2

    @rule("Workers", "C-43")
    async def test_a_timer_that_is_moved_by_its_handler_comes_again(self, store: Store, clock: FrozenClock) -> None:
        timer = await self.timer(store)
        calls = 0

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                await uow.timers.reschedule(item.timer_id, clock.now() + _HOUR)

        async with self.running(store, on_timer=on_timer) as worker:
            await self.until(lambda: calls == 1 and worker.in_hand == 0)
            assert (await store.timers.get(timer.timer_id)).due_at == clock.now() + _HOUR
            clock.advance(_HOUR)
            await self.until(lambda: self.is_gone(store, timer))
        assert calls == 2

    @rule("Workers", "C-23", "C-43")
    async def test_what_was_taken_away_meanwhile_is_undone(self, store: Store, other_store: Store) -> None:
        timer = await self.timer(store)
        calls: list[Timer] = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            await uow.component_states.put(item.flow_instance_id, "ship", "stale")
            assert await other_store.timers.cancel(item.timer_id)
            calls.append(item)

        async with self.running(store, on_timer=on_timer) as worker:
            await self.until(lambda: calls and worker.in_hand == 0)
        assert await store.component_states.find(timer.flow_instance_id, "ship") is None
        assert len(calls) == 1

    @rule("Workers", "C-50")
    async def test_a_handler_whose_lease_expired_and_was_taken_stores_nothing(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        timer = await self.timer(store)
        taken: list[Timer] = []
        outcome: list[str] = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            clock.advance(LEASE)
            taken.extend(await claim_timers(other_store, "worker-2"))
            await uow.component_states.put(item.flow_instance_id, "ship", "stale")
            with pytest.raises(LeaseLost):
                await uow.advance(
                    (await uow.flow_instances.get(item.flow_instance_id)).complete_step("ship"), completes=[item]
                )
            outcome.append("refused")  # and it goes on, as if nothing had happened

        # One place: the worker itself must not be the one that takes it.
        async with self.running(store, on_timer=on_timer, lease_duration=LEASE, concurrency=1) as worker:
            await self.until(lambda: outcome and worker.in_hand == 0)
        assert outcome == ["refused"]
        assert await store.component_states.find(timer.flow_instance_id, "ship") is None
        assert (await store.flow_instances.get(timer.flow_instance_id)).completed_steps == set()
        assert (await store.timers.get(timer.timer_id)).lease == taken[0].lease

    @rule("Workers", "C-04")
    async def test_an_acknowledgement_that_a_savepoint_undid_is_made_up_for(self, store: Store) -> None:
        timer = await self.timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            with pytest.raises(RuntimeError):
                async with uow.savepoint():
                    found = await uow.flow_instances.get(item.flow_instance_id)
                    await uow.advance(found.complete_step("charge"), completes=[item])
                    assert uow.has_settled(item)
                    raise RuntimeError("undo this")
            assert not uow.has_settled(item)
            await uow.component_states.put(item.flow_instance_id, "ship", "kept")

        async with self.running(store, on_timer=on_timer):
            await self.until(lambda: self.is_gone(store, timer))
        assert (await store.component_states.get(timer.flow_instance_id, "ship")).state == "kept"

    @rule("Workers", "C-03")
    async def test_a_handler_that_rolls_back_has_not_handled_its_item(self, store: Store, clock: FrozenClock) -> None:
        timer = await self.timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            if item.attempts == 1:
                found = await uow.flow_instances.get(item.flow_instance_id)
                await uow.advance(found.complete_step("charge"), completes=[item])
                await uow.rollback()
                with pytest.raises(UnitOfWorkFinished):
                    uow.has_settled(item)

        async with self.running(store, on_timer=on_timer):
            await self.until(lambda: self.is_gone(store, timer), ticking=clock)
        assert (await store.flow_instances.get(timer.flow_instance_id)).completed_steps == set()

    @rule("Workers")
    async def test_a_unit_of_work_knows_what_it_settled(self, store: Store, clock: FrozenClock) -> None:
        await self.timer(store)
        await self.timer(store)
        one, two = await claim_timers(store)
        orphan = await self.orphan(store, clock)
        async with store.begin() as uow:
            assert not uow.has_settled(one)
            assert not uow.has_settled(orphan)
            found = await uow.flow_instances.get(one.flow_instance_id)
            await uow.advance(found.complete_step("charge"), completes=[one])
            assert uow.has_settled(one)
            assert not uow.has_settled(two)
            await uow.advance((await uow.flow_instances.get(two.flow_instance_id)).fail("x"))
            await uow.advance(orphan.complete())
            assert uow.has_settled(two)
            assert uow.has_settled(orphan)

    @rule("Workers")
    async def test_a_unit_of_work_can_be_told_how_long_it_may_be_idle(self, store: Store) -> None:
        async with store.begin() as uow:
            await uow.limit_idle(_HOUR)
            await uow.limit_idle(timedelta(days=36_500))
            with pytest.raises(InvalidArgument):
                await uow.limit_idle(_NOW)


class WorkerFailuresContract(_Workers):
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


class WorkerStoppingContract(_Workers):
    """A worker stops when it is told to, and leaves nothing claimed behind."""

    @rule("Workers")
    async def test_an_idle_worker_stops_at_once(self, store: Store) -> None:
        async def handle(item: Any, uow: UnitOfWork) -> None: ...

        worker = Worker(store, on_timer=handle, on_delivery=handle, on_orphan=handle, poll_interval=_HOUR)
        task = self.started(worker.run())
        await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self.finished(worker.stop())
        assert task.done()
        assert loop.time() - began < 1
        assert worker.worker_id is None
        assert worker.in_hand == 0

    @rule("Workers")
    async def test_running_handlers_are_let_finish(self, store: Store) -> None:
        timer = await self.timer(store)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            begun.set()
            await go_on.wait()

        worker = Worker(store, on_timer=on_timer, grace_period=_HOUR)
        task = self.started(worker.run())
        await self.finished(begun.wait())
        late = await self.timer(store)
        stopping = self.started(worker.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        go_on.set()
        await self.finished(stopping)
        await self.finished(task)
        assert await self.is_gone(store, timer)
        left = await store.timers.find(late.timer_id)
        assert left is None or left.status is TimerStatus.PENDING

    @rule("Workers")
    async def test_after_the_grace_period_handlers_are_cancelled_and_their_items_released(self, store: Store) -> None:
        timer = await self.timer(store)
        flow = await self.delivery(store)
        begun: list[object] = []
        cancelled: list[object] = []

        async def hang(item: Timer | Delivery, uow: UnitOfWork) -> None:
            begun.append(item)
            await uow.component_states.put(item.flow_instance_id, "ship", "half done")
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(item)

        worker = Worker(store, on_timer=hang, on_delivery=hang, grace_period=_SOON)
        task = self.started(worker.run())
        await self.until(lambda: len(begun) == 2)
        await self.finished(worker.stop())
        await self.finished(task)
        assert len(cancelled) == 2
        released = await store.timers.get(timer.timer_id)
        assert (released.status, released.lease) == (TimerStatus.PENDING, None)
        assert len(await store.correlations.claim_delivered("next", lease_duration=LEASE)) == 1
        for flow_instance_id in (timer.flow_instance_id, flow.flow_instance_id):
            assert await store.component_states.find(flow_instance_id, "ship") is None

    @rule("Workers", "C-02")
    async def test_a_run_that_is_cancelled_cleans_up(self, store: Store, clock: FrozenClock) -> None:
        timer = await self.timer(store)
        orphan = await self.orphan(store, clock)
        begun: list[object] = []

        async def hang(item: Timer | FlowInstance, uow: UnitOfWork) -> None:
            begun.append(item)
            await asyncio.Event().wait()

        worker = Worker(store, on_timer=hang, on_orphan=hang, grace_period=_HOUR, replica_set="shipping")
        task = self.started(worker.run())
        await self.until(lambda: len(begun) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.finished(task)
        assert (await store.timers.get(timer.timer_id)).lease is None
        assert await store.replica_sets.list_workers("shipping") == []
        clock.advance(timedelta(microseconds=1))
        (again,) = await store.flow_instances.claim("next", lease_duration=LEASE, orphans=True)
        assert again.flow_instance_id == orphan.flow_instance_id
        assert await self.observer.open_transactions() == []

    @rule("Workers")
    async def test_a_handler_that_swallows_its_cancellation_does_not_keep_the_worker(self, store: Store) -> None:
        timer = await self.timer(store)
        begun, let_go = asyncio.Event(), asyncio.Event()

        async def stubborn(item: Timer, uow: UnitOfWork) -> None:
            begun.set()
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            await uow.component_states.put(item.flow_instance_id, "ship", "too late")

        worker = Worker(store, on_timer=stubborn, grace_period=_NOW)
        task = self.started(worker.run())
        await self.finished(begun.wait())
        await self.finished(worker.stop())
        await self.finished(task)
        assert (await store.timers.get(timer.timer_id)).lease is None
        let_go.set()
        (left,) = [one for one in asyncio.all_tasks() if one.get_name().startswith("timer of")]
        await asyncio.wait([left], timeout=PATIENCE)
        assert await store.component_states.find(timer.flow_instance_id, "ship") is None
        assert not await self.is_gone(store, timer)

    @rule("Workers")
    async def test_a_handler_may_stop_its_worker(self, store: Store) -> None:
        timer = await self.timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            await worker.stop()

        worker = Worker(store, on_timer=on_timer)
        await self.finished(worker.run())
        assert await self.is_gone(store, timer)

    @rule("Workers")
    async def test_a_worker_can_be_run_again_and_is_another_holder_then(self, store: Store) -> None:
        ids: list[str | None] = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            ids.append(worker.worker_id)
            await worker.stop()

        worker = Worker(store, on_timer=on_timer, name="shipping")
        for _ in range(2):
            await self.timer(store)
            await self.finished(worker.run())
        assert len(set(ids)) == 2
        assert all(str(identity).startswith("shipping-") for identity in ids)

    @rule("Workers")
    async def test_a_worker_that_was_stopped_before_it_ran_does_not_run(self, store: Store) -> None:
        timer = await self.timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            await worker.stop()

        worker = Worker(store, on_timer=on_timer)
        await worker.stop()
        await self.finished(worker.run())
        assert not await self.is_gone(store, timer)
        await self.finished(worker.run())
        assert await self.is_gone(store, timer)


class WorkerMisuseContract(_Workers):
    """What cannot work is refused at once, in clear words."""

    @rule("Workers", "Errors")
    @pytest.mark.parametrize(
        "options",
        [
            {"concurrency": 0},
            {"concurrency": 1.5},
            {"batch_size": 0},
            {"lease_duration": _NOW},
            {"lease_duration": timedelta(milliseconds=99)},
            {"lease_duration": 30},
            {"poll_interval": _NOW},
            {"grace_period": -_SECOND},
            {"name": ""},
            {"replica_set": ""},
            {"replica_set": "x", "heartbeat_interval": _SECOND, "stale_after": 2 * _SECOND},
            {"on_timer": "handler"},
        ],
        ids=str,
    )
    async def test_unusable_options_are_refused(self, store: Store, options: dict[str, Any]) -> None:
        async def handle(item: Any, uow: UnitOfWork) -> None: ...

        with pytest.raises(UsageError):
            Worker(store, **{"on_timer": handle, **options})

    @rule("Workers", "Errors")
    async def test_a_worker_without_handlers_is_refused(self, store: Store) -> None:
        with pytest.raises(UsageError, match="on_timer"):
            Worker(store)

    @rule("Workers", "Errors")
    async def test_a_worker_runs_once_at_a_time(self, store: Store) -> None:
        async def handle(item: Any, uow: UnitOfWork) -> None: ...

        async with self.running(store, on_timer=handle) as worker:
            await self.until(lambda: worker.worker_id)
            with pytest.raises(UsageError):
                await worker.run()

    @rule("Workers")
    async def test_two_workers_of_one_name_are_two_holders(self, store: Store, other_store: Store) -> None:
        async def handle(item: Any, uow: UnitOfWork) -> None: ...

        options: dict[str, Any] = {"on_timer": handle, "name": "same", "replica_set": "shipping"}
        async with self.running(store, **options) as one, self.running(other_store, **options) as two:
            await self.until(lambda: one.worker_id and two.worker_id and one.worker_id != two.worker_id)

            async def both_joined() -> bool:
                return len(await store.replica_sets.list_workers("shipping")) == 2

            await self.until(both_joined)

    @rule("Workers", "C-51")
    async def test_a_clock_that_jumps_is_harmless(self, store: Store, clock: FrozenClock) -> None:
        handled: list[Timer] = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            handled.append(item)

        async with self.running(store, on_timer=on_timer):
            timer = await self.timer(store, after=_HOUR)
            start = clock.now()
            clock.set(start - 24 * _HOUR)
            await asyncio.sleep(0.1)
            assert handled == []
            clock.set(start + 24 * _HOUR)
            await self.until(lambda: self.is_gone(store, timer))
            clock.set(start)
            early = await self.timer(store)
            await self.until(lambda: self.is_gone(store, early))
        assert [item.timer_id for item in handled] == [timer.timer_id, early.timer_id]
