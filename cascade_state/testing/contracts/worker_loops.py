"""Worker: what is ready reaches its handler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from cascade_state.abc import Store, UnitOfWork
from cascade_state.model.correlations import Delivery
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.timers import Timer
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import PATIENCE
from cascade_state.testing.contracts.rules import rule
from cascade_state.testing.contracts.working import Workers

__all__ = ["WorkerContract"]

_NOW = timedelta(0)
_HOUR = timedelta(hours=1)


class WorkerContract(Workers):
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
