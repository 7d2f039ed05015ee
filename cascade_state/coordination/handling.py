"""What a worker has in hand, and what becomes of it: handlers called, acknowledged, retried, given up, released."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.store import Store
from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.coordination.kinds import Item, Kind
from cascade_state.coordination.member import Member
from cascade_state.coordination.outcomes import GiveUp, Retry
from cascade_state.coordination.settings import Settings
from cascade_state.coordination.slots import Slots
from cascade_state.coordination.store_time import StoreTime
from cascade_state.errors import Conflict, LeaseLost, StoreError
from cascade_state.ids import partition_of
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.replica_sets import Membership
from cascade_state.telemetry import add, record, span

__all__ = ["Desk", "Work"]

_log = logging.getLogger("cascade_state.worker")

Handler: TypeAlias = Callable[[Any, UnitOfWork], Awaitable[object]]
Outcome: TypeAlias = Literal["done", "retried", "given_up", "lost", "released", "failed"]

_CANCEL_SECONDS = 2.0  # for a handler to roll back; one that swallows its cancellation is left behind then
_RELEASE_SECONDS = 3.0  # what cannot be released in time comes back when its lease ends
_LONGEST_ERROR = 2_000


@dataclass(eq=False)
class Work:
    """One item in hand.

    `cancelled_because` says why its handler was cancelled: its lease is "lost", its partition belongs to another
    worker ("share"), or the worker has to "stop". `is_abandoned`: nobody waits for its handler any more.
    """

    kind: Kind
    item: Item
    partition_id: int
    lease_until: float  # by the monotonic clock
    generation: int | None = None
    task: asyncio.Task[None] | None = None
    cancelled_because: Literal["lost", "share", "stop"] | None = None
    is_abandoned: bool = False

    def cancel(self, reason: Literal["lost", "share", "stop"]) -> None:
        """Cancels the handler, once."""
        if self.cancelled_because is None and self.task is not None:
            self.cancelled_because = reason
            self.task.cancel()


class Desk:
    """All that one run of a worker has in hand."""

    def __init__(self, store: Store, settings: Settings, slots: Slots, store_time: StoreTime) -> None:
        self.in_hand: dict[Work, None] = {}
        self._store = store
        self._settings = settings
        self._slots = slots
        self._time = store_time
        self._to_release: list[Work] = []
        self._orphan_failures: Counter[object] = Counter()
        self._is_closed = False

    # Taking

    def take(self, kind: Kind, handler: Handler, item: Item, claimed_at: float, member: Member | None) -> None:
        """Starts the handler of a claimed item, whose place is reserved; after `close` it is kept to be released."""
        partition_id = partition_of(kind.flow_of(item), self._store.options.partition_count)
        lease_until = claimed_at + self._settings.lease_duration.total_seconds()
        work = Work(kind, item, partition_id, lease_until)
        if self._is_closed:
            self._to_release.append(work)
            self._slots.give_back(1)
            return
        self.in_hand[work] = None
        add("cascade_state.worker.in_hand", 1, kind=kind.name)
        work.task = asyncio.get_running_loop().create_task(
            self._handle(work, handler, member), name=f"{kind.name} of {kind.flow_of(item)}"
        )
        # Not in the task itself: one that is cancelled before its first step never begins.
        work.task.add_done_callback(lambda task: self._ended(work, task))

    def _ended(self, work: Work, task: asyncio.Task[None]) -> None:
        self.in_hand.pop(work, None)
        self._slots.give_back(1)
        add("cascade_state.worker.in_hand", -1, kind=work.kind.name)
        if task.cancelled():
            if work.cancelled_because != "lost" and not work.is_abandoned:
                self._to_release.append(work)
        elif task.exception() is not None:  # of this module; a handler's own were dealt with
            _log.error("a handler's task failed %s", _shown(work), exc_info=task.exception())

    def is_handler(self, task: asyncio.Task[Any] | None) -> bool:
        """Tells whether a task is the one of a handler."""
        return any(work.task is task for work in self.in_hand)

    # Handling

    async def _handle(self, work: Work, handler: Handler, member: Member | None) -> None:
        kind = work.kind
        await self._measure_lateness(work)
        began = time.monotonic()
        outcome: Outcome = "released"
        with span("cascade_state.handle", kind=kind.name, **_facts(work)) as attributes:
            try:
                outcome = await self._outcome(work, handler, member)
            except asyncio.CancelledError:
                if work.cancelled_because == "lost":
                    outcome = "lost"
                elif work.cancelled_because == "share":
                    _this_task().uncancel()
                    await self._release([work])
                    return
                raise
            finally:
                attributes["outcome"] = outcome
                record(
                    "cascade_state.worker.handler.duration",
                    time.monotonic() - began,
                    kind=kind.name,
                    outcome=outcome,
                )
                add("cascade_state.worker.handled", kind=kind.name, outcome=outcome)
                if outcome == "lost":
                    add("cascade_state.worker.leases.lost", kind=kind.name)
                _log.debug("handled outcome=%s %s", outcome, _shown(work))

    async def _measure_lateness(self, work: Work) -> None:
        ready_at = work.kind.ready_at(work.item)
        if ready_at is not None:
            with suppress(StoreError):
                late = await self._time.seconds_since(ready_at)
                record("cascade_state.worker.lateness", max(0.0, late), kind=work.kind.name)

    async def _outcome(self, work: Work, handler: Handler, member: Member | None) -> Outcome:
        try:
            await self._attempt(work, handler, member)
        except _NotOurs:
            await self._release([work])
            return "released"
        except Retry as wish:
            return await self._retried(work, wish.after, wish.reason)
        except GiveUp as wish:
            return await self._given_up(work, wish.reason)
        except asyncio.CancelledError as error:
            if _this_task().cancelling():
                raise
            return await self._failed(work, error)  # the handler cancelled itself
        except LeaseLost as error:
            if not await self._is_held(work):
                return _lost(work)
            return await self._failed(work, error)
        except Exception as error:
            return await self._failed(work, error)
        self._orphan_failures.pop(work.kind.identity(work.item), None)
        return "done"

    async def _attempt(self, work: Work, handler: Handler, member: Member | None) -> None:
        """Runs the handler in its unit of work, which commits with the acknowledgement.

        Where the handler has neither read nor written, there is nothing to commit with: the acknowledgement goes by
        itself, and together with those of other handlers.
        """
        idle_limit = timedelta(seconds=max(0.001, work.lease_until - time.monotonic()))
        with _share(work, member) as generation:
            async with self._store.begin(idle_limit=idle_limit) as uow:
                if not isinstance(work.item, FlowInstance):
                    uow.take_in_hand(work.item)
                await handler(work.item, uow)
                if work.is_abandoned:
                    raise _NotOurs
                if member is not None and generation is not None:
                    # Not before: it takes a transaction id, which holds the feed back for as long as the handler runs.
                    # That the partition stays while work is in hand, `working_in` sees to.
                    try:
                        await uow.fence(work.partition_id, generation, member.replica_set)
                    except LeaseLost:
                        raise _NotOurs from None
                goes_alone = generation is None and uow.is_untouched
                if not goes_alone:
                    await self._acknowledge(uow, work)
            if goes_alone:
                await run_to_completion(work.kind.complete(self._store, work.item))

    async def _acknowledge(self, uow: UnitOfWork, work: Work) -> None:
        """Acknowledges the item, unless the handler has settled it itself.

        Raises:
            LeaseLost: Somebody else settled or claimed it.
        """
        if uow.has_settled(work.item):
            return
        try:
            await work.kind.complete(uow, work.item)
        except LeaseLost:
            # For others the lease is as it was: so it is this unit of work that gave the item away.
            if not await self._is_held(work):
                raise

    async def _is_held(self, work: Work) -> bool:
        """Tells whether the lease is current for everybody outside the handler's unit of work."""
        try:
            return bool(await work.kind.renew([work.item], self._settings.lease_duration))
        except StoreError:
            return False

    async def _failed(self, work: Work, error: BaseException) -> Outcome:
        after = self._settings.backoff.delay(self._attempts(work))
        expected = isinstance(error, (Conflict, StoreError))
        _log.log(
            logging.INFO if expected else logging.WARNING,
            "handler failed error=%s again_after=%.1fs %s",
            type(error).__name__,
            after.total_seconds(),
            _shown(work),
        )
        _log.debug("handler failed", exc_info=error)
        return await self._retried(work, after, _told(error))

    def _attempts(self, work: Work) -> int:
        attempts = getattr(work.item, "attempts", None)
        if attempts is None:
            identity = work.kind.identity(work.item)
            self._orphan_failures[identity] += 1
            attempts = self._orphan_failures[identity]
        return max(1, int(attempts))

    async def _retried(self, work: Work, after: timedelta, error: str) -> Outcome:
        return await self._settled(work, work.kind.retry(work.item, after, error), "retried")

    async def _given_up(self, work: Work, reason: str) -> Outcome:
        self._orphan_failures.pop(work.kind.identity(work.item), None)
        _log.warning("given up %s", _shown(work))
        return await self._settled(work, work.kind.give_up(work.item, reason), "given_up")

    async def _settled(self, work: Work, settling: Awaitable[None], outcome: Outcome) -> Outcome:
        try:
            await settling
        except LeaseLost:
            return _lost(work)
        except StoreError as error:
            _log.warning("cannot be settled, comes back with the end of its lease reason=%s %s", error, _shown(work))
            return "failed"
        return outcome

    # Losing

    def drop_foreign(self, share: Membership) -> None:
        """Cancels handlers in partitions that are not the worker's any more: their transactions would be refused."""
        for work in list(self.in_hand):
            if work.generation is not None and work.generation not in (
                share.generations.get(work.partition_id),
                share.releasing.get(work.partition_id),
            ):
                _log.warning("partition lost partition_id=%d %s", work.partition_id, _shown(work))
                work.cancel("share")

    # Ending

    def close(self) -> None:
        """Takes nothing more."""
        self._is_closed = True
        self._slots.close()

    async def finish(self, grace_period: timedelta, hurry: asyncio.Event) -> None:
        """Lets handlers end, cancels those that take longer, and leaves behind those that swallow that."""
        running = {work.task: work for work in self.in_hand if work.task is not None}
        if running and grace_period:
            await _until_done(set(running), grace_period.total_seconds(), hurry)
        pending = [task for task in running if not task.done()]
        for task in pending:
            running[task].cancel("stop")
        if pending:
            await asyncio.wait(pending, timeout=_CANCEL_SECONDS)
        for task in pending:
            if not task.done():
                work = running[task]
                work.is_abandoned = True
                self._to_release.append(work)
                _log.error("a handler does not end when it is cancelled, and is left behind %s", _shown(work))

    async def release(self) -> None:
        """Gives back what was not finished."""
        unfinished, self._to_release = self._to_release, []
        await self._release(unfinished)

    async def _release(self, unfinished: Iterable[Work]) -> None:
        by_kind: dict[Kind, list[Work]] = {}
        for work in unfinished:
            by_kind.setdefault(work.kind, []).append(work)
        for kind, works in by_kind.items():
            try:
                async with asyncio.timeout(_RELEASE_SECONDS):
                    await _released(kind, [work.item for work in works])
            except (StoreError, TimeoutError) as error:
                _log.warning(
                    "cannot be released, comes back with the end of its lease kind=%s count=%d reason=%s",
                    kind.name,
                    len(works),
                    error or type(error).__name__,
                )


class _NotOurs(Exception):
    """The partition belongs to another worker, or the worker has stopped: the item goes back."""


@contextmanager
def _share(work: Work, member: Member | None) -> Iterator[int | None]:
    """Says that work is in hand in a partition of the worker's own; gives the generation to fence with."""
    if member is None:
        yield None
        return
    try:
        working = member.working_in(work.partition_id)
        generation = working.__enter__()
    except LeaseLost:
        raise _NotOurs from None
    work.generation = generation
    try:
        yield generation
    finally:
        work.generation = None
        working.__exit__(None, None, None)


async def _released(kind: Kind, items: list[Item]) -> None:
    try:
        await kind.release(items)
    except LeaseLost:  # all or nothing: somebody has one of them
        for item in items:
            with suppress(LeaseLost):
                await kind.release([item])


async def _until_done(tasks: set[asyncio.Task[None]], seconds: float, hurry: asyncio.Event) -> None:
    hurried = asyncio.ensure_future(hurry.wait())
    try:
        async with asyncio.timeout(seconds):
            pending = {*tasks, hurried}
            while hurried in pending and len(pending) > 1:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        pass
    finally:
        hurried.cancel()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - handlers run in tasks
    return task


def _lost(work: Work) -> Outcome:
    _log.warning("lease lost, what the handler did was undone %s", _shown(work))
    return "lost"


def _told(error: BaseException) -> str:
    """Returns an error as it can be stored."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text[:_LONGEST_ERROR].replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def _facts(work: Work) -> dict[str, Any]:
    facts: dict[str, Any] = work.kind.facts(work.item)
    attempts = getattr(work.item, "attempts", None)
    return facts if attempts is None else {**facts, "attempts": attempts}


def _shown(work: Work) -> str:
    return f"kind={work.kind.name} " + " ".join(f"{name}={value}" for name, value in _facts(work).items())
