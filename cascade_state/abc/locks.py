"""Advisory locks that outlive a transaction: one holder at a time, in all processes of a store.

A lock is advice: it keeps apart those who ask for it, and stops nobody who writes without asking. `uow.lock` holds one
to the end of a transaction, and is the one to take wherever that suffices: it needs no connection and cannot leak. The
locks of this repository are held until they are released, across any number of transactions. Each has a database
connection of its own; when that ends, so does the lock, and somebody else may have it before its holder has noticed.
Against that, `HeldLock.check` asks, and `HeldLock.fencing_token` proves: it only grows from one holder of a name to the
next, so whoever receives writes can refuse those of an earlier one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from cascade_state.abc.guards import Guard
from cascade_state.errors import InvalidArgument, LockNotAcquired
from cascade_state.model.arguments import check_duration
from cascade_state.model.locks import LockInfo, LockName, advisory_lock_key, check_lock_name

if TYPE_CHECKING:
    from typing import Self

__all__ = ["HeldLock", "Locks", "Patience", "check_shared"]

_NO_TIME = timedelta(0)


class Patience:
    """How long somebody waits for a lock, from now on."""

    __slots__ = ("_began", "_seconds")

    def __init__(self, timeout: object) -> None:
        duration = None if timeout is None else check_duration(timeout, "timeout", allow_zero=True)
        self._seconds = None if duration is None else duration.total_seconds()
        self._began = time.monotonic()

    @property
    def is_none(self) -> bool:
        """Whether there is to be one try and no waiting."""
        return self._seconds == 0

    def left(self) -> float | None:
        """Returns the seconds that are left, at least 0; None: there is no end."""
        return None if self._seconds is None else max(0.0, self._seconds - self.waited())

    def waited(self) -> float:
        """Returns the seconds since the beginning."""
        return time.monotonic() - self._began


class HeldLock(ABC):
    """A lock that is held until it is released: `lock = await store.locks.try_acquire(name)`.

    As a context manager (`async with lock:`) it is released at the end of the block.

    Attributes:
        lock_name: The name it was asked for by.
        key: The number that the database knows it by.
        shared: Whether others may share it.
        fencing_token: Greater than that of every earlier holder of this name, restarts of the server included.
    """

    __slots__ = ("fencing_token", "key", "lock_name", "shared")

    def __init__(self, *, lock_name: LockName, key: int, shared: bool, fencing_token: int) -> None:
        self.lock_name: LockName = lock_name
        self.key: int = key
        self.shared: bool = shared
        self.fencing_token: int = fencing_token

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.lock_name!r}, fencing_token={self.fencing_token})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.release()

    @abstractmethod
    async def release(self) -> bool:
        """Gives the lock back, and returns whether it was held until now; a second time, or of a lost lock, it was not.

        A cancelled call releases all the same, and no failure of a connection is raised: with it the lock is gone.
        """

    @abstractmethod
    async def check(self) -> None:
        """Returns if the lock is held at this moment: one round trip to the database.

        Ask before each step that must not be done twice. What is written between the answer and the end of the lock
        is for the fencing token to refuse.

        Raises:
            LockLost: Its connection ended, and the lock with it, or it was released.
        """


class Locks(ABC):
    """Locks by name, of this installation: two schemas of one database do not meet.

    A name is a text or a tuple of texts and integers, such as `("backfill", 2024, 1)`, of at most 512 bytes. `uow.lock`
    and these locks of one name exclude each other. They are not re-entrant: a name that is held, by whomever, is held.

    Source: docs/adr/0006-advisory-locks.md.
    """

    def __init__(self, guard: Guard, schema: str | None) -> None:
        self._guard = guard
        self._schema = schema

    def key_of(self, name: LockName) -> int:
        """Returns the signed 64-bit number of a name in this installation, by the documented hash."""
        return advisory_lock_key(self._schema, check_lock_name(name))

    async def try_acquire(
        self, name: LockName, *, shared: bool = False, timeout: timedelta | None = _NO_TIME
    ) -> HeldLock | None:
        """Returns the lock once it is held, or None if that was not possible in time.

        Waiting happens in the database, in turn. Who is cancelled while waiting does not hold the lock.

        Args:
            shared: Whether others that ask for it shared may hold it too.
            timeout: The longest wait. Zero: exactly one try. None: until it is free. One try is made in any case,
                also if opening a connection took longer.

        Raises:
            UsageError: The store was opened behind a transaction pooler without `direct_url`.
            InvalidArgument: The name cannot be one.
            StoreUnavailable: The database cannot be reached.
        """
        checked = check_lock_name(name)
        check_shared(shared)
        patience = Patience(timeout)
        self._guard.call(writes=False)
        return await self._acquire(checked, shared, patience)

    @asynccontextmanager
    async def hold(
        self, name: LockName, *, shared: bool = False, timeout: timedelta | None = None
    ) -> AsyncIterator[HeldLock]:
        """Holds the lock for a block: `async with store.locks.hold(name) as lock:`.

        It is released whatever happens, and what the block raises passes unchanged. A lock that gets lost meanwhile
        does not interrupt the block: `lock.check()` tells.

        Args:
            shared: Whether others that ask for it shared may hold it too.
            timeout: The longest wait; None: until it is free.

        Raises:
            LockNotAcquired: It was not free in time; the block did not run.
            UsageError: The store was opened behind a transaction pooler without `direct_url`.
        """
        patience = Patience(timeout)  # counts what the caller waited
        lock = await self.try_acquire(name, shared=shared, timeout=timeout)
        if lock is None:
            raise LockNotAcquired(lock_name=name, waited=patience.waited())
        async with lock:
            yield lock

    async def is_held(self, name: LockName) -> bool:
        """Returns whether anybody holds this lock now, exclusively or shared, in a session or a transaction."""
        checked = check_lock_name(name)
        self._guard.call(writes=False)
        return await self._is_held(checked)

    async def list_held(self) -> list[LockInfo]:
        """Returns every advisory lock of this database (64-bit keys) that is held or waited for, by key.

        Of one key, the holders come first, then who waits, the longest first. Locks of other programs and the own
        locks of the store are among them, without a name. There is no limit: the server's own table of locks is
        limited.
        """
        self._guard.call(writes=False)
        return await self._list_held()

    @abstractmethod
    async def _acquire(self, name: LockName, shared: bool, patience: Patience) -> HeldLock | None: ...

    @abstractmethod
    async def _is_held(self, name: LockName) -> bool: ...

    @abstractmethod
    async def _list_held(self) -> list[LockInfo]: ...


def check_shared(shared: object) -> None:
    """Returns if `shared` is a bool: in the place of one, a time-out would be taken for a yes."""
    if not isinstance(shared, bool):
        raise InvalidArgument(argument="shared", reason=f"must be a bool, not {type(shared).__name__}")
