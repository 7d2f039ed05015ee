"""Hands each test a copy of the template, sees whether it was left alone, and keeps it or drops it.

Everything goes over one connection to the maintenance database, on the loop of the blocking calls: a test pays for a
copy, not for a connection. An advisory lock on that connection says that this process lives; copies whose process is
gone, because it was killed, are dropped by the next process that starts here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cascade_state.errors import DatabaseNotFound, TestDatabaseError
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.connections import Connection, open_connection, quoted, translated
from cascade_state.testing.databases import TemporaryDatabase, create_copy, drop
from cascade_state.testing.sessions import Session, sessions_that_stay
from cascade_state.testing.templates import lock_key

if TYPE_CHECKING:
    from cascade_state.testing.server import PostgresServer

__all__ = ["Databases"]

PREFIX = "cascade_state_test_"
_logger = logging.getLogger("cascade_state.testing")
# For connections that are just ending: pools close in the background, and a killed client's server process takes a
# moment to notice. A test that leaves none waits for nothing.
_PATIENCE_SECONDS = 2.0
# On a server that somebody else runs, what was kept for a person is dropped by a run after this time.
_KEPT_FOR = timedelta(days=1)


class Databases:
    """The test databases of one process of a test run. Calls block."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._connection: Connection | None = None
        self._turn: asyncio.Lock | None = None
        self._token = secrets.token_hex(4)
        self._count = 0
        self._open: dict[str, TemporaryDatabase] = {}

    def hand_out(self, template: str) -> TemporaryDatabase:
        """Returns a new copy of the template.

        Raises:
            DatabaseNotFound: Somebody dropped the template.
        """
        self._count += 1
        name = f"{PREFIX}{self._token}_{self._count:04d}"

        async def create() -> None:
            async with self._maintenance() as connection:
                await create_copy(connection, name, template, strategy=self._server.copy_strategy)

        run_blocking(create())
        database = self._open[name] = TemporaryDatabase(self._server, name)
        return database

    def sessions_left(self, database: TemporaryDatabase) -> list[Session]:
        """Returns the connections to the database that are not just ending."""

        async def look() -> list[Session]:
            async with self._maintenance() as connection:
                return await sessions_that_stay(connection, database.name, patience=_PATIENCE_SECONDS)

        return run_blocking(look())

    def take_back(self, database: TemporaryDatabase, *, keep: bool) -> None:
        """Drops the database, or keeps it for a person; a failure is a warning."""
        if self._open.pop(database.name, None) is None:
            return

        async def end() -> None:
            async with self._maintenance() as connection:
                if keep:
                    await _mark_kept(connection, database.name)
                else:
                    with contextlib.suppress(DatabaseNotFound):  # the test itself dropped it
                        await drop(connection, database.name, force=True)

        try:
            run_blocking(end())
        except TestDatabaseError as exc:
            _logger.warning("test database %s was not dropped: %s", database.name, exc)

    def close(self) -> None:
        """Drops what an interrupted test left, and closes the connection."""
        for database in list(self._open.values()):
            self.take_back(database, keep=False)

        async def close() -> None:
            if self._connection is not None:
                await self._connection.close()

        run_blocking(close())

    @contextlib.asynccontextmanager
    async def _maintenance(self) -> AsyncIterator[Connection]:
        if self._turn is None:  # made on the loop that uses it
            self._turn = asyncio.Lock()
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await open_connection(self._server.url, application_name="cascade_state pytest")
                with translated(""):
                    await self._connection.execute("SELECT pg_advisory_lock($1)", lock_key(f"{PREFIX}{self._token}"))
                await self._drop_orphans(self._connection)
            yield self._connection

    async def _drop_orphans(self, connection: Connection) -> None:
        """Drops the copies of processes that were killed, unless somebody else is at it."""
        rows = await connection.fetch(
            "SELECT datname::text, shobj_description(oid, 'pg_database') FROM pg_database "
            "WHERE starts_with(datname::text, $1)",
            PREFIX,
        )
        owners: dict[str, list[str]] = {}
        for name, comment in rows:
            if _is_kept(comment):
                continue
            owners.setdefault(name.rpartition("_")[0], []).append(name)
        for owner, names in owners.items():
            if owner == f"{PREFIX}{self._token}" or not await connection.fetchval(
                "SELECT pg_try_advisory_lock($1)", lock_key(owner)
            ):
                continue
            for name in names:
                with contextlib.suppress(TestDatabaseError):
                    await drop(connection, name, force=True)
            await connection.fetchval("SELECT pg_advisory_unlock($1)", lock_key(owner))


async def _mark_kept(connection: Connection, name: str) -> None:
    comment = json.dumps({"tool": "cascade_state", "kept_at": datetime.now(UTC).isoformat()})
    with translated(name):
        await connection.execute(f"COMMENT ON DATABASE {quoted(name)} IS '{comment}'")


def _is_kept(comment: str | None) -> bool:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        kept_at = datetime.fromisoformat(json.loads(comment or "")["kept_at"])
        return datetime.now(UTC) - kept_at < _KEPT_FOR
    return False
