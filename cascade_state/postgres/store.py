"""The PostgreSQL store."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from cascade_state.abc.capabilities import Capabilities
from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.guards import Stage
from cascade_state.abc.hints import HintListener, HintTopic
from cascade_state.abc.locks import Locks
from cascade_state.abc.options import StoreOptions
from cascade_state.abc.store import Isolation, Store
from cascade_state.errors import UsageError
from cascade_state.model.arguments import check_instant
from cascade_state.model.statistics import Statistics
from cascade_state.postgres import schema
from cascade_state.postgres.direct import StatementCache
from cascade_state.postgres.engine import (
    DriverConnections,
    connect_arguments,
    driver_url,
    pooled_engine,
    shown_url,
    unpooled_engine,
)
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.hints import HintSender
from cascade_state.postgres.kept_connections import KEPT_LOCK_TIMEOUT, KeptConnections
from cascade_state.postgres.listening import HintReceiver, PostgresHintListener
from cascade_state.postgres.lock_connections import LockConnections
from cascade_state.postgres.locks import PostgresLocks
from cascade_state.postgres.repositories import attach_repositories
from cascade_state.postgres.statements.instants import CURRENT_INSTANT
from cascade_state.postgres.statistics import read_statistics
from cascade_state.postgres.store_executor import StoreExecutor
from cascade_state.postgres.unit_of_work import EnlistedUnitOfWork, OwnUnitOfWork

if TYPE_CHECKING:
    from cascade_state.postgres.embedded import EmbeddedServer

__all__ = ["PostgresStore"]

_log = logging.getLogger("cascade_state.store")

_KEPT_CONNECTIONS = 4  # enough for every line of coalesced operations to have one in flight
_KEPT_SETTINGS = {
    "lock_timeout": KEPT_LOCK_TIMEOUT,
    # A plan lives as long as its connection. One that was made while a table was nearly empty would read all of it,
    # whatever it has grown to since, until autovacuum counts its rows; so plans go by index from the beginning.
    "enable_seqscan": "off",
    "jit": "off",  # a plan without an index would look costly enough to be compiled
}
_GRACE_SECONDS = 5.0  # how long a store that closes waits for single statements under way


class PostgresStore(Store):
    """A store on PostgreSQL 15 or later."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(options)
        self._given_url = url
        self._server: EmbeddedServer | None = None
        if url.startswith("embedded:"):
            from cascade_state.postgres.embedded import EmbeddedServer  # needs the wheel of an extra

            self._server = EmbeddedServer.from_url(url)
        else:
            driver_url(url)  # refuses what cannot be a URL before anything is opened
        self._engine: AsyncEngine
        self._unpooled: AsyncEngine
        self._keeping: AsyncEngine
        self._kept: KeptConnections
        self._transactions: KeptConnections
        self._hints: HintSender | None
        self._receiver: HintReceiver | None
        self._executor: StoreExecutor
        self._advisory_locks: PostgresLocks
        self._statements = StatementCache(options.schema)
        self._connections = DriverConnections()

    @property
    def url(self) -> str:
        """The address, without its password; that of the embedded server once it runs."""
        if self._server is not None and self._guard.stage is Stage.OPEN:
            return self._server.url
        return shown_url(self._given_url)

    @property
    def capabilities(self) -> Capabilities:
        """PostgreSQL outlives the process, is shared between processes, and runs the caller's SQL."""
        return Capabilities(durable=True, cross_process=True, caller_sql=True, notify=self.options.hints)

    @property
    def _address(self) -> str:
        return self._given_url if self._server is None else self._server.url

    async def migrate(self) -> None:
        self._guard.call(writes=False)
        await schema.migrate_database(
            self._direct_address("migrations"),
            schema=self.options.schema,
            partition_count=self.options.partition_count,
        )
        self._guard.refusal = None

    async def check_schema(self) -> None:
        self._guard.call(writes=False)
        with translated():
            async with self._unpooled.connect() as connection:
                await schema.check_database(
                    connection, schema=self.options.schema, partition_count=self.options.partition_count
                )
        self._guard.refusal = None  # if it was restored from another server's dump, somebody migrated it meanwhile

    async def now(self) -> datetime:
        self._guard.call(writes=False)
        if self.options.clock is not None:
            return check_instant(self.options.clock.now(), "clock")
        (record,) = await self._executor.fetch(CURRENT_INSTANT, {})
        now: datetime = record["instant"]
        return now

    async def statistics(self, *, exact: bool = False) -> Statistics:
        self._guard.call(writes=False)
        return await read_statistics(self._executor, exact=exact)

    def _direct_address(self, purpose: str) -> str:
        if self.options.pooler is None:
            return self._address
        if self.options.direct_url is None:
            raise UsageError(f"{purpose} cannot run through a transaction pooler; open the store with direct_url=")
        return self.options.direct_url

    async def _open(self) -> None:
        if self._server is not None:
            await self._start_server(self._server)
        self._engine = pooled_engine(self._address, self.options, self._connections)
        self._unpooled = unpooled_engine(self._address, self.options, self._connections)
        self._keeping = unpooled_engine(self._address, self.options, self._connections, _KEPT_SETTINGS)
        self._kept = KeptConnections(self._keeping, _KEPT_CONNECTIONS)
        self._transactions = KeptConnections(
            self._engine,
            self.options.pool_size,
            autocommit=False,
            patience_seconds=self.options.pool_timeout_seconds,
        )
        self._hints = HintSender(self._statements, self._kept) if self.options.hints else None
        self._receiver = self._hint_receiver()
        self._executor = StoreExecutor(self.options, self._statements, self._transactions, self._kept, self._hints)
        attach_repositories(self, self._executor, self._guard, self._limits)
        lock_connections = LockConnections(self._direct_address, self.options, self._statements, self._connections)
        self._advisory_locks = PostgresLocks(self._guard, self._executor, lock_connections)
        self.locks: Locks = self._advisory_locks
        try:
            await self._check_database()
        except BaseException:
            await run_to_completion(self._close())
            raise

    def _hint_receiver(self) -> HintReceiver | None:
        if self._hints is None:
            return None
        if self.options.pooler is not None and self.options.direct_url is None:
            return None
        arguments = connect_arguments(self._direct_address("listening"), replace(self.options, pooler=None))
        return HintReceiver(lambda: self._connections.connect(arguments), self._hints, self.options.partition_count)

    async def _start_server(self, server: EmbeddedServer) -> None:
        try:
            await run_to_completion(asyncio.to_thread(server.start))
        except asyncio.CancelledError:  # it has started all the same, and nobody will close a store that never opened
            await run_to_completion(asyncio.to_thread(server.stop))
            raise

    async def _check_database(self) -> None:
        """Refuses a database that was made with another partition count; an empty database is for `migrate`.

        One that was restored from another server's dump can be read, and written to once it was migrated.
        """
        with translated():
            async with self._unpooled.connect() as connection:
                is_writable = await schema.check_opening(
                    connection, schema=self.options.schema, partition_count=self.options.partition_count
                )
        self._guard.refusal = None if is_writable else schema.restored_from_elsewhere

    async def _close(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                await self._finish_calls()
        self._connections.refuse()
        await self._engine.dispose()
        await self._keeping.dispose()
        await self._unpooled.dispose()
        await self._connections.terminate()
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)

    async def _finish_calls(self) -> None:
        """Waits for the single statements under way; what needs longer, and units of work, loses its connection."""
        if self._receiver is not None:
            await self._receiver.close()
        await self._advisory_locks.close()
        await self._executor.close()
        if self._hints is not None:
            await self._hints.close()
        await self._kept.close()
        await self._transactions.close(wait=False)

    def _listener(self, topic: HintTopic) -> HintListener:
        if self._receiver is None and self.options.hints:
            _log.warning("not listening for hints reason=%r", "behind a transaction pooler listening needs direct_url=")
        return PostgresHintListener(self._receiver, topic)

    def _unit_of_work(self, isolation: Isolation | None, read_only: bool) -> OwnUnitOfWork:
        uow = OwnUnitOfWork(
            self.options,
            self._statements,
            self._advisory_locks,
            self._transactions,
            isolation=isolation,
            read_only=read_only,
            hints=self._hints,
        )
        uow._guard.refusal = self._guard.refusal
        return uow

    def _enlist(
        self, session_or_connection: AsyncSession | AsyncConnection
    ) -> AbstractAsyncContextManager[EnlistedUnitOfWork]:
        uow = EnlistedUnitOfWork(self.options, self._statements, self._advisory_locks, session_or_connection)
        uow._guard.refusal = self._guard.refusal
        return uow  # type: ignore[return-value]
