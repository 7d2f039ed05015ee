"""Guards: who may call a repository now.

Every public repository method enters its guard. A store's guard asks whether the store is open; a unit of
work's guard asks whether it is open, whether it may write, and whether another task is inside: two tasks on
one transaction would interleave, so the second one is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from cascade_state.errors import StoreError, StoreNotOpen, UnitOfWorkFinished, UnitOfWorkNotOpen, UsageError

__all__ = ["CallGuard", "Guard", "Stage", "StoreGuard", "UnitOfWorkGuard"]


class CallGuard(Protocol):
    """A call under way; left when the call ends, however it ends."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None: ...


class Guard(Protocol):
    """Admits calls, or raises a `UsageError`."""

    def call(self, *, writes: bool) -> CallGuard:
        """Returns the context in which one call runs."""
        ...


class Stage(Enum):
    """Where a store or unit of work stands in its life."""

    NEW = auto()
    OPEN = auto()
    FINISHED = auto()


class StoreGuard:
    """Admits any number of calls at once while the store is open, from the event loop that opened it.

    `refusal` makes the error of every write, while the database is in a state in which nobody may write.
    """

    __slots__ = ("loop", "refusal", "stage")

    def __init__(self) -> None:
        self.stage: Stage = Stage.NEW
        self.loop: asyncio.AbstractEventLoop | None = None
        self.refusal: Callable[[], StoreError] | None = None

    def open(self) -> None:
        """Opens the store for the running event loop."""
        self.loop = asyncio.get_running_loop()
        self.stage = Stage.OPEN

    def call(self, *, writes: bool) -> StoreGuard:
        """Admits a call.

        Raises:
            StoreNotOpen: The store was not entered, or was closed.
            UsageError: Another event loop opened it.
            StoreError: What `refusal` says, to a write.
        """
        if self.stage is not Stage.OPEN:
            raise StoreNotOpen
        if self.loop is not None and asyncio._get_running_loop() not in (self.loop, None):
            raise UsageError("the store belongs to another event loop; open one in each loop")
        if writes and self.refusal is not None:
            raise self.refusal()
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc_info: object) -> None:
        return None


class UnitOfWorkGuard:
    """Admits one call at a time while the unit of work is open."""

    __slots__ = ("_busy", "read_only", "refusal", "stage")

    def __init__(self, *, read_only: bool = False) -> None:
        self.stage: Stage = Stage.NEW
        self.read_only: bool = read_only
        self.refusal: Callable[[], StoreError] | None = None  # that of its store
        self._busy = False

    def call(self, *, writes: bool) -> UnitOfWorkGuard:
        """Admits a call.

        Raises:
            UnitOfWorkNotOpen, UnitOfWorkFinished: It was not entered yet, or has ended.
            UsageError: Another task is inside, or a write was tried in a read-only unit of work.
            StoreError: What `refusal` says, to a write.
        """
        if self.stage is not Stage.OPEN:
            raise UnitOfWorkNotOpen if self.stage is Stage.NEW else UnitOfWorkFinished
        if self._busy:
            raise UsageError("another task is using this unit of work; give each task its own")
        if writes and self.read_only:
            raise UsageError("this unit of work is read-only")
        if writes and self.refusal is not None:
            raise self.refusal()
        return self

    def __enter__(self) -> None:
        self._busy = True

    def __exit__(self, *exc_info: object) -> None:
        self._busy = False
