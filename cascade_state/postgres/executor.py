"""Executors: where the statements of a repository run.

A store's executor runs each statement on a kept autocommit connection, a unit of work's on the connection of
its transaction. Repositories are written once against this class. Several statements that belong together run
in `transaction()`: a transaction of its own for a store, the open one for a unit of work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from cascade_state.abc.hints import HintTopic
from cascade_state.abc.options import StoreOptions
from cascade_state.errors import UsageError
from cascade_state.ids import lock_key, partition_of, partition_of_key
from cascade_state.postgres.direct import Record, Statement, StatementCache
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.hints import hint_payload
from cascade_state.postgres.operations import Operation
from cascade_state.postgres.transactions import Transaction

__all__ = ["ConnectionExecutor", "Executor"]

Item = TypeVar("Item")


class Executor(ABC):
    """Runs statements."""

    def __init__(self, options: StoreOptions, statements: StatementCache) -> None:
        self.options = options
        self.statements = statements

    @abstractmethod
    async def fetch(self, statement: Statement, values: Mapping[str, Any]) -> list[Record]:
        """Runs one statement and returns its records: one round trip.

        Raises:
            StoreError: Or one of its kinds, as `error_translation` decides.
        """

    async def one(self, operation: Operation[Item], item: Item) -> Record | None:
        """Runs one item of an operation; returns its record, or None when the item's conditions did not hold."""
        records = await self.each(operation, item)
        return records[0] if records else None

    async def each(self, operation: Operation[Item], item: Item) -> list[Record]:
        """Runs one item of an operation; returns all of its records."""
        statement, values = operation.prepare((item,), self)
        return await self.fetch(statement, values)

    @abstractmethod
    def transaction(self, *, snapshot: bool = False, undoable: bool = False) -> AbstractAsyncContextManager[Executor]:
        """Returns the context in which several statements run in one transaction.

        Args:
            snapshot: Whether all of them are to see one state, where this executor begins the transaction
                (REPEATABLE READ).
            undoable: Whether an error is to undo all of them, where the transaction was there before and goes on
                (a savepoint).
        """

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether statements run inside a longer transaction (a unit of work), rather than each on its own."""

    @abstractmethod
    def hint(self, partition_id: int, topic: HintTopic = "work") -> None:
        """Notes that something in a partition may be claimable, or was recorded, to be told once it is committed."""

    def now(self) -> datetime | None:
        """Returns the store's clock's instant to be bound as `now`; None lets the database's clock decide."""
        clock = self.options.clock
        return None if clock is None else clock.now()

    def partition_of(self, flow_instance_id: UUID) -> int:
        """Returns the partition of a flow instance or timer."""
        return partition_of(flow_instance_id, self.options.partition_count)

    def partition_of_key(self, key: str) -> int:
        """Returns the partition of a correlation key or another text key."""
        return partition_of_key(key, self.options.partition_count)

    def lock_key(self, kind: str, name: str) -> int:
        """Returns the advisory lock's number for a name of this installation; see `ids.lock_key`."""
        return lock_key(self.statements.schema, kind, name)


class ConnectionExecutor(Executor):
    """Runs statements on one driver connection, inside the transaction that its owner started."""

    def __init__(
        self,
        options: StoreOptions,
        statements: StatementCache,
        transaction: Transaction,
    ) -> None:
        super().__init__(options, statements)
        self._transaction = transaction
        self._driver = transaction.driver
        self.hinted: set[str] = set()  # for the owner of the transaction, who knows when it is committed

    def hint(self, partition_id: int, topic: HintTopic = "work") -> None:
        self.hinted.add(hint_payload(partition_id, topic))

    async def fetch(self, statement: Statement, values: Mapping[str, Any]) -> list[Record]:
        await self.require_transaction()
        with translated():
            return await self.statements.fetch(self._driver, statement, values)

    def transaction(self, *, snapshot: bool = False, undoable: bool = False) -> AbstractAsyncContextManager[Executor]:
        return self._savepoint() if undoable else _Joined(self)

    @asynccontextmanager
    async def _savepoint(self) -> AsyncIterator[Executor]:
        await self.require_transaction()
        with translated():
            async with self._driver.transaction():
                yield self

    @property
    def in_transaction(self) -> bool:
        return True

    @property
    def is_untouched(self) -> bool:
        """Whether the transaction has not begun yet, on the wire."""
        return self._transaction.is_untouched

    async def require_transaction(self) -> None:
        """Begins the transaction on the wire, if that was put off until now.

        It refuses what would commit by itself, or in the transaction of whoever uses the driver connection now.
        """
        if self._driver.is_closed() and not self.is_untouched:
            return  # the driver says so
        if self.is_untouched:
            with translated():
                await self._transaction.start()
        if not self._transaction.is_open:
            raise UsageError("the transaction of this unit of work was ended by its connection or session")


class _Joined:
    """The open transaction, joined; it ends where it was begun."""

    __slots__ = ("_executor",)

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def __aenter__(self) -> Executor:
        return self._executor

    async def __aexit__(self, *exc_info: object) -> None:
        return None
