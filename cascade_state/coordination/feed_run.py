"""One run of a feed consumer as a member of its replica set: what is looked at, and which batch begins, when.

A partition is in one of these places: nobody thinks of it; to be looked at (a hint, the end of a batch, a new share, a
poll); ready, in a queue that gives each its turn; in hand; resting after a failure; or unsettled: it has something new
that cannot be handed out yet. All partitions that are to be looked at are looked at in one statement.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from cascade_state.abc.hints import HintListener
from cascade_state.abc.store import Store
from cascade_state.coordination.backoff import Backoff
from cascade_state.coordination.feed_handling import FeedDesk, FeedSettings, Result
from cascade_state.coordination.member import Member
from cascade_state.errors import StoreUnavailable, TransactionAborted
from cascade_state.model.replica_sets import Membership

__all__ = ["STORE_TROUBLE", "FeedRun"]

_log = logging.getLogger("cascade_state.feed")

# What passes by itself: the server restarts, the connection breaks, somebody else was quicker.
STORE_TROUBLE = (StoreUnavailable, TransactionAborted)
STORE_BACKOFF = Backoff(initial=timedelta(milliseconds=50), maximum=timedelta(seconds=2))

# Most transactions that keep something unsettled end within milliseconds; some take hours.
_FIRST_UNSETTLED_SECONDS = 0.01
_LONGEST_UNSETTLED_SECONDS = 0.5

_CANCEL_SECONDS = 5.0  # how long handlers may take to end once they are cancelled


class FeedRun:
    """Works until `stopping` is set, or a strict consumer fails."""

    def __init__(
        self,
        store: Store,
        settings: FeedSettings,
        member: Member,
        hints: HintListener,
        *,
        idle_timeout: timedelta,
        stopping: asyncio.Event,
        hurry: asyncio.Event,
    ) -> None:
        self._store = store
        self._settings = settings
        self._member = member
        self._hints = hints
        self._stopping = stopping
        self._hurry = hurry
        self._desk = FeedDesk(store, settings, member, idle_timeout)
        self._to_look: set[int] = set()
        self._ready: deque[int] = deque()
        self._tasks: dict[int, asyncio.Task[Result]] = {}
        self._resting: dict[int, float] = {}  # until when
        self._unsettled: set[int] = set()
        self._unsettled_seconds = _FIRST_UNSETTLED_SECONDS
        self._look_at_unsettled = 0.0
        self._next_poll = _now() + settings.poll_interval.total_seconds()  # the share is looked at when it is learnt
        self._trouble = 0  # how often in a row the store did not answer
        self._wake = asyncio.Event()
        self._error: BaseException | None = None  # what ends a strict consumer
        self._over = asyncio.Event()

    async def work(self) -> None:
        """Works; when it ends, nothing of it runs any more.

        Raises:
            Exception: What the handler raised, if the consumer is strict.
        """
        loops: list[asyncio.Task[Any]] = [
            asyncio.ensure_future(loop)
            for loop in (
                self._dispatch(),
                self._follow_hints(),
                self._follow_share(),
                self._stopping.wait(),
                self._over.wait(),
            )
        ]
        grace_seconds = 0.0  # when it is cancelled
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            grace_seconds = self._settings.grace_period.total_seconds()
            for loop in done:
                loop.result()  # raises if it is not one of those that may end
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.wait(loops)
            await self._finish(grace_seconds)
        if self._error is not None:
            raise self._error

    def is_handler(self, task: asyncio.Task[Any] | None) -> bool:
        """Tells whether a task is one that handles a batch."""
        return task in self._tasks.values()

    # Looking and beginning

    async def _dispatch(self) -> None:
        while True:
            self._wake.clear()
            await self._look()
            self._begin_batches()
            await self._pause()

    async def _look(self) -> None:
        """Finds out which partitions have something new, of those that are to be looked at."""
        now = _now()
        mine = self._member.partitions
        wanted = self._due(now)
        wanted |= self._to_look
        busy = self._tasks.keys() | self._resting.keys() | set(self._ready)
        candidates = wanted & mine - busy
        # What is busy is looked at when it ends.
        self._to_look = (self._to_look & mine & busy) - self._resting.keys()
        if not candidates:
            return
        try:
            news = await self._store.feeds.find_news(self._settings.name, candidates)
        except STORE_TROUBLE as error:
            self._trouble += 1
            self._to_look |= candidates
            pause = STORE_BACKOFF.delay(self._trouble)
            _log.info("cannot look for news consumer=%s reason=%s", self._settings.name, error)
            await asyncio.sleep(pause.total_seconds())
            self._wake.set()
            return
        self._trouble = 0
        self._ready.extend(news.ready)
        self._unsettled -= candidates
        self._wait_for(news.unsettled)
        if not self._unsettled:
            self._unsettled_seconds = _FIRST_UNSETTLED_SECONDS

    def _due(self, now: float) -> set[int]:
        """Returns the partitions whose time has come: all of them when it is time to poll."""
        rested = {partition_id for partition_id, until in self._resting.items() if until <= now}
        for partition_id in rested:
            del self._resting[partition_id]
        due = rested
        if self._unsettled and self._look_at_unsettled <= now:
            due |= self._unsettled
            self._unsettled_seconds = min(2 * self._unsettled_seconds, _LONGEST_UNSETTLED_SECONDS)
        if self._next_poll <= now:
            due |= self._member.partitions
            self._next_poll = now + self._settings.poll_interval.total_seconds()
        return due

    def _wait_for(self, partitions: Iterable[int]) -> None:
        """Looks at partitions again in a moment."""
        self._unsettled.update(partitions)
        self._look_at_unsettled = _now() + self._unsettled_seconds

    def _begin_batches(self) -> None:
        while self._ready and len(self._tasks) < self._settings.concurrency:
            partition_id = self._ready.popleft()
            task = asyncio.ensure_future(self._desk.handle(partition_id))
            self._tasks[partition_id] = task
            task.add_done_callback(lambda done, partition_id=partition_id: self._end_batch(partition_id, done))  # type: ignore[misc]

    async def _pause(self) -> None:
        until = min([self._next_poll, *self._resting.values()])
        if self._unsettled:
            until = min(until, self._look_at_unsettled)
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _end_batch(self, partition_id: int, task: asyncio.Task[Result]) -> None:
        del self._tasks[partition_id]
        self._wake.set()
        if task.cancelled():
            self._to_look.add(partition_id)
            return
        error = task.exception()
        if error is not None:
            self._fail(error)
            return
        result = task.result()
        if result.outcome == "full":
            self._ready.append(partition_id)
        elif result.outcome == "done":
            self._to_look.add(partition_id)
        elif result.outcome == "failed":
            if self._settings.strict and result.error is not None:
                self._fail(result.error)
            delay = self._settings.backoff.delay(max(1, result.attempts))
            self._resting[partition_id] = _now() + delay.total_seconds()
        else:
            self._wait_for([partition_id])

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            self._over.set()

    # What others tell

    async def _follow_hints(self) -> None:
        while True:
            heard = await self._hints.wait()
            self._to_look |= heard
            self._wake.set()

    async def _follow_share(self) -> None:
        share = self._member.share
        self._adopt(share)
        while True:
            share = await self._member.changed(since=share)
            self._adopt(share)

    def _adopt(self, share: Membership) -> None:
        """Looks at all of the share, and lets go of what is not in it any more."""
        self._ready = deque(partition_id for partition_id in self._ready if partition_id in share.partitions)
        self._resting = {number: until for number, until in self._resting.items() if number in share.partitions}
        self._unsettled &= share.partitions
        self._to_look |= share.partitions
        for partition_id, generation in list(self._desk.in_hand.items()):
            if generation not in (share.generations.get(partition_id), share.releasing.get(partition_id)):
                _log.warning("partition lost consumer=%s partition_id=%d", self._settings.name, partition_id)
                self._tasks[partition_id].cancel()
        self._wake.set()

    # Ending

    async def _finish(self, grace_seconds: float) -> None:
        """Lets handlers end, cancels those that take longer, and leaves behind those that swallow that."""
        tasks = set(self._tasks.values())
        if tasks and grace_seconds:
            await self._until_done(tasks, grace_seconds)
        pending = {task for task in tasks if not task.done()}
        for task in pending:
            task.cancel()
        if pending:
            _, left = await asyncio.wait(pending, timeout=_CANCEL_SECONDS)
            for _ in left:
                # What it does is refused: its partition has another generation as soon as the worker has left.
                _log.error("a handler does not end when it is cancelled consumer=%s", self._settings.name)
        await asyncio.sleep(0)  # the results of the last batches are taken in

    async def _until_done(self, tasks: set[asyncio.Task[Result]], seconds: float) -> None:
        hurried = asyncio.ensure_future(self._hurry.wait())
        everything = asyncio.ensure_future(asyncio.wait(tasks))
        try:
            await asyncio.wait([hurried, everything], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
            everything.cancel()


def _now() -> float:
    return asyncio.get_running_loop().time()
