"""How a repository's call is run: as a transaction of its own, or inside a unit of work."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from cascade_state.clock import Clock
from cascade_state.errors import StoreNotOpen, TransactionAborted
from cascade_state.memory.data import MemoryData
from cascade_state.memory.locks import Blocked
from cascade_state.memory.transaction import Direct, Transaction, View

__all__ = ["Runner", "StoreRunner", "UnitOfWorkRunner"]

P = ParamSpec("P")
T = TypeVar("T")


class Runner(ABC):
    """Runs calls. A call is a function of a view that does all its work without an await.

    It may be run several times: each time it meets a lock, it is undone, the lock is waited for, and it
    begins again.
    """

    @abstractmethod
    async def run(self, body: Callable[Concatenate[View, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns what `body(view, *args)` returns."""


class StoreRunner(Runner):
    """Runs each call as a transaction of its own. It gives way to other tasks only when it has to wait for a lock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._data: MemoryData
        self._direct: Direct
        self._is_closed = False

    def close(self) -> None:
        """Turns away calls that are waiting now."""
        self._is_closed = True

    def open(self, data: MemoryData) -> None:
        """Begins to work on `data`."""
        self._data = data
        self._direct = Direct(data, self._clock)

    async def run(self, body: Callable[Concatenate[View, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                if self._data.snapshots:
                    return self._committed(body, *args, **kwargs)
                return self._direct.call(body, *args, **kwargs)
            except Blocked as blocked:
                key = blocked.key
            await self._data.locks.wait(key, None)
            if self._is_closed:
                raise StoreNotOpen

    def _committed(self, body: Callable[Concatenate[View, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a call while somebody has a snapshot, which the commit of a transaction takes care of."""
        transaction = Transaction(self._data, self._clock)
        try:
            result = transaction.call(body, *args, **kwargs)
            transaction.commit()
        finally:
            transaction.end()
        return result


class UnitOfWorkRunner(Runner):
    """Runs calls inside an open transaction.

    Each gives way to other tasks first, as a call over a wire does: so tasks that share a unit of work meet in it,
    and are refused, in a test as they would be in production.
    """

    def __init__(self, data: MemoryData, transaction: Transaction) -> None:
        self._data = data
        self._transaction = transaction

    async def run(self, body: Callable[Concatenate[View, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        await asyncio.sleep(0)
        while True:
            try:
                return self._transaction.call(body, *args, **kwargs)
            except Blocked as blocked:
                key = blocked.key
            try:
                await self._data.locks.wait(key, self._transaction)
            except TransactionAborted:
                self._transaction.abort()
                raise
