"""Ways to run a worker in a test, and what the contracts of workers have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from cascade_state.abc import Store
from cascade_state.coordination import Backoff, Worker
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import Timer
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, PATIENCE, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT

__all__ = ["Workers"]

_NOW = timedelta(0)
_SOON = timedelta(milliseconds=50)
_AT_ONCE = Backoff(initial=MOMENT, maximum=MOMENT, jitter=0)


class Workers(StoreContract):
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

    async def waiting_timer(self, store: Store) -> Timer:
        flow = (await factories.add_flow(store)).suspend_for_timer("ship", after=_NOW)
        return await store.timers.get((await store.advance(flow)).pending_timers["ship"])

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
