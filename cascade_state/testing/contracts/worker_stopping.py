"""Worker: a worker stops when it is told to, and leaves nothing claimed behind."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.coordination import Worker
from cascade_state.model.correlations import Delivery
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import Timer, TimerStatus
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, PATIENCE
from cascade_state.testing.contracts.rules import rule
from cascade_state.testing.contracts.working import Workers

__all__ = ["WorkerStoppingContract"]

_NOW = timedelta(0)
_HOUR = timedelta(hours=1)
_SOON = timedelta(milliseconds=50)


class WorkerStoppingContract(Workers):
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
