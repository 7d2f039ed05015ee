"""The executor of a store's own repositories: each call is a transaction of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.hints import HintTopic
from cascade_state.abc.options import StoreOptions
from cascade_state.errors import TransactionAborted
from cascade_state.postgres.coalescing import Line
from cascade_state.postgres.direct import DriverConnection, Record, Statement, StatementCache
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.executor import ConnectionExecutor, Executor
from cascade_state.postgres.hints import HintSender, hint_payload
from cascade_state.postgres.kept_connections import KEPT_LOCK_TIMEOUT, KeptConnections
from cascade_state.postgres.operations import Operation
from cascade_state.postgres.transactions import OwnTransaction

__all__ = ["StoreExecutor"]

Item = TypeVar("Item")

_LOCK_TIMEOUT = "55P03"


class StoreExecutor(Executor):
    """Runs single statements on kept autocommit connections, coalesced, and several ones in a pooled transaction."""

    def __init__(
        self,
        options: StoreOptions,
        statements: StatementCache,
        transactions: KeptConnections,
        kept: KeptConnections,
        hints: HintSender | None,
    ) -> None:
        super().__init__(options, statements)
        self._transactions = transactions
        self._kept = kept
        self._hints = hints
        self._lines: dict[Operation[Any], Line[Any, list[Record]]] = {}

    async def fetch(self, statement: Statement, values: Mapping[str, Any]) -> list[Record]:
        try:
            return await self._fetch_kept(statement, values)
        except TransactionAborted as error:
            if error.sqlstate != _LOCK_TIMEOUT:
                raise
        # The row is held by somebody for long. Wait for it on a connection that nobody else waits for.
        async with self._transaction({}) as patient:
            return await patient.fetch(statement, values)

    async def _fetch_kept(self, statement: Statement, values: Mapping[str, Any]) -> list[Record]:
        kept = await self._kept.take()
        put_back = self._kept.put_back
        try:
            with translated():
                if self.options.pooler is None:
                    return await self.statements.fetch(kept[1], statement, values)
                return await self._fetch_pooled(kept[1], statement, values)
        except asyncio.CancelledError:
            put_back = self._kept.put_aside
            raise
        finally:
            put_back(kept)

    async def _fetch_pooled(
        self, driver: DriverConnection, statement: Statement, values: Mapping[str, Any]
    ) -> list[Record]:
        """Runs one statement through a transaction pooler, where the limit on waiting cannot outlive a transaction."""
        async with driver.transaction():
            await driver.execute(f"SET LOCAL lock_timeout = '{KEPT_LOCK_TIMEOUT}'")
            return await self.statements.fetch(driver, statement, values)

    async def each(self, operation: Operation[Item], item: Item) -> list[Record]:
        if not self.options.coalesce:
            return await super().each(operation, item)
        line = self._lines.get(operation)
        if line is None:
            line = self._lines[operation] = self._line(operation)
        try:
            return await line.submit(item)
        except TransactionAborted as error:
            if error.sqlstate != _LOCK_TIMEOUT:
                raise
        # Not in the line, which must not wait for one caller's row on behalf of the others.
        async with self._transaction({}) as patient:
            return await patient.each(operation, item)

    def transaction(self, *, snapshot: bool = False, undoable: bool = False) -> AbstractAsyncContextManager[Executor]:
        return self._transaction({"isolation_level": "REPEATABLE READ"} if snapshot else {})

    @property
    def in_transaction(self) -> bool:
        return False

    def hint(self, partition_id: int, topic: HintTopic = "work") -> None:
        if self._hints is not None:
            self._hints.touch((hint_payload(partition_id, topic),))

    async def close(self) -> None:
        """Waits for what is under way in the lines."""
        for line in list(self._lines.values()):
            await line.close()

    def _line(self, operation: Operation[Item]) -> Line[Item, list[Record]]:
        async def run(items: Sequence[Item]) -> list[list[Record]]:
            statement, values = operation.prepare(items, self)
            results: list[list[Record]] = [[] for _ in items]
            for record in await self._fetch_kept(statement, values):
                results[record["item"]].append(record)
            return results

        return Line(run, operation.keys)

    @asynccontextmanager
    async def _transaction(self, options: dict[str, Any]) -> AsyncIterator[Executor]:
        transaction = OwnTransaction(self._transactions, options)
        await transaction.begin()
        try:
            executor = ConnectionExecutor(self.options, self.statements, transaction)
            yield executor
        except BaseException:
            await run_to_completion(transaction.rollback())
            raise
        await run_to_completion(transaction.commit())
        if self._hints is not None:
            self._hints.touch(executor.hinted)
