"""One worker's membership in a replica set: its share, its heartbeats, and when it must stop.

Three things keep a worker from doing harm. The database refuses writes under an old generation (`uow.fence`);
that alone is what safety rests on. The worker itself stops when it has not been heard for `stale_after`,
counted from *before* the last successful heartbeat was sent, so that it stops before anybody can take its
share. And a partition that goes to somebody else is announced (`releasing`) and handed over once the work in
hand there is done, so that in a healthy set nothing is refused at all.

Time is measured by a clock that nobody sets and that goes on while the machine sleeps; a wall clock that
jumps changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from cascade_state.abc.store import Store
from cascade_state.errors import CascadeStateError, LeaseLost, UsageError
from cascade_state.ids import partition_of_key
from cascade_state.model.replica_sets import Membership
from cascade_state.types import JsonObject

__all__ = ["Member", "new_worker_id"]

T = TypeVar("T")

_log = logging.getLogger("cascade_state.coordination")

_HURRY = 4  # beats per interval while partitions are on their way from or to this worker
_HINT_SPACING_SECONDS = 0.1  # a hundred workers that hand over at once must not cost a hundred heartbeats of each
_LONGEST_GOODBYE_SECONDS = 5.0


class Member:
    """A worker of a replica set, as `ReplicaSet.join` gives it.

    What it is told changes with its heartbeats; each change wakes `changed()`. A loop works in `partitions`
    and states `generations` when it writes; it holds `working_in(partition)` while it does. It stops what is
    in hand in a partition that is neither in `generations` nor in `releasing` with the same generation.

    A worker that was removed because it had gone silent joins again by itself, under a new id.
    """

    def __init__(
        self,
        store: Store,
        replica_set: str,
        *,
        worker_name: str,
        heartbeat_interval: timedelta,
        stale_after: timedelta,
        metadata: JsonObject,
    ) -> None:
        self._store = store
        self._replica_set = replica_set
        self._worker_name = worker_name
        self._interval_seconds = heartbeat_interval.total_seconds()
        self._stale_after = stale_after
        # A third, so that there is time for other attempts. Each that fails leaves more to the next one, and one that
        # took long does, too: a server that is slow must not look like one that is gone.
        self._first_limit_seconds = stale_after.total_seconds() / 3
        self._limit_seconds = self._first_limit_seconds
        self._metadata = metadata
        self._share = Membership(replica_set=replica_set, worker_id=new_worker_id(worker_name), generation=0)
        self._alive_until = 0.0  # by `_elapsed`
        self._may_be_registered = False  # a call that failed may have arrived
        self._has_left = False
        self._has_failed = False  # the last heartbeat
        self._expiry: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._nudged = asyncio.Event()
        self._in_hand: Counter[int] = Counter()
        self._released_at: dict[int, float] = {}  # when it was learnt that a partition is to go
        self._heartbeats: asyncio.Task[None] | None = None
        self._hints: asyncio.Task[None] | None = None
        self._unanswered: set[asyncio.Task[Any]] = set()

    # What it knows

    @property
    def replica_set(self) -> str:
        """The name of the set."""
        return self._replica_set

    @property
    def worker_id(self) -> str:
        """The worker's id: its name and a part that is new with each joining."""
        return self._share.worker_id

    @property
    def share(self) -> Membership:
        """All that is known of the share, as one value; it is empty while the worker must not work."""
        return self._share if self.is_alive else self._empty_share(self._share.worker_id)

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions to work in."""
        return self.share.partitions

    @property
    def generations(self) -> Mapping[int, int]:
        """The generation of each partition to work in, for `uow.fence`."""
        return self.share.generations

    @property
    def releasing(self) -> Mapping[int, int]:
        """The partitions that go to somebody else: what is in hand there may be finished, nothing new may begin."""
        return self.share.releasing

    @property
    def generation(self) -> int:
        """How often the membership of the set has changed, as far as this worker knows."""
        return self._share.generation

    @property
    def is_alive(self) -> bool:
        """Whether the worker may work: it was heard less than `stale_after` ago, has not been removed, and not left."""
        return not self._has_left and _elapsed() < self._alive_until

    async def changed(self, *, since: Membership | None = None) -> Membership:
        """Waits until the share is another one, and returns it; at once when the worker has left.

        Args:
            since: The share that the caller knows; None: the present one. Whoever does something else between two
                calls passes it, and misses nothing.
        """
        known = self.share if since is None else since
        while self.share == known and not self._has_left:
            await self._changed.wait()
        return self.share

    @contextmanager
    def working_in(self, partition_id: int) -> Iterator[int]:
        """Says that work is in hand in a partition; gives its generation, to be passed to `uow.fence`.

        The partition is not handed over before the work is done, or `stale_after` has passed since it was to
        be.

        Raises:
            LeaseLost: It is not among the partitions to work in.
        """
        generation = self.generations.get(partition_id)
        if generation is None:
            raise LeaseLost(
                entity=f"partition of replica set {self._replica_set}", key=partition_id, holder=self.worker_id
            )
        self._in_hand[partition_id] += 1
        try:
            yield generation
        finally:
            self._in_hand[partition_id] -= 1
            if not self._in_hand[partition_id]:
                del self._in_hand[partition_id]
                if partition_id in self._released_at:
                    self._nudged.set()

    # Its life

    async def _join(self) -> None:
        await self._register()
        self._heartbeats = asyncio.create_task(self._send_heartbeats(), name=f"heartbeats of {self.worker_id}")
        self._hints = asyncio.create_task(self._follow_hints(), name=f"hints for {self.worker_id}")
        _log.info(
            "joined replica_set=%s worker_id=%s partitions=%d awaited=%d",
            self._replica_set,
            self.worker_id,
            len(self._share.generations),
            len(self._share.awaited),
        )

    async def _register(self) -> None:
        """Joins the set under the present id."""
        sent_at = _elapsed()
        self._may_be_registered = True
        try:
            share = await self._store.replica_sets.join(
                self._replica_set, self.worker_id, stale_after=self._stale_after, metadata=self._metadata
            )
        except UsageError:
            self._may_be_registered = False  # refused before anything was sent
            raise
        self._heard(sent_at, share)

    async def _leave(self) -> None:
        """Stops the heartbeats, gives the partitions back, and forgets the share; never raises for the database."""
        for task in (self._heartbeats, self._hints):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._has_left = True
        if self._expiry is not None:
            self._expiry.cancel()
        self._tell()
        if not self._may_be_registered:
            return
        leaving = self._store.replica_sets.leave(self._replica_set, self.worker_id)
        try:
            await self._answer(leaving, _LONGEST_GOODBYE_SECONDS)
        except (CascadeStateError, TimeoutError) as error:
            _log.warning(
                "could not leave, others take over in time replica_set=%s worker_id=%s stale_after=%s reason=%s",
                self._replica_set,
                self.worker_id,
                self._stale_after,
                str(error) or type(error).__name__,
            )
        else:
            _log.info("left replica_set=%s worker_id=%s", self._replica_set, self.worker_id)

    async def _send_heartbeats(self) -> None:
        """Beats until it is cancelled. Nothing that goes wrong may end it: a silent worker loses its share."""
        while True:
            await self._pause()
            self._has_failed = True
            try:
                await self._beat()
                self._has_failed = False
            except (CascadeStateError, TimeoutError) as error:
                _log.warning(
                    "heartbeat failed replica_set=%s worker_id=%s reason=%s",
                    self._replica_set,
                    self.worker_id,
                    str(error) or type(error).__name__,
                )
            except Exception:
                _log.exception("heartbeat failed replica_set=%s worker_id=%s", self._replica_set, self.worker_id)

    async def _follow_hints(self) -> None:
        """Beats early when others joined, left or handed over; without hints the heartbeats alone find it out."""
        where = partition_of_key(self._replica_set, self._store.options.partition_count)
        async with self._store.listen("members") as hints:
            self._nudged.set()  # for what changed before it listened
            while True:
                if where in await hints.wait():
                    self._nudged.set()
                    await asyncio.sleep(_HINT_SPACING_SECONDS)

    async def _pause(self) -> None:
        """Waits for the time of the next heartbeat; never longer than an interval, so that the bounds hold."""
        in_hurry = self._has_failed or not self._share.is_settled
        longest = self._interval_seconds / _HURRY if in_hurry else self._interval_seconds
        try:
            async with asyncio.timeout(longest * random.uniform(0.8, 1.0)):  # noqa: S311 - jitter, not a secret
                await self._nudged.wait()
        except TimeoutError:
            pass
        self._nudged.clear()

    async def _beat(self) -> None:
        sent_at = _elapsed()
        beat = self._store.replica_sets.beat(
            self._replica_set, self.worker_id, stale_after=self._stale_after, keep=self._kept()
        )
        try:
            share = await self._answer(beat, self._limit_seconds)
        except LeaseLost:
            self._alive_until = 0.0
            self._tell()
            _log.warning("removed by others replica_set=%s worker_id=%s", self._replica_set, self.worker_id)
            await self._join_again()
        else:
            self._heard(sent_at, share)

    async def _join_again(self) -> None:
        former = self.worker_id
        self._share = self._empty_share(new_worker_id(self._worker_name))
        await self._answer(self._register(), self._limit_seconds)
        _log.warning(
            "joined again under a new id replica_set=%s worker_id=%s former_worker_id=%s",
            self._replica_set,
            self.worker_id,
            former,
        )

    async def _answer(self, call: Coroutine[Any, Any, T], longest_seconds: float) -> T:
        """Returns what a call returns, unless that takes too long.

        It is not waited for then, not even for its end: a transaction on a connection that was lost without a word
        can be ended only when the connection is given up.

        Raises:
            TimeoutError: It took too long.
        """
        task = asyncio.ensure_future(call)
        self._unanswered.add(task)
        task.add_done_callback(self._answered)
        try:
            await asyncio.wait([task], timeout=longest_seconds)
        finally:
            if not task.done():
                task.cancel()
        if not task.done():
            self._limit_seconds = self._bounded(2 * self._limit_seconds)
            raise TimeoutError(f"no answer within {longest_seconds:g} s")
        return task.result()

    def _bounded(self, limit_seconds: float) -> float:
        return min(limit_seconds, self._stale_after.total_seconds())

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._unanswered.discard(task)
        if not task.cancelled():
            task.exception()  # seen, if nobody waits for it any more

    # What it learns

    def _heard(self, sent_at: float, share: Membership) -> None:
        """Takes over what a heartbeat said. Others cannot have counted from earlier than when it was sent."""
        self._alive_until = sent_at + self._stale_after.total_seconds()
        self._limit_seconds = max(self._first_limit_seconds, self._bounded(2 * (_elapsed() - sent_at)))
        self._watch()
        before, self._share = self._share, share
        now = _elapsed()
        if share.releasing.keys() - self._released_at.keys():
            self._nudged.set()  # they may go once the loops have been told
        self._released_at = {partition: self._released_at.get(partition, now) for partition in share.releasing}
        if share != before:
            _log.info(
                "share replica_set=%s worker_id=%s generation=%d partitions=%d releasing=%d awaited=%d",
                self._replica_set,
                self.worker_id,
                share.generation,
                len(share.generations),
                len(share.releasing),
                len(share.awaited),
            )
        self._tell()

    def _watch(self) -> None:
        """Sees to it that the loops are told when the worker's time is over, even while a heartbeat hangs."""
        if self._expiry is not None:
            self._expiry.cancel()
        remaining = max(0.0, self._alive_until - _elapsed())
        self._expiry = asyncio.get_running_loop().call_later(remaining, self._expire)

    def _expire(self) -> None:
        if self._alive_until > _elapsed():
            self._watch()  # the loop's clock ran ahead
            return
        _log.warning(
            "not heard for stale_after, working no further replica_set=%s worker_id=%s stale_after=%s",
            self._replica_set,
            self.worker_id,
            self._stale_after,
        )
        self._tell()

    def _tell(self) -> None:
        """Wakes everybody who waits for a change; each looks by itself whether there is one."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _kept(self) -> frozenset[int]:
        """The partitions that are not to be handed over yet: the loops were not told, or have work in hand there."""
        told_before = _elapsed() - self._stale_after.total_seconds()  # long enough for any work
        busy = (partition for partition, told_at in self._released_at.items() if told_at > told_before)
        return frozenset(self._share.generations) | self._in_hand.keys() & frozenset(busy)

    def _empty_share(self, worker_id: str) -> Membership:
        return Membership(replica_set=self._replica_set, worker_id=worker_id, generation=self._share.generation)


def new_worker_id(worker_name: str) -> str:
    """Returns an id that no worker ever had: a process that starts again is another worker."""
    return f"{worker_name}-{secrets.token_hex(6)}"


def _elapsed() -> float:
    """Returns seconds of a clock that nobody sets; where there is one, one that counts while the machine sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
