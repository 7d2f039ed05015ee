"""A unit of work on a memory store."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from cascade_state.abc.locks import Patience
from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.errors import StoreNotOpen, UsageError
from cascade_state.memory.data import MemoryData
from cascade_state.memory.repositories import attach_repositories
from cascade_state.memory.runners import UnitOfWorkRunner
from cascade_state.memory.transaction import Transaction
from cascade_state.model.advance import Limits
from cascade_state.model.locks import LockName

if TYPE_CHECKING:
    from cascade_state.memory.store import MemoryStore

__all__ = ["MemoryUnitOfWork", "refuse_sql"]


class MemoryUnitOfWork(UnitOfWork):
    """See `UnitOfWork`; `transaction` says which isolation there is."""

    def __init__(
        self, store: MemoryStore, data: MemoryData, transaction: Transaction, limits: Limits, *, read_only: bool
    ) -> None:
        super().__init__(limits, read_only=read_only)
        self._store = store
        self._transaction = transaction
        attach_repositories(self, UnitOfWorkRunner(data, transaction), self._guard, limits)

    async def _begin(self) -> None:
        if not self._store.is_open:
            raise StoreNotOpen
        self._store.open_transactions.add(self._transaction)
        self._transaction.begin()

    async def _commit(self) -> None:
        self._store.open_transactions.discard(self._transaction)
        self._transaction.commit()

    async def _rollback(self) -> None:
        self._store.open_transactions.discard(self._transaction)
        self._transaction.end()

    async def _lock(self, name: LockName, shared: bool, patience: Patience) -> bool:
        which = (self._store.locks.key_of(name), name)
        return await self._transaction.acquire(which, shared=shared, seconds=patience.left())

    async def _limit_idle(self, duration: timedelta) -> None:
        return None

    async def _set_savepoint(self) -> int:
        return self._transaction.set_savepoint()

    async def _release_savepoint(self, mark: int) -> None:
        self._transaction.release_savepoint(mark)

    async def _rollback_to_savepoint(self, mark: int) -> None:
        self._transaction.roll_back_to_savepoint(mark)

    def _sql_connection(self) -> NoReturn:
        raise refuse_sql()

    def _sql_session(self, **options: Any) -> NoReturn:
        raise refuse_sql()


def refuse_sql() -> UsageError:
    """Returns the error for whoever wants to join SQL of his own."""
    return UsageError("the memory store has no SQL: no connection, no session and nothing to enlist in")
