"""Units of work on PostgreSQL: one with its own transaction, one inside the caller's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, AsyncTransaction

from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.locks import Patience
from cascade_state.abc.options import StoreOptions
from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.errors import UsageError
from cascade_state.model.locks import LockName
from cascade_state.postgres.connections import driver_of, has_autocommit, start_on_wire
from cascade_state.postgres.direct import StatementCache
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.executor import ConnectionExecutor
from cascade_state.postgres.hints import HintSender
from cascade_state.postgres.kept_connections import KeptConnections
from cascade_state.postgres.locks import PostgresLocks
from cascade_state.postgres.repositories import attach_repositories
from cascade_state.postgres.statements.transactions import SET_LOCAL
from cascade_state.postgres.transactions import CallersTransaction, OwnTransaction, Transaction

__all__ = ["EnlistedUnitOfWork", "OwnUnitOfWork"]

_IDLE_LIMIT = "idle_in_transaction_session_timeout"
_LONGEST_IDLE = (1 << 31) - 1  # what the setting can hold, in milliseconds


class _SqlUnitOfWork(UnitOfWork):
    """What both kinds share: the connection, the caller's sessions on it, and savepoints."""

    def __init__(
        self, options: StoreOptions, statements: StatementCache, locks: PostgresLocks, *, read_only: bool = False
    ) -> None:
        super().__init__(options.limits, read_only=read_only)
        self._options = options
        self._statements = statements
        self._locks = locks
        self._executor: ConnectionExecutor
        self._sessions: list[AsyncSession] = []

    def _attach(self, transaction: Transaction) -> None:
        self._executor = ConnectionExecutor(self._options, self._statements, transaction)
        attach_repositories(self, self._executor, self._guard, self._limits)

    async def _lock(self, name: LockName, shared: bool, patience: Patience) -> bool:
        return await self._locks.lock_in_transaction(self._executor, name, shared, patience)

    async def _limit_idle(self, duration: timedelta) -> None:
        await self._executor.fetch(SET_LOCAL, {"name": _IDLE_LIMIT, "value": str(_milliseconds(duration))})

    async def _set_savepoint(self) -> AsyncTransaction:
        await self._executor.require_transaction()
        with translated():
            return await self._sql_connection().begin_nested()

    async def _release_savepoint(self, mark: AsyncTransaction) -> None:
        with translated():
            await mark.commit()

    async def _rollback_to_savepoint(self, mark: AsyncTransaction) -> None:
        with translated():
            await mark.rollback()

    def _sql_session(self, **options: Any) -> AsyncSession:
        # Committing the session must not commit the unit of work; it can only be told to roll back.
        session = AsyncSession(bind=self._sql_connection(), join_transaction_mode="rollback_only", **options)
        self._sessions.append(session)
        return session

    async def _flush_sessions(self) -> None:
        for session in self._sessions:
            if session.new or session.dirty or session.deleted:
                await session.flush()


class OwnUnitOfWork(_SqlUnitOfWork):
    """A unit of work with a pooled connection and a transaction of its own."""

    def __init__(
        self,
        options: StoreOptions,
        statements: StatementCache,
        locks: PostgresLocks,
        connections: KeptConnections,
        *,
        isolation: str | None,
        read_only: bool,
        hints: HintSender | None,
    ) -> None:
        super().__init__(options, statements, locks, read_only=read_only)
        self._hints = hints
        execution_options: dict[str, Any] = {}
        if isolation is not None:
            execution_options["isolation_level"] = isolation
        if read_only:
            execution_options["postgresql_readonly"] = True
        self._connections = connections
        self._execution_options = execution_options

    async def _begin(self, idle_limit: timedelta | None = None) -> None:
        settings = None if idle_limit is None else f" SET LOCAL {_IDLE_LIMIT} = {_milliseconds(idle_limit)};"
        self._transaction = OwnTransaction(self._connections, self._execution_options, settings=settings)
        await self._transaction.begin()
        self._attach(self._transaction)

    async def _commit(self) -> None:
        try:
            with translated():
                await self._flush_sessions()
        except BaseException:
            await self._transaction.rollback()
            raise
        await self._transaction.commit()
        if self._hints is not None:
            self._hints.touch(self._executor.hinted)

    async def _rollback(self) -> None:
        await self._transaction.rollback()

    async def _begin_limited(self, idle_limit: timedelta) -> None:
        await self._begin(idle_limit)

    def _is_untouched(self) -> bool:
        return not self._sessions and self._executor.is_untouched

    def _left_unused(self) -> bool:
        if not self._transaction.is_unused:
            return False
        self._transaction.leave()
        return True

    def _sql_connection(self) -> AsyncConnection:
        return self._transaction.connection()


def _milliseconds(duration: timedelta) -> int:
    return min(max(1, round(duration / timedelta(milliseconds=1))), _LONGEST_IDLE)


class EnlistedUnitOfWork(_SqlUnitOfWork):
    """A unit of work inside the caller's transaction: it begins one if need be, and never ends it."""

    def __init__(
        self,
        options: StoreOptions,
        statements: StatementCache,
        locks: PostgresLocks,
        session_or_connection: AsyncSession | AsyncConnection,
    ) -> None:
        super().__init__(options, statements, locks)
        if not isinstance(session_or_connection, (AsyncSession, AsyncConnection)):
            kind = type(session_or_connection).__name__
            raise UsageError(f"enlist takes an AsyncSession or an AsyncConnection, not {kind}")
        self._caller = session_or_connection

    async def _begin(self) -> None:
        with translated():
            if isinstance(self._caller, AsyncSession):
                connection = await self._caller.connection()
            else:
                connection = self._caller
                if connection.closed:
                    raise UsageError("enlist needs an open connection")
                if not connection.in_transaction():
                    await connection.begin()
            if connection.dialect.driver != "asyncpg":
                raise UsageError(f"enlist works on asyncpg, not on {connection.dialect.driver}")
            if await has_autocommit(connection):
                raise UsageError("enlist needs a transaction; this connection is in AUTOCOMMIT mode")
            try:
                await start_on_wire(connection)
            except BaseException:
                # The server may be in a transaction that SQLAlchemy knows nothing of; it must not be used any further.
                await run_to_completion(connection.invalidate())
                raise
        self._transaction = CallersTransaction(connection, await driver_of(connection))
        self._attach(self._transaction)

    async def _commit(self) -> None:
        with translated():
            await self._flush_sessions()

    async def _rollback(self) -> None:
        return None  # the caller's to decide

    def _sql_connection(self) -> AsyncConnection:
        return self._transaction.connection
