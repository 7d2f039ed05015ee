"""Waits for locks: they end in time, and whoever gives up holds nothing (LCK-06)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    LockNotAcquired,
)
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.locks import held_lock, in_queue, is_free
from cascade_state.testing.contracts.rules import rule

__all__ = ["LockWaitsContract"]

_MOMENT = timedelta(milliseconds=40)
_OVERSHOOT_SECONDS = 0.02


async def _least_seconds(attempt: Callable[[], Awaitable[object]], enough: float) -> float:
    """Returns the shortest time that an attempt took: a busy machine makes some of them late, but hardly all."""
    least = float("inf")
    for _ in range(20):
        began = time.monotonic()
        await attempt()
        least = min(least, time.monotonic() - began)
        if least <= enough:
            break
    return least


class LockWaitsContract(StoreContract):
    """How `store.locks` waits."""

    @rule("LCK-06")
    async def test_without_time_there_is_one_try(self, store: Store, other_store: Store) -> None:
        lock = await held_lock(store, "month", timeout=timedelta(0))
        assert await other_store.locks.try_acquire("month", timeout=timedelta(0)) is None
        await lock.release()
        assert await is_free(other_store, "month")

    @rule("LCK-06")
    async def test_the_shortest_time_is_enough_for_a_free_lock(self, store: Store) -> None:
        async with store.locks.hold("month", timeout=timedelta(microseconds=1)) as lock:
            await lock.check()

    @rule("LCK-06")
    @pytest.mark.parametrize("in_transaction", [False, True])
    async def test_a_time_out_is_kept_neither_early_nor_late(
        self, store: Store, other_store: Store, in_transaction: bool
    ) -> None:
        enough = _MOMENT.total_seconds() + _OVERSHOOT_SECONDS

        async def attempt() -> None:
            assert await other_store.locks.try_acquire("month", timeout=_MOMENT) is None

        async with store.locks.hold("month"):
            if not in_transaction:
                seconds = await _least_seconds(attempt, enough)
            else:
                async with other_store.begin() as uow:

                    async def attempt_inside() -> None:
                        with pytest.raises(LockNotAcquired):
                            await uow.lock("month", timeout=_MOMENT)

                    seconds = await _least_seconds(attempt_inside, enough)
        assert _MOMENT.total_seconds() <= seconds <= enough

    @rule("LCK-06")
    async def test_a_free_lock_cancelled_at_any_await_is_not_held(self, store: Store, other_store: Store) -> None:
        async def operation() -> None:
            async with store.locks.hold("month") as lock:
                await lock.check()

        async def check(completed: bool) -> None:
            assert await other_store.locks.list_held() == []
            assert await is_free(other_store, "month")

        cancellations = await self.cancelled_at_every_await(operation, check)
        assert cancellations > 0 or not store.capabilities.cross_process  # inside one process nothing is awaited

    @rule("LCK-06")
    async def test_a_wait_cancelled_at_any_await_is_not_held(self, store: Store, other_store: Store) -> None:
        async def operation() -> None:
            assert await store.locks.try_acquire("month", timeout=timedelta(milliseconds=2)) is None

        async def check(completed: bool) -> None:
            (info,) = await other_store.locks.list_held()
            assert info.granted

        lock = await held_lock(other_store, "month")
        assert await self.cancelled_at_every_await(operation, check) > 0
        await lock.release()
        assert await is_free(store, "month")

    @rule("LCK-06")
    async def test_a_wait_cancelled_while_it_is_granted_is_not_held(self, store: Store, other_store: Store) -> None:
        for turns in (*range(8), 20, 50, 100):
            lock = await held_lock(other_store, "month")
            waiting = self.started(store.locks.try_acquire("month", timeout=None))
            await in_queue(other_store, 1)
            releasing = self.started(lock.release())
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await self.finished(releasing)
            try:
                granted = await self.finished(waiting)
            except asyncio.CancelledError:
                granted = None
            if granted is not None:  # it was over before the cancellation
                await granted.release()
            assert await other_store.locks.list_held() == []
