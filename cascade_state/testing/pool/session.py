"""The session of a process with the books: one kept connection, whose advisory lock proves that the process lives.

All pools of a server in one event loop share a session, so a lease costs one round trip and no connection. When the
connection breaks, the session connects again by itself and takes the same lock; others wait for a moment before they
believe that it is gone (`GRACE`).

The books are a database of their own on the server (see ADR 0015). What they say is written to the same log as the
tests' own changes, in order; so nothing has to wait for a disk, and after a crash of the server no database can be
changed and yet look clean. Where the server waits for no disk anyway, a commit is handed to the operating system, and
survives a killed server; elsewhere a holder enters again what it leases, should the books have forgotten it.

Only the pool imports this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

from cascade_state.errors import DatabaseAlreadyExists, DatabaseNotFound, ServerUnavailable
from cascade_state.testing.connections import Connection, open_connection, translated
from cascade_state.testing.databases import DatabaseCommands
from cascade_state.testing.pool.slots import LAYOUT

__all__ = ["BOOKS", "GRACE", "PoolSession", "shared_session"]

_logger = logging.getLogger(__name__)

# The number is the layout's: a version of the library with other columns keeps other books.
BOOKS = "cascade_state_pools_1"

# How long a holder may be without its lock before it counts as gone: time to connect again, not to be noticed.
GRACE = timedelta(seconds=1)

_SETTINGS = {
    "jit": "off",
    "idle_session_timeout": "0",  # whatever the role or the database says: this session is the proof of life
    "statement_timeout": "0",
    # A holder whose machine vanished without a word is gone after half a minute.
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_LOCK_SECONDS = 10.0  # for the server to notice that this session's last connection is gone
_RECONNECT_SECONDS = (0.0, 0.02, 0.05, 0.1, 0.2)  # then again and again the last

# Not to_regclass(): it may answer from this session's cache, although somebody has made the table meanwhile.
_HAS_TABLES = "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'slots' AND relkind = 'r')"
_COMMIT = """
SELECT set_config('synchronous_commit', CASE current_setting('fsync') WHEN 'off' THEN 'on' ELSE 'off' END, false)
"""
_ENTER_FORGOTTEN = """
UPDATE slots SET state = 'leased', holder = $1, changed_at = clock_timestamp()
WHERE state = 'ready' AND holder IS NULL AND database = ANY ($2::text[])
"""
_RETURN_UNKNOWN = """
UPDATE slots SET state = 'ready', holder = NULL, changed_at = clock_timestamp()
WHERE holder = $1 AND state = 'leased' AND NOT (database = ANY ($2::text[]))
"""
_RELEASE_UNKNOWN = """
UPDATE slots SET holder = NULL
WHERE holder = $1 AND state = 'recycling' AND NOT (database = ANY ($2::text[]))
"""
_GIVE_UP_ALL = """
UPDATE slots
SET may_disconnect = may_disconnect AND state = 'recycling', state = 'recycling', holder = NULL,
    changed_at = clock_timestamp()
WHERE holder = $1
"""
_ENROL = """
INSERT INTO holders (holder, process_id, application_name, templates) VALUES ($1, $2, $3, $4)
ON CONFLICT (holder) DO UPDATE SET missing_since = NULL, templates = excluded.templates
"""


class PoolSession:
    """One holder: its connections, its lock, and what it leases."""

    def __init__(self, server: DatabaseCommands) -> None:
        self.server: DatabaseCommands = server
        # 62 bits: its halves in pg_locks are unsigned, and a positive number makes them easy to put together.
        self.holder: int = secrets.randbits(62)
        # Names of databases. What else the books say is ours was never handed out, or is not being made any more.
        self.leased: set[str] = set()
        self.making: set[str] = set()
        self.listeners: set[Callable[[str], None]] = set()
        self.clones: asyncio.Semaphore = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self.users: int = 0
        self._templates: list[str] = []
        self._connection: Connection | None = None
        self._line = asyncio.Lock()  # one statement at a time on the kept connection, first come, first served
        self._spare: list[Connection] = []
        self._reconnecting: asyncio.Task[None] | None = None
        self._is_closed = False

    async def fetchrow(self, statement: str, *arguments: object) -> Any:
        """Returns the first row of a statement on the kept connection; sent again when the connection broke.

        The statements of `slots` are made for it: each states what it expects, and what a lost answer leased is given
        back when the session connects again.
        """
        async with self._line:
            if self._is_closed:
                raise ServerUnavailable(reason="this session of the pool is closed")
            connection, is_fresh = self._connection, False
            if connection is None or connection.is_closed():
                connection, is_fresh = await self._connect(), True
            try:
                with translated(BOOKS):
                    return await connection.fetchrow(statement, *arguments)
            except ServerUnavailable:
                connection.terminate()
                if is_fresh:
                    raise
            connection = await self._connect()
            with translated(BOOKS):
                return await connection.fetchrow(statement, *arguments)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Connection]:
        """Yields a connection for everything that takes longer; kept for the next who asks."""
        connection = self._unbroken_spare() or await self._open("worker")
        try:
            with translated(BOOKS):
                yield connection
        except (ServerUnavailable, asyncio.CancelledError):
            connection.terminate()  # broken, or in the middle of a command
            raise
        finally:
            self._keep(connection)

    async def open(self) -> None:
        """Connects and takes the lock."""
        async with self._line:
            if self._connection is None:
                await self._connect()

    async def close(self) -> None:
        """Gives back whatever this holder still has, and lets the lock go."""
        self._is_closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait([self._reconnecting])
        async with self._line:
            connection, self._connection = self._connection, None
            if connection is not None and not connection.is_closed():
                with contextlib.suppress(ServerUnavailable), translated(BOOKS):
                    await connection.fetchrow(_GIVE_UP_ALL, self.holder)
                    await connection.fetchrow("DELETE FROM holders WHERE holder = $1", self.holder)
        for open_one in (connection, *self._spare):
            if open_one is not None and not open_one.is_closed():
                await open_one.close(timeout=_LOCK_SECONDS)
        self._spare.clear()

    @asynccontextmanager
    async def pool_of(self, template: str) -> AsyncIterator[None]:
        """Says in the books, for as long as it is open, that this holder has a pool of the template."""
        self._templates.append(template)
        await self.fetchrow(_ENROL, *self._enrolment())
        try:
            yield
        finally:
            self._templates.remove(template)
            with contextlib.suppress(ServerUnavailable):
                await self.fetchrow(_ENROL, *self._enrolment())

    def _enrolment(self) -> tuple[object, ...]:
        return (self.holder, os.getpid(), _program(), sorted(set(self._templates)))

    def _unbroken_spare(self) -> Connection | None:
        while self._spare:
            connection = self._spare.pop()
            if not connection.is_closed():  # as they are after a restart of the server
                return connection
        return None

    def _keep(self, connection: Connection) -> None:
        if self._is_closed:
            connection.terminate()
        elif not connection.is_closed():
            self._spare.append(connection)

    async def _connect(self) -> Connection:
        connection = await self._open("holder")
        try:
            with translated(BOOKS):
                await _lay_out(connection)
                await connection.fetchval("SELECT pg_advisory_lock($1)", self.holder, timeout=_LOCK_SECONDS)
                await connection.fetchval(_ENROL, *self._enrolment())
                await connection.fetchval(_ENTER_FORGOTTEN, self.holder, sorted(self.leased))
                await connection.fetchval(_RETURN_UNKNOWN, self.holder, sorted(self.leased))
                await connection.fetchval(_RELEASE_UNKNOWN, self.holder, sorted(self.making))
                await connection.add_listener("slots", self._notified)
        except BaseException:
            connection.terminate()
            raise
        connection.add_termination_listener(self._lost)
        self._connection = connection
        return connection

    async def _open(self, role: str) -> Connection:
        url, name = self.server.url_for(BOOKS), f"cascade_state pool {role} of {os.getpid()}"
        try:
            connection = await open_connection(url, application_name=name, settings=_SETTINGS)
        except DatabaseNotFound:
            await self._make_books()
            connection = await open_connection(url, application_name=name, settings=_SETTINGS)
        try:
            with translated(BOOKS):
                await connection.fetchval(_COMMIT)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _make_books(self) -> None:
        with contextlib.suppress(DatabaseAlreadyExists):  # somebody was first
            await self.server.create_database(BOOKS)

    def _notified(self, _connection: object, _pid: int, _channel: str, template: str) -> None:
        for listener in tuple(self.listeners):
            listener(template)

    def _lost(self, connection: Connection) -> None:
        if self._is_closed or connection is not self._connection:
            return
        _logger.warning("the connection to the books of the pools broke; connecting again")
        self._reconnecting = asyncio.ensure_future(self._reconnect())

    async def _reconnect(self) -> None:
        """Takes the lock again at once, whether or not anybody has something to ask: it is what others look at."""
        attempt = 0
        while True:
            await asyncio.sleep(_RECONNECT_SECONDS[min(attempt, len(_RECONNECT_SECONDS) - 1)])
            attempt += 1
            async with self._line:
                if self._connection is not None and not self._connection.is_closed():
                    return
                with contextlib.suppress(ServerUnavailable):
                    await self._connect()
                    return


_sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, PoolSession]] = WeakKeyDictionary()


@asynccontextmanager
async def shared_session(server: DatabaseCommands) -> AsyncIterator[PoolSession]:
    """Yields the session of this event loop with the server; the last user closes it."""
    sessions = _sessions.setdefault(asyncio.get_running_loop(), {})
    url = server.url
    session = sessions.get(url)
    if session is None:
        session = sessions[url] = PoolSession(server)
    session.users += 1
    try:
        await session.open()
        yield session
    finally:
        session.users -= 1
        if not session.users:
            if sessions.get(url) is session:
                del sessions[url]
            await session.close()


async def _lay_out(connection: Connection) -> None:
    """Makes the tables of the books, unless they are there."""
    if await connection.fetchval(_HAS_TABLES):
        return
    async with connection.transaction():
        await connection.fetchval("SELECT pg_advisory_xact_lock(hashtextextended('cascade_state pools layout', 0))")
        if not await connection.fetchval(_HAS_TABLES):  # somebody was first
            await connection.execute(LAYOUT)


def _program() -> str:
    return os.path.basename(sys.argv[0] if sys.argv else "")[:200] or "python"
