"""Worker: what cannot work is refused at once, in clear words."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.coordination import FeedConsumer, ReplicaSet, Worker
from cascade_state.errors import InvalidArgument, UsageError
from cascade_state.model.timers import Timer
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.rules import rule
from cascade_state.testing.contracts.working import Workers

__all__ = ["WorkerMisuseContract"]

_NOW = timedelta(0)
_SECOND = timedelta(seconds=1)
_HOUR = timedelta(hours=1)


class WorkerMisuseContract(Workers):
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
            {"replica_set": 7},
            {"replica_set": "x", "heartbeat_interval": _SECOND, "stale_after": 2 * _SECOND},
            {"on_timer": "handler"},
        ],
        ids=str,
    )
    async def test_unusable_options_are_refused(self, store: Store, options: dict[str, Any]) -> None:
        async def handle(item: Any, uow: UnitOfWork) -> None: ...

        with pytest.raises(InvalidArgument) as caught:
            Worker(store, **{"on_timer": handle, **options})
        assert caught.value.argument in {*options, "name"}  # the name of a replica set

    @rule("Workers", "Errors")
    @pytest.mark.parametrize("given", [None, "memory://"])
    async def test_a_store_of_another_kind_is_refused(self, given: Any) -> None:
        async def handle(item: Any, uow: UnitOfWork) -> None: ...

        for make in (
            lambda: Worker(given, on_timer=handle),
            lambda: FeedConsumer(given, name="invoices", handler=handle),
            lambda: ReplicaSet(given, "shipping"),
        ):
            with pytest.raises(InvalidArgument) as caught:
                make()
            assert caught.value.argument == "store"

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
