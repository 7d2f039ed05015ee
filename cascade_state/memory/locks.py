"""The locks of one memory store, as PostgreSQL has them: row locks between units of work, and advisory locks.

A row lock is held until its transaction ends. Nobody queues for one: whoever meets a lock waits until it is
given back and then runs its whole call again, looking at everything afresh. So a waiter holds nothing that
it waits for, and cancelling it leaves nothing behind.

An advisory lock is asked for by itself, with no call to run again. Who asks for one stands in a queue, and
whoever gives it back hands it over to the first: nobody can take it in between.

Waiters that wait for each other in a circle, over locks of both kinds, are found when the circle closes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias, cast

from cascade_state.errors import StoreNotOpen, TransactionAborted, UsageError
from cascade_state.model.locks import LockName

__all__ = ["ADVISORY", "AdvisoryLock", "Blocked", "LockKey", "LockOwner", "LockUse", "Locks"]

ADVISORY = "advisory lock"  # the kind of thing that an advisory lock is

LockKey: TypeAlias = tuple[str, Hashable]  # the kind of thing, and which
AdvisoryLock: TypeAlias = tuple[int, LockName]  # its number, and the name that the number was made of


class Blocked(Exception):
    """Somebody else holds the lock; wait for it and run the call again."""

    def __init__(self, key: LockKey) -> None:
        super().__init__(key)
        self.key = key


class LockOwner:
    """Someone who holds locks: a transaction, or who asked for one advisory lock."""

    def __init__(self, application_name: str = "") -> None:
        self.taken: list[tuple[LockKey, bool]] = []  # in order; whether it was shared by this owner before
        self.waits_for: LockKey | None = None
        self.application_name = application_name
        self.since: dict[LockKey, datetime] = {}  # when it got each advisory lock


class LockUse(NamedTuple):
    """Someone who holds an advisory lock or waits for it."""

    lock: AdvisoryLock
    is_shared: bool
    is_granted: bool
    since: datetime
    application_name: str


class _Request:
    """A place in the queue for an advisory lock."""

    __slots__ = ("granted", "is_shared", "key", "owner", "since")

    def __init__(self, key: LockKey, owner: LockOwner, is_shared: bool, granted: asyncio.Future[None]) -> None:
        self.key = key
        self.owner = owner
        self.is_shared = is_shared
        self.granted = granted
        self.since = datetime.now(UTC)

    @property
    def is_granted(self) -> bool:
        return self.granted.done() and not self.granted.cancelled() and self.granted.exception() is None


class _Lock:
    __slots__ = ("exclusive", "shared")

    def __init__(self) -> None:
        self.exclusive: LockOwner | None = None
        self.shared: set[LockOwner] = set()  # empty while somebody has it alone

    def others(self, owner: LockOwner) -> set[LockOwner]:
        """Returns the holders besides `owner`."""
        holders = set(self.shared) if self.exclusive is None else {self.exclusive}
        holders.discard(owner)
        return holders


class Locks:
    """The locks of one memory store."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.held: dict[LockKey, _Lock] = {}
        self._waiting: dict[LockKey, list[asyncio.Future[None]]] = {}
        self._queues: dict[LockKey, deque[_Request]] = {}

    def take(self, key: LockKey, owner: LockOwner) -> None:
        """Takes the lock for `owner` alone.

        Raises:
            Blocked: Somebody else has it or shares it.
        """
        lock = self.held.get(key)
        if lock is None:
            lock = self.held[key] = _Lock()
        elif lock.exclusive is owner:
            return
        elif lock.others(owner):
            raise Blocked(key)
        shared_before = owner in lock.shared
        lock.shared.discard(owner)
        lock.exclusive = owner
        owner.taken.append((key, shared_before))

    def share(self, key: LockKey, owner: LockOwner) -> None:
        """Takes the lock so that others may share it.

        Raises:
            Blocked: Somebody else has it alone.
        """
        lock = self.held.get(key)
        if lock is None:
            lock = self.held[key] = _Lock()
        elif lock.exclusive is owner or owner in lock.shared:
            return
        elif lock.exclusive is not None:
            raise Blocked(key)
        lock.shared.add(owner)
        owner.taken.append((key, False))

    def is_free(self, key: LockKey, owner: LockOwner) -> bool:
        """Tells whether nobody but `owner` holds the lock in any way."""
        lock = self.held.get(key)
        return lock is None or not lock.others(owner)

    def give_back(self, owner: LockOwner, mark: int = 0) -> None:
        """Gives back what `owner` took behind `mark`, an earlier length of `taken`, and wakes who waits for it."""
        while len(owner.taken) > mark:
            key, shared_before = owner.taken.pop()
            lock = self.held[key]
            if lock.exclusive is owner:
                lock.exclusive = None
            lock.shared.discard(owner)
            if shared_before:
                lock.shared.add(owner)
            elif not lock.shared:
                del self.held[key]
            for waiter in self._waiting.pop(key, ()):
                if not waiter.done():
                    waiter.set_result(None)
            if key in self._queues:
                self._hand_over(key)

    async def wait(self, key: LockKey, owner: LockOwner | None) -> None:
        """Returns when the lock was given back; somebody else may have it again by then.

        Args:
            owner: The transaction that waits; None: a call of its own, which holds nothing while it waits.

        Raises:
            TransactionAborted: Everybody would wait for ever: a holder waits, in the end, for `owner`.
            UsageError: This is not the event loop that opened the store; nobody could wake it here.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise UsageError("this memory store was opened in another event loop; open one for each loop")
        waiter: asyncio.Future[None] = self._loop.create_future()
        if owner is not None:
            self._begin_to_wait(owner, key)
        waiters = self._waiting.setdefault(key, [])
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if owner is not None:
                owner.waits_for = None
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters and self._waiting.get(key) is waiters:
                del self._waiting[key]

    # Advisory locks

    async def acquire(self, which: AdvisoryLock, owner: LockOwner, *, shared: bool, seconds: float | None) -> bool:
        """Takes an advisory lock in turn, and returns whether that was possible in time.

        Args:
            seconds: The longest wait; 0: exactly one try; None: until it is handed over.

        Raises:
            TransactionAborted: Everybody would wait for ever.
            StoreNotOpen: `turn_away` ended the wait.
        """
        key = (ADVISORY, which)
        is_awaited = any(not request.granted.done() for request in self._queues.get(key, ()))
        if not is_awaited and self._fits(key, owner, shared):
            self._grant(key, owner, shared)
            return True
        if seconds == 0:
            return False
        self._begin_to_wait(owner, key)
        request = _Request(key, owner, shared, self._loop.create_future())
        self._queues.setdefault(key, deque()).append(request)
        mark = len(owner.taken)
        try:
            async with asyncio.timeout(seconds):
                await request.granted
        except TimeoutError:
            return request.is_granted  # handed over in the last moment
        except BaseException:
            self.give_back(owner, mark)
            raise
        finally:
            owner.waits_for = None
            self._leave_queue(request)
        return True

    def turn_away(self, owner: LockOwner) -> None:
        """Ends a wait for an advisory lock with `StoreNotOpen`."""
        if owner.waits_for is None:
            return
        for request in self._queues.get(owner.waits_for, ()):
            if request.owner is owner and not request.granted.done():
                request.granted.set_exception(StoreNotOpen())

    def uses(self) -> Iterator[LockUse]:
        """Yields who holds or waits for an advisory lock: of one lock the holders first, then the queue."""
        for key, lock in self.held.items():
            if key[0] != ADVISORY:
                continue
            which = cast(AdvisoryLock, key[1])
            is_shared = lock.exclusive is None
            for holder in lock.shared if lock.exclusive is None else (lock.exclusive,):
                yield LockUse(which, is_shared, True, holder.since[key], holder.application_name)
            for request in self._queues.get(key, ()):
                if not request.granted.done():
                    yield LockUse(which, request.is_shared, False, request.since, request.owner.application_name)

    def _fits(self, key: LockKey, owner: LockOwner, shared: bool) -> bool:
        lock = self.held.get(key)
        return lock is None or (shared and lock.exclusive is None) or not lock.others(owner)

    def _grant(self, key: LockKey, owner: LockOwner, shared: bool) -> None:
        if shared:
            self.share(key, owner)
        else:
            self.take(key, owner)
        owner.since[key] = datetime.now(UTC)

    def _hand_over(self, key: LockKey) -> None:
        """Grants a lock to those at the head of its queue whom it fits; who comes behind waits for them."""
        for request in self._queues[key]:
            if request.granted.done():
                continue
            if not self._fits(key, request.owner, request.is_shared):
                break
            self._grant(key, request.owner, request.is_shared)
            request.granted.set_result(None)

    def _leave_queue(self, request: _Request) -> None:
        queue = self._queues[request.key]
        queue.remove(request)
        if queue:
            self._hand_over(request.key)  # whoever stood behind may fit now
        else:
            del self._queues[request.key]

    # Waiting in a circle

    def _begin_to_wait(self, owner: LockOwner, key: LockKey) -> None:
        if self._leads_to(owner, key):
            raise TransactionAborted(reason="deadlock: units of work wait for each other")
        owner.waits_for = key

    def _leads_to(self, owner: LockOwner, key: LockKey) -> bool:
        """Tells whether whoever waits for `key` waits, through any number of others, for `owner`."""
        lock = self.held.get(key)
        unseen = [] if lock is None else list(lock.others(owner))
        seen = set(unseen)
        while unseen:
            holder = unseen.pop()
            if holder is owner:
                return True
            lock = None if holder.waits_for is None else self.held.get(holder.waits_for)
            if lock is not None:
                more = lock.others(holder) - seen
                seen |= more
                unseen += more
        return False
