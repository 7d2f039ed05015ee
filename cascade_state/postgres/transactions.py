"""Transactions: one of our own on a kept connection, and the caller's.

Both may be used in two ways at once, by statements that go straight to the driver and through SQLAlchemy. Ours belongs
to the driver as long as nobody asks for SQLAlchemy's side of it: then it costs BEGIN, COMMIT and nothing else. Whoever
asks gets a SQLAlchemy connection that is in the same transaction, begun or not.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncTransaction

from cascade_state.abc.completion import run_to_completion
from cascade_state.errors import StoreUnavailable, TransactionAborted, UsageError
from cascade_state.postgres.connections import (
    LONGEST_SILENCE_SECONDS,
    discard,
    start_or_discard,
)
from cascade_state.postgres.direct import (
    DriverConnection,
    begin_is_sent,
    expect_begin,
    has_begun,
    was_rolled_back_instead,
)
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.kept_connections import KeptConnections

__all__ = ["CallersTransaction", "OwnTransaction", "Transaction"]


class Transaction(Protocol):
    """What an executor needs to know of the transaction in which its statements run."""

    driver: DriverConnection

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was sent yet, so that it has not begun on the wire."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether what is sent now is inside the transaction."""
        ...

    async def start(self) -> None:
        """Sends BEGIN. A connection on which that fails is not used again."""
        ...


class OwnTransaction:
    """A kept connection with a transaction on it: begin once, then commit or roll back once.

    Args:
        execution_options: SQLAlchemy's, of this transaction only.
        settings: Statements without results to be sent with the BEGIN, which then goes with the first statement: a
            transaction that nobody uses costs no round trip. None: BEGIN is sent when it begins.
    """

    def __init__(
        self, connections: KeptConnections, execution_options: dict[str, Any], *, settings: str | None = None
    ) -> None:
        self._connections = connections
        self._execution_options = execution_options
        self._settings = settings
        self._connection: AsyncConnection
        self.driver: DriverConnection
        self._begun: Any = None  # the driver's transaction
        self._shown: AsyncTransaction | None = None  # SQLAlchemy's

    async def begin(self) -> None:
        """Takes a connection and sends BEGIN: one round trip, or none when that is put off."""
        with translated():
            self._connection, self.driver = await self._connections.take()
            try:
                expect_begin(self.driver, self._settings or "")
                if self._execution_options:
                    await self._connection.execution_options(**self._execution_options)
                    self.connection()  # so that the options end with the transaction
                if self._settings is None:
                    await self.start()
            except BaseException:
                await run_to_completion(self._throw_away())
                raise

    @property
    def is_untouched(self) -> bool:
        return not has_begun(self.driver) and (self._shown is None or self._connection.in_transaction())

    @property
    def is_unused(self) -> bool:
        """Whether nothing was sent, and nobody has anything to send with."""
        return self._shown is None and not has_begun(self.driver)

    @property
    def is_open(self) -> bool:
        return (self._shown is None or self._shown.is_active) and self.driver.is_in_transaction()

    async def start(self) -> None:
        if self._shown is not None:
            await start_or_discard(self._connection)
            return
        begin_is_sent(self.driver)  # whoever swallows that it failed must not believe that nothing was to be stored
        begun = self.driver.transaction()
        try:
            await begun.start()
        except BaseException:
            self.driver.terminate()  # cancelled within BEGIN, the server may be in a transaction
            raise
        self._begun = begun

    def connection(self) -> AsyncConnection:
        """Returns SQLAlchemy's connection; from now on it knows of the transaction, and ends it."""
        connection: Any = self._connection
        if self._shown is None:
            connection.sync_connection.begin()  # sends nothing
            self._shown = self._connection.get_transaction()
            if self._begun is not None:
                adapter = connection.sync_connection.connection.dbapi_connection
                adapter._transaction = self._begun
                with suppress(AttributeError):  # SQLAlchemy 2.0
                    adapter._started = True
        return self._connection

    async def commit(self) -> None:
        """Commits (one round trip) and gives the connection back, whatever happens."""
        try:
            self._require_open()
            with translated():
                if self._shown is not None:
                    await self._shown.commit()
                elif self._begun is not None:
                    await self._begun.commit()
        finally:
            await self._give_back()
        if was_rolled_back_instead(self.driver):
            raise TransactionAborted(reason="an earlier statement of this transaction failed", sqlstate="25P02")

    def _require_open(self) -> None:
        """Refuses to commit what did not begin, or has ended, although the block that it belongs to raised nothing."""
        if not has_begun(self.driver):
            return
        if not self.driver.is_closed() and not self.is_open:
            raise UsageError("the transaction of this unit of work was ended by its connection or session")
        if self._shown is None and self._begun is None:
            raise StoreUnavailable(reason="the transaction could not begin")

    async def rollback(self) -> None:
        """Rolls back and gives the connection back; a connection that is gone has rolled back by itself."""
        await self._give_back()

    def leave(self) -> None:
        """Ends a transaction that is unused."""
        self._connections.put_back((self._connection, self.driver))

    async def _give_back(self) -> None:
        kept = (self._connection, self.driver)
        try:
            async with asyncio.timeout(LONGEST_SILENCE_SECONDS):
                if self._shown is not None:
                    if self.driver.is_closed():
                        await self._connection.invalidate()
                    await self._connection.close()  # rolls back what is open
                elif self.driver.is_in_transaction():
                    await self._begun.rollback()
        except Exception:
            self.driver.terminate()
            if self._shown is not None:
                await discard(self._connection)
        if self._shown is not None or self._connections.is_closed:
            await self._connections.give_up(kept)
        else:
            self._connections.put_back(kept)

    async def _throw_away(self) -> None:
        self.driver.terminate()
        await discard(self._connection)
        await self._connections.give_up((self._connection, self.driver))


class CallersTransaction:
    """The transaction of a SQLAlchemy connection of the caller's, begun on the wire by whoever enlisted."""

    def __init__(self, connection: AsyncConnection, driver: DriverConnection) -> None:
        self.connection = connection
        self.driver = driver
        self._root = self._present()

    def _present(self) -> Any:
        connection: Any = self.connection
        return connection.sync_connection.get_transaction()

    @property
    def is_untouched(self) -> bool:
        return not has_begun(self.driver) and self.connection.in_transaction()

    @property
    def is_open(self) -> bool:
        # Not merely in a transaction: a later one of the same connection is not the one that was enlisted.
        return self.connection.in_transaction() and self._present() is self._root and self.driver.is_in_transaction()

    async def start(self) -> None:
        await start_or_discard(self.connection)
