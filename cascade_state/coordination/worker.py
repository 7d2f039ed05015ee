"""Worker: loops that claim timers, deliveries and orphaned flows, and hand each to a handler with a unit of work.

What a worker rests on is the lease. Whatever it believes, and however late it comes, a commit states the token of the
item that it is about (or finds the item gone), so of all workers that ever held an item exactly one commits. All the
rest here is about not wasting work: leases are renewed while handlers run, a loop sleeps until something is due, a
worker that stops gives back what it holds.

`_Run` is one run of a worker. Its tasks are a loop for each kind of item, a task for each handler, one that keeps the
leases, one that listens for hints, and one that follows the share in the replica set.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, nullcontext
from datetime import timedelta
from typing import Any, TypeAlias

from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.store import Store
from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.coordination.backoff import Backoff
from cascade_state.coordination.claiming import ClaimLoop
from cascade_state.coordination.handling import Desk
from cascade_state.coordination.kinds import Deliveries, Kind, Orphans, Timers
from cascade_state.coordination.leases import keep_leases
from cascade_state.coordination.member import Member
from cascade_state.coordination.replica_set import ReplicaSet
from cascade_state.coordination.settings import Settings, check_store
from cascade_state.coordination.signals import called_on_signals
from cascade_state.coordination.slots import Slots
from cascade_state.coordination.store_time import StoreTime
from cascade_state.errors import InvalidArgument, StoreUnavailable, TransactionAborted, UsageError
from cascade_state.model.arguments import check_count, check_duration, check_kind, check_optional_key
from cascade_state.model.correlations import Delivery
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import Timer

__all__ = ["DeliveryHandler", "OrphanHandler", "TimerHandler", "Worker"]

_log = logging.getLogger("cascade_state.worker")

TimerHandler: TypeAlias = Callable[[Timer, UnitOfWork], Awaitable[object]]
DeliveryHandler: TypeAlias = Callable[[Delivery, UnitOfWork], Awaitable[object]]
OrphanHandler: TypeAlias = Callable[[FlowInstance, UnitOfWork], Awaitable[object]]

_SHORTEST_LEASE = timedelta(milliseconds=100)
_CLAIM_SECONDS = 5.0  # how long a claim that is under way may take to end when the worker stops
_REJOIN = Backoff(initial=timedelta(milliseconds=100), maximum=timedelta(seconds=5))


class Worker:
    """Hands timers that are due, deliveries, and orphaned flows to handlers: `await Worker(store, on_timer=…).run()`.

    A handler is called with a claimed item and a unit of work, `async def handler(item, uow)`. When it returns, what it
    wrote and the acknowledgement of the item commit together; the worker acknowledges what the handler has not settled
    itself (`completes=`, ending the flow, moving the timer …). When it raises, everything is undone and the item is
    tried again after a growing wait, its error kept as `last_error`, until its attempts are used up; `Retry` and
    `GiveUp` say otherwise. So inside the database every item has its effect exactly once; what a handler does outside
    of it happens at least once.

    Orphans are RUNNING flows whose lease has expired: somebody claimed them with `flow_instances.claim`, and vanished.
    A flow that nobody claimed is no orphan, nor is one that waits (a flow that is suspended for one step counts as
    waiting, even if another of its steps could run). Acknowledging an orphan means giving back its lease.

    In a replica set a worker claims only in its own partitions, and its handlers' transactions are fenced: they commit
    only while the partition is its own. Without one, workers share everything, and leases alone decide.
    """

    def __init__(
        self,
        store: Store,
        *,
        replica_set: str | ReplicaSet | None = None,
        on_timer: TimerHandler | None = None,
        on_delivery: DeliveryHandler | None = None,
        on_orphan: OrphanHandler | None = None,
        concurrency: int = 32,
        batch_size: int = 100,
        lease_duration: timedelta = timedelta(seconds=30),
        poll_interval: timedelta = timedelta(seconds=5),
        grace_period: timedelta = timedelta(seconds=10),
        heartbeat_interval: timedelta = timedelta(seconds=5),
        stale_after: timedelta = timedelta(seconds=30),
        backoff: Backoff | None = None,
        handle_signals: bool = True,
        name: str | None = None,
    ) -> None:
        """Describes a worker; nothing is sent before `run`.

        Args:
            store: An open store. Each handler that runs uses a connection of its pool, so no more run at once than its
                `pool_size`.
            replica_set: Its name, or a `ReplicaSet`, which brings its own intervals.
            on_timer: Called for timers. A kind without a handler is not claimed; give at least one.
            on_delivery: Called for deliveries.
            on_orphan: Called for orphans.
            concurrency: How many handlers run at once, over all kinds. No more is claimed than can start at once.
            batch_size: How much is claimed at once, at most.
            lease_duration: How long what a killed worker held stays untouched. Leases of what is in hand are renewed at
                a third of it. It is also how long a handler's transaction may be idle before the server ends it.
            poll_interval: How long something may lie that no hint and no due time announced.
            grace_period: How long handlers may go on after `stop`, before they are cancelled.
            heartbeat_interval: Of the replica set.
            stale_after: Of the replica set; at least three intervals.
            backoff: The waits after failures; None: `Backoff()`.
            handle_signals: Whether SIGTERM and SIGINT stop the worker gracefully (in the main thread only); a second
                one ends the grace period.
            name: What the worker's id begins with; None: host and process id. It need not be unique.

        Raises:
            InvalidArgument: A count or a duration is unusable.
            UsageError: There is no handler.
        """
        handlers = {"timer": on_timer, "delivery": on_delivery, "orphan": on_orphan}
        for kind, handler in handlers.items():
            if handler is not None and not callable(handler):
                raise InvalidArgument(argument=f"on_{kind}", reason="must be a coroutine function")
        if all(handler is None for handler in handlers.values()):
            raise UsageError("a worker needs a handler: on_timer, on_delivery or on_orphan")
        if check_duration(lease_duration, "lease_duration") < _SHORTEST_LEASE:
            raise InvalidArgument(argument="lease_duration", reason=f"must be at least {_SHORTEST_LEASE}")
        self._store = check_store(store)
        self._handlers = handlers
        self._settings = Settings(
            concurrency=check_count(concurrency, "concurrency", maximum=10_000),
            batch_size=check_count(batch_size, "batch_size", maximum=10_000),
            lease_duration=lease_duration,
            poll_interval=check_duration(poll_interval, "poll_interval"),
            backoff=Backoff() if backoff is None else backoff,
        )
        self._grace_period = check_duration(grace_period, "grace_period", allow_zero=True)
        self._name = check_optional_key(name, "name") or f"{socket.gethostname()}-{os.getpid()}"
        if isinstance(replica_set, str):
            replica_set = ReplicaSet(
                store,
                replica_set,
                heartbeat_interval=heartbeat_interval,
                stale_after=stale_after,
                worker_name=self._name,
            )
        self._replica_set = None if replica_set is None else check_kind(replica_set, ReplicaSet, "replica_set")
        self._handle_signals = handle_signals
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._finished = asyncio.Event()
        self._run: _Run | None = None

    @property
    def worker_id(self) -> str | None:
        """The id of this run, which holds its leases; None while it does not run. It is never used again."""
        return None if self._run is None else self._run.worker_id

    @property
    def in_hand(self) -> int:
        """How many items the worker holds."""
        return 0 if self._run is None else len(self._run.desk.in_hand)

    async def run(self) -> None:
        """Works until it is stopped, by `stop`, a signal, or cancellation; can be run again then.

        Whatever ends it: nothing more is claimed, handlers are waited for (not when cancelled) and then cancelled, what
        is left in hand is released, the replica set is left. Errors of the store are got over with growing waits.

        Raises:
            UsageError: It runs already.
            SchemaMismatch: The database has not been migrated.
        """
        if self._run is not None:
            raise UsageError("the worker runs already")
        self._run = run = _Run(self._store, self._handlers, self._settings, self._replica_set, self._name)
        self._finished.clear()
        try:
            with called_on_signals(self._on_signal) if self._handle_signals else nullcontext():
                if not self._stopping.is_set():
                    await run.until(self._stopping, self._grace_period, self._hurry)
        finally:
            self._run = None
            self._stopping.clear()
            self._hurry.clear()
            self._finished.set()

    async def stop(self) -> None:
        """Stops the worker gracefully, and returns when it has stopped; from within a handler it returns at once.

        Called before `run`, it makes the next `run` return at once.
        """
        self._stopping.set()
        run = self._run
        if run is not None and not run.desk.is_handler(asyncio.current_task()):
            await self._finished.wait()

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()


class _Run:
    """One run of a worker, from its first claim to its last release."""

    def __init__(
        self,
        store: Store,
        handlers: dict[str, Callable[[Any, UnitOfWork], Awaitable[object]] | None],
        settings: Settings,
        replica_set: ReplicaSet | None,
        name: str,
    ) -> None:
        self._store = store
        self._settings = settings
        self._replica_set = replica_set
        self._own_id = f"{name}-{secrets.token_hex(6)}"
        self._member: Member | None = None
        self._partition_count = store.options.partition_count
        size = settings.concurrency
        if store.capabilities.caller_sql:
            size = min(size, store.options.pool_size)
        self._slots = Slots(size)
        self._time = StoreTime(store)
        self.desk = Desk(store, settings, self._slots, self._time)
        kinds: list[Kind] = [Timers(store), Deliveries(store), Orphans(store)]
        self._loops = [
            ClaimLoop(kind, handler, self, self.desk, self._slots, self._time, settings)
            for kind in kinds
            if (handler := handlers[kind.name]) is not None
        ]
        self._size = size

    @property
    def worker_id(self) -> str:
        """Who holds the leases."""
        return self._own_id if self._member is None else self._member.worker_id

    @property
    def member(self) -> Member | None:
        """The membership in the replica set, if there is one."""
        return self._member

    def partitions(self) -> frozenset[int] | None:
        """Returns where to claim; None: everywhere."""
        if self._replica_set is None:
            return None
        mine = frozenset() if self._member is None else self._member.partitions
        return None if len(mine) == self._partition_count else mine

    async def until(self, stopping: asyncio.Event, grace_period: timedelta, hurry: asyncio.Event) -> None:
        """Works until told to stop, then ends everything."""
        tasks: list[asyncio.Task[Any]] = []
        async with AsyncExitStack() as stack:
            try:
                await self._begin(stack, stopping)
                if not stopping.is_set():
                    tasks = self._started(stopping)
                    await self._work(tasks, stopping)
            except BaseException:
                await run_to_completion(self._end(tasks, timedelta(0), hurry))
                raise
            # A cancellation from here on ends the grace period.
            await _unless_cancelled(self._end(tasks, grace_period, hurry), hurry)

    async def _begin(self, stack: AsyncExitStack, stopping: asyncio.Event) -> None:
        """Joins the replica set; a store that cannot be reached yet is waited for."""
        attempt = 0
        while self._replica_set is not None and not stopping.is_set():
            try:
                self._member = await stack.enter_async_context(self._replica_set.join())
            except (StoreUnavailable, TransactionAborted) as error:
                attempt += 1
                _log.warning("cannot join yet replica_set=%s reason=%s", self._replica_set.name, error)
                await self._time.wait(stopping, None, _REJOIN.delay(attempt).total_seconds())
            else:
                break
        _log.info(
            "started worker_id=%s kinds=%s concurrency=%d replica_set=%s",
            self.worker_id,
            ",".join(loop.kind.name for loop in self._loops),
            self._size,
            None if self._replica_set is None else self._replica_set.name,
        )

    def _started(self, stopping: asyncio.Event) -> list[asyncio.Task[Any]]:
        jobs: list[Coroutine[Any, Any, object]] = [loop.run() for loop in self._loops]
        jobs += [keep_leases(self.desk, self._settings.lease_duration), self._listen()]
        if self._member is not None:
            jobs.append(self._follow_share(self._member))
        return [asyncio.ensure_future(job) for job in (stopping.wait(), *jobs)]

    async def _work(self, tasks: list[asyncio.Task[Any]], stopping: asyncio.Event) -> None:
        """Returns when told to stop; a task that ends by itself has failed, and its error ends the run."""
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.is_set():
            for task in ended:
                task.result()

    async def _listen(self) -> None:
        async with self._store.listen() as hints:
            self._wake(None)  # for what was committed before it listened
            while True:
                heard = await hints.wait()
                mine = self.partitions()
                if mine is None or heard & mine:
                    self._wake("hint")

    async def _follow_share(self, member: Member) -> None:
        share = member.share
        while True:
            self.desk.drop_foreign(share)
            self._wake(None)
            share = await member.changed(since=share)

    def _wake(self, reason: str | None) -> None:
        for loop in self._loops:
            loop.wake(reason)

    async def _end(self, tasks: list[asyncio.Task[Any]], grace_period: timedelta, hurry: asyncio.Event) -> None:
        """No new claims; then handlers may end, are cancelled, and what is left in hand is released."""
        _log.info("stopping worker_id=%s in_hand=%d", self.worker_id, len(self.desk.in_hand))
        self.desk.close()
        for loop in self._loops:
            loop.stop()
        if tasks:
            _, *workers = tasks
            loops = workers[: len(self._loops)]
            await asyncio.wait(loops, timeout=_CLAIM_SECONDS)
            await _cancelled(loops)
        await self.desk.finish(grace_period, hurry)
        await _cancelled(tasks)
        await self.desk.release()
        _log.info("stopped worker_id=%s", self.worker_id)


async def _cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(error, Exception):
            _log.debug("a task of the worker failed", exc_info=error)


async def _unless_cancelled(work: Coroutine[Any, Any, None], hurry: asyncio.Event) -> None:
    """Runs `work` to its end; a cancellation meanwhile makes it hurry, and is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
            hurry.set()
    if cancelled is not None:
        raise cancelled
    task.result()
