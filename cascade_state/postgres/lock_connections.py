"""The connections of session-level locks: each serves one lock at a time, and nobody but locks.

A session-level lock stays with its connection, whatever becomes of transactions. So such a connection never comes from
the pool, where the next user of it would hold the lock; it goes around a transaction pooler, which would hand the
session to somebody else; and it goes on to another lock only when the server confirmed that it holds none. Of a
connection of which that is not known, nothing is used any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cascade_state.abc.options import StoreOptions
from cascade_state.errors import StoreError, StoreNotOpen, UsageError
from cascade_state.postgres.direct import DriverConnection, Record, Statement, StatementCache
from cascade_state.postgres.engine import DriverConnections, connect_arguments
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.statements.locks import SESSION, UNLOCK_ALL

__all__ = ["LockConnections"]

_KEPT = 2  # one for who locks and releases again and again, one for who tries meanwhile
ANSWER_SECONDS = 5.0  # within which a server that lives answers a statement that waits for nothing

_SETTINGS = {
    # Whatever the database or the role has for a default must not end a session that only holds a lock.
    "idle_session_timeout": "0",
    "statement_timeout": "0",
    "lock_timeout": "0",
    # The server notices within half a minute that the machine of a holder is gone; its default is two hours.
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class LockConnections:
    """Opens connections for locks, and keeps a few that are free."""

    def __init__(
        self, address: Callable[[str], str], options: StoreOptions, statements: StatementCache, all_: DriverConnections
    ) -> None:
        self._address = address
        self._options = replace(options, pooler=None, direct_url=None)
        self._statements = statements
        self._all = all_
        self._free: list[DriverConnection] = []
        self._closed = False

    async def take(self) -> tuple[DriverConnection, bool]:
        """Returns a connection that holds no lock, and whether it is a kept one, which may have broken unnoticed.

        Raises:
            UsageError: There is a transaction pooler, and no way around it.
        """
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection, True
        return await self._opened(), False

    async def fetch(
        self, connection: DriverConnection, statement: Statement, values: Mapping[str, Any]
    ) -> list[Record]:
        """Runs a statement."""
        with translated():
            return await self._statements.fetch(connection, statement, values)

    async def ask(self, connection: DriverConnection, statement: Statement, values: Mapping[str, Any]) -> list[Record]:
        """Runs a statement that waits for nothing.

        Raises:
            TimeoutError: The server does not answer.
        """
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self.fetch(connection, statement, values)

    def put_back(self, connection: DriverConnection) -> None:
        """Takes a connection back that holds no lock."""
        if self._closed or len(self._free) >= _KEPT:
            connection.terminate()
        else:
            self._free.append(connection)

    async def discard(self, connection: DriverConnection) -> None:
        """Ends a connection that may hold a lock, or wait for one; when this returns it does neither.

        A statement that was cancelled is waited for: it may have been granted the lock in that moment.
        """
        for _ in range(2):  # the driver's request to cancel may come late, and then meets the first attempt
            try:
                await self.ask(connection, UNLOCK_ALL, {})
                break
            except (StoreError, TimeoutError):
                continue
        connection.terminate()

    def close(self) -> None:
        """Ends those that are free; others end when they are put back."""
        self._closed = True
        while self._free:
            self._free.pop().terminate()

    async def _opened(self) -> DriverConnection:
        arguments = connect_arguments(self._address("a session-level lock"), self._options, _SETTINGS)
        with translated():
            connection: DriverConnection = await self._all.connect(arguments)
        try:
            await self._check_session(connection)
        except BaseException:
            connection.terminate()
            raise
        if self._closed:
            connection.terminate()
            raise StoreNotOpen
        return connection

    async def _check_session(self, connection: DriverConnection) -> None:
        """Refuses a connection that does not lead to one session: who answers must be who was connected to."""
        (record,) = await self.ask(connection, SESSION, {})
        if record["pid"] != connection.get_server_pid():
            raise UsageError(
                "this address leads through a pooler, where a session-level lock would go astray; "
                "open the store with pooler= and a direct_url= that goes around it, or use uow.lock"
            )
