"""FeedConsumer: hands every committed event to a handler, once, in the order of its flow.

A consumer has a checkpoint in each partition. A batch of events and a unit of work go to the handler, and the
checkpoint moves in that unit of work, from exactly where the batch was read: whoever handles a batch a second time (a
worker that was stopped and continued, two that meet at a hand-over) finds the checkpoint elsewhere and commits nothing.
So what a handler writes into the database is there exactly once. Workers of one consumer share the partitions as a
replica set; the generation of a partition, checked in the same transaction, keeps them out of each other's way.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from datetime import timedelta

from cascade_state.abc.store import Store
from cascade_state.coordination.backoff import Backoff
from cascade_state.coordination.feed_handling import FeedHandler, FeedSettings
from cascade_state.coordination.feed_run import STORE_BACKOFF, STORE_TROUBLE, FeedRun
from cascade_state.coordination.replica_set import ReplicaSet
from cascade_state.coordination.signals import called_on_signals
from cascade_state.errors import InvalidArgument, UsageError
from cascade_state.model.arguments import check_count, check_duration, check_key
from cascade_state.model.feeds import FEED_CONSUMER, FeedLag, FeedStart, check_start

__all__ = ["FeedConsumer"]

_log = logging.getLogger("cascade_state.feed")

_LARGEST_BATCH = 10_000


class FeedConsumer:
    """Hands the feed to a handler: `await FeedConsumer(store, name="invoices", handler=handle).run()`.

    The handler is called with a batch of one partition and a unit of work, `async def handler(events, uow)`. When it
    returns, what it wrote in the unit of work and the checkpoint commit together. When it raises, everything is
    undone and the batch comes again after a growing wait; its partition stands still meanwhile, the others go on.
    Events of one flow come in order; between flows nothing is promised. What a handler does outside the database
    happens at least once.

    Any number of workers, in one process or many, may run a consumer of one name: they share the partitions. Consumers
    of different names are independent.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        handler: FeedHandler,
        replica_set: str | ReplicaSet | None = None,
        start: FeedStart = "beginning",
        batch_size: int = 500,
        concurrency: int = 4,
        strict: bool = False,
        poll_interval: timedelta = timedelta(seconds=5),
        grace_period: timedelta = timedelta(seconds=10),
        heartbeat_interval: timedelta = timedelta(seconds=5),
        stale_after: timedelta = timedelta(seconds=30),
        backoff: Backoff | None = None,
        handle_signals: bool = True,
    ) -> None:
        """Describes a consumer; nothing is sent before `run`.

        Args:
            store: An open store. Each batch in hand uses a connection of its pool.
            name: What its progress is kept under, for good.
            handler: `async def handler(events, uow)`; `events` is a list of `FlowEvent`, never empty.
            replica_set: The name of the set that its workers belong to, or a `ReplicaSet`, which brings its own
                intervals. The workers of each consumer in it share the partitions among themselves, so that a
                `Worker` and any number of consumers may name the same one; see `members`.
            start: Where it starts when this name is first seen: at the oldest event that is there, or now.
            batch_size: How many events a batch has at most.
            concurrency: How many batches, of different partitions, are in hand at once.
            strict: Whether `run` raises what the handler raised, instead of trying again. What passes by itself, such
                as a broken connection or a deadlock, is tried again all the same.
            poll_interval: How long an event may lie that no hint announced.
            grace_period: How long handlers may go on after `stop`, before they are cancelled.
            heartbeat_interval: Of the replica set.
            stale_after: Of the replica set; at least three intervals. A handler's transaction may be idle for as
                long; then the server ends it.
            backoff: The waits after failures; None: `Backoff()`.
            handle_signals: Whether SIGTERM and SIGINT stop it gracefully (in the main thread only); a second one
                ends the grace period.

        Raises:
            InvalidArgument: An argument is unusable.
        """
        if not callable(handler):
            raise InvalidArgument(argument="handler", reason="must be a coroutine function")
        self._store = store
        self._settings = FeedSettings(
            name=check_key(name, "name"),
            handler=handler,
            start=check_start(start),
            batch_size=check_count(batch_size, "batch_size", maximum=_LARGEST_BATCH),
            concurrency=check_count(concurrency, "concurrency", maximum=1_000),
            strict=bool(strict),
            poll_interval=check_duration(poll_interval, "poll_interval"),
            grace_period=check_duration(grace_period, "grace_period", allow_zero=True),
            backoff=backoff or Backoff(),
        )
        self._replica_set = _members(store, name, replica_set, heartbeat_interval, stale_after)
        self._handle_signals = handle_signals
        self._is_running = False
        self._run: FeedRun | None = None  # while it is a member of the set
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def name(self) -> str:
        """The name of the consumer."""
        return self._settings.name

    @property
    def members(self) -> str:
        """The name of the replica set in which the workers of this consumer are listed."""
        return self._replica_set.name

    async def run(self) -> None:
        """Works until it is stopped or cancelled; gets over whatever happens to the server meanwhile.

        Raises:
            UsageError: It is running already.
            Exception: What the handler raised, or what says that an event cannot be read, if it is strict.
        """
        if self._is_running:
            raise UsageError("this consumer is running; make another one to run twice")
        self._is_running = True
        self._ended.clear()
        try:
            with called_on_signals(self._stop_or_hurry) if self._handle_signals else nullcontext():
                await self._work()
        finally:
            self._is_running = False
            self._stopping.clear()
            self._hurry.clear()
            self._ended.set()

    async def stop(self) -> None:
        """Stops it gracefully, and returns when it has stopped: no new batches, those in hand are finished.

        From within a handler it returns at once. Called before `run`, it makes the next `run` return at once.
        """
        self._stopping.set()
        is_handler = self._run is not None and self._run.is_handler(asyncio.current_task())
        if self._is_running and not is_handler:
            await self._ended.wait()

    async def pause(self) -> None:
        """Pauses the consumer, everywhere, until it is resumed; batches in hand are finished."""
        await self._register()
        await self._store.feeds.pause(self.name)

    async def resume(self) -> None:
        """Lets the consumer go on, everywhere, where it was."""
        await self._register()
        await self._store.feeds.resume(self.name)

    async def reset(self, start: FeedStart = "beginning") -> None:
        """Puts the consumer back to the beginning, or to now.

        Raises:
            UsageError: It is running somewhere. A worker that was killed counts as running for `stale_after`.
        """
        if self._is_running:
            raise UsageError(f"the consumer {self.name!r} is running; stop it first")
        await self._store.feeds.reset(self.name, start)

    async def lag(self) -> FeedLag:
        """Returns how much is committed that it has not handled."""
        await self._register()
        return await self._store.feeds.lag(self.name)

    async def _register(self) -> None:
        await self._store.feeds.register(self.name, start=self._settings.start)

    def _stop_or_hurry(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def _work(self) -> None:
        """Joins and works; again and again, as long as what ends it is trouble with the store."""
        trouble = 0
        while not self._stopping.is_set():
            try:
                await self._register()
                async with self._store.listen("events") as hints, self._replica_set.join() as member:
                    trouble = 0
                    self._run = FeedRun(
                        self._store,
                        self._settings,
                        member,
                        hints,
                        idle_timeout=self._replica_set.stale_after,
                        stopping=self._stopping,
                        hurry=self._hurry,
                    )
                    await self._run.work()
            except STORE_TROUBLE as error:
                trouble += 1
                _log.info("cannot work consumer=%s reason=%s", self.name, error)
                await _wait_for(self._stopping, STORE_BACKOFF.delay(trouble))
            finally:
                self._run = None


def _members(
    store: Store,
    name: str,
    replica_set: str | ReplicaSet | None,
    heartbeat_interval: timedelta,
    stale_after: timedelta,
) -> ReplicaSet:
    """Returns the set that the workers of one consumer form.

    Every worker of a set gets a share of the partitions. Would consumers, or consumers and other loops, be members of
    one and the same set, each would get a part and nobody would do the rest of its work.
    """
    given = replica_set if isinstance(replica_set, ReplicaSet) else None
    base = given.name if given is not None else replica_set
    group = f"feed/{name}" if base is None else f"{check_key(base, 'replica_set')}/feed/{name}"
    check_key(group, "replica_set and name, together")
    return ReplicaSet(
        store,
        group,
        heartbeat_interval=given.heartbeat_interval if given is not None else heartbeat_interval,
        stale_after=given.stale_after if given is not None else stale_after,
        worker_name=given.worker_name if given is not None else None,
        metadata={**(given.metadata if given is not None else {}), FEED_CONSUMER: name},
    )


async def _wait_for(stopping: asyncio.Event, duration: timedelta) -> None:
    try:
        async with asyncio.timeout(duration.total_seconds()):
            await stopping.wait()
    except TimeoutError:
        pass
