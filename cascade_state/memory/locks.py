"""Row locks between the open units of work of one memory store, as PostgreSQL has them.

A lock is held until its transaction ends. Nobody queues for one: whoever meets a lock waits until it is
given back and then runs its whole call again, looking at everything afresh. So a waiter holds nothing that
it waits for, and cancelling it leaves nothing behind. Waiters that wait for each other in a circle are
found when the circle closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import TypeAlias

from cascade_state.errors import TransactionAborted, UsageError

__all__ = ["Blocked", "LockKey", "LockOwner", "Locks"]

LockKey: TypeAlias = tuple[str, Hashable]  # the kind of thing, and which


class Blocked(Exception):
    """Somebody else holds the lock; wait for it and run the call again."""

    def __init__(self, key: LockKey) -> None:
        super().__init__(key)
        self.key = key


class LockOwner:
    """Someone who holds locks: a transaction."""

    def __init__(self) -> None:
        self.taken: list[tuple[LockKey, bool]] = []  # in order; whether it was shared by this owner before
        self.waits_for: LockKey | None = None


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
            if self._leads_to(owner, key):
                raise TransactionAborted(reason="deadlock: units of work wait for each other")
            owner.waits_for = key
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
