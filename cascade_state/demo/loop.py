"""The loop of a worker: claims deliveries, due timers and flows, and hands each to the engine.

It is written on the store's claims, because an engine's calls may outlast a lease, and must then not hold a transaction
open; whoever has handlers that are short uses `cascade_state.coordination.Worker`, which does all of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from cascade_state import (
    Delivery,
    FlowInstance,
    FlowInstanceFilter,
    FlowStatus,
    LeaseLost,
    Store,
    Timer,
    partition_of,
)
from cascade_state.coordination import Member
from cascade_state.demo.engine import Engine, Fence

__all__ = ["Worker", "WorkerOptions"]

Claimed: TypeAlias = FlowInstance | Delivery | Timer
Claim: TypeAlias = Callable[..., Awaitable[Sequence[Claimed]]]
Work: TypeAlias = Callable[[Engine, Any], Coroutine[Any, Any, None]]

# In the order of the claims.
_WORKS: tuple[Work, ...] = (Engine.deliver, Engine.fire, Engine.drive)

_DRIVABLE = FlowInstanceFilter(statuses=(FlowStatus.INITIALIZING, FlowStatus.RUNNING))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works."""

    concurrency: int = 16  # answers from outside take most of the time, so more than cores
    lease_duration: timedelta = timedelta(seconds=2)  # what a dead worker held stays untouched for that long
    poll_interval: timedelta = timedelta(
        milliseconds=40
    )  # how long an event or timer may lie when nothing else happens


class Worker:
    """Claims work under a name of its own and lets an engine do it.

    A name is never used twice: a restarted worker is another holder and waits for the leases of the one before. As a
    member of a replica set it works in its own partitions only, and each of its commits is fenced by their generation.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        *,
        name: str,
        member: Member | None = None,
        options: WorkerOptions | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._member = member
        self._options = options or WorkerOptions()
        self.holder: str = f"{name}/{secrets.token_hex(4)}"
        self._held: dict[asyncio.Task[None], Claimed] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then finishes what it has in hand. An error of the engine ends it."""
        stopped = asyncio.create_task(stop.wait())
        renewing = asyncio.create_task(self._keep_leases())
        try:
            while not stop.is_set():
                claimed = await self._take(self._options.concurrency - len(self._held))
                full = len(self._held) >= self._options.concurrency
                if claimed and not full:
                    continue
                timeout = None if full else self._options.poll_interval.total_seconds()
                await asyncio.wait(
                    (stopped, renewing, *self._held), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                self._raise_errors(renewing)
            while self._held:
                await asyncio.wait(self._held, return_when=asyncio.FIRST_COMPLETED)
                self._raise_errors(renewing)
        finally:
            await _cancelled(stopped, renewing, *self._held)

    async def run_until_idle(self) -> int:
        """Works until nothing can be claimed; returns how much was claimed. For tests that move the time themselves."""
        total = 0
        try:
            while claimed := await self._take(self._options.concurrency):
                total += claimed
                while self._held:
                    await asyncio.wait(self._held)
                    self._raise_errors()
        finally:
            await _cancelled(*self._held)
        return total

    async def _take(self, limit: int) -> int:
        """Claims up to `limit` pieces of work, starts on them, and returns how many.

        Deliveries and timers first: they are short, and they go on with what has waited already.
        """
        before = len(self._held)
        # The share as it is now. What moves away meanwhile is not begun, and comes back when its lease has ended.
        partitions = None if self._member is None else self._member.partitions
        lease = {"lease_duration": self._options.lease_duration, "partitions": partitions}
        claims: list[Claim] = [
            self._store.correlations.claim_delivered,
            self._store.timers.claim_due,
            self._claim_flows,
        ]
        for claim, work in zip(claims, _WORKS, strict=True):
            if limit > 0 and partitions != frozenset():
                claimed = await claim(self.holder, limit=limit, **lease)
                limit -= len(claimed)
                for item in claimed:
                    self._held[asyncio.create_task(self._worked(item, work))] = item
        return len(self._held) - before

    async def _claim_flows(self, holder: str, **options: Any) -> list[FlowInstance]:
        return await self._store.flow_instances.claim(holder, filter=_DRIVABLE, **options)

    async def _worked(self, item: Claimed, work: Work) -> None:
        """Lets the engine do one piece of work, as long as its partition is this worker's."""
        if self._member is None:
            await work(self._engine, item)
            return
        partition_id = partition_of(item.flow_instance_id, self._store.options.partition_count)
        with self._member.working_in(partition_id) as generation:
            await work(self._engine.under(Fence(self._member.replica_set, partition_id, generation)), item)

    def _raise_errors(self, *others: asyncio.Task[None]) -> None:
        for task in [task for task in (*others, *self._held) if task.done()]:
            self._held.pop(task, None)
            # A lost lease is nothing to worry about: the commit was refused, and somebody else has the work.
            with contextlib.suppress(LeaseLost):
                task.result()

    async def _keep_leases(self) -> None:
        """Renews the leases of everything in hand, at a third of their length, in one statement a kind."""
        while True:
            await asyncio.sleep(self._options.lease_duration.total_seconds() / 3)
            held = list(self._held.values())
            lease_duration = self._options.lease_duration
            await self._store.flow_instances.renew(_of(FlowInstance, held), lease_duration)
            await self._store.correlations.renew(_of(Delivery, held), lease_duration)
            await self._store.timers.renew(_of(Timer, held), lease_duration)


def _of(kind: type[Any], items: list[Any]) -> list[Any]:
    return [item for item in items if isinstance(item, kind)]


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
