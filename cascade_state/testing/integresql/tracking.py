"""Templates that are being filled and templates that are finished: known by their databases, and nowhere else.

A template's comment says that it is ours, and of which hash; a finished one is marked as a template and lets nobody in.
So a server that was restarted, and two servers side by side, see the same. Whoever makes, publishes or drops a template
holds an advisory lock of its name meanwhile, on a connection of its own. No connection of anybody is ever cut.

Source: PostgreSQL manual, "Template Databases"; "ALTER DATABASE"; "The Cumulative Statistics System".
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cascade_state.errors import DatabaseInUse, DatabaseNotFound, TemplateNotFound, TestDatabaseError
from cascade_state.testing.connections import Connection, connect, open_connection, quoted, translated
from cascade_state.testing.integresql.settings import Settings
from cascade_state.testing.server import PostgresServer

__all__ = ["TemplateTracking", "Tracked"]

_KIND = "integresql"
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """A template: its hash, its database, whether it is finished, who is and how many have been connected to it.

    `oid` tells it from one that was made anew for the same hash.
    """

    template_hash: str
    database: str
    oid: int
    is_finished: bool
    is_connected_to: bool
    session_count: int


class TemplateTracking:
    """The templates of a server."""

    def __init__(self, server: PostgresServer, settings: Settings) -> None:
        self._server = server
        self._settings = settings
        self._names = settings.names
        self._seen: dict[int, _Seen] = {}
        self._line = asyncio.Lock()
        self._kept: Connection | None = None

    async def find(self, template_hash: str) -> Tracked | None:
        """Returns the hash's template; None when there is none that is ours."""
        async with self._reading() as connection:
            return await self._find(connection, template_hash)

    async def list_all(self) -> list[Tracked]:
        """Returns all templates, in no order; also notes which unfinished ones nobody is connected to."""
        async with self._reading() as connection:
            rows = await connection.fetch(_LIST, self._names.all_templates)
        found = [tracked for row in rows if (tracked := _tracked(row)) is not None]
        for tracked in found:
            self._note(tracked)
        for gone in self._seen.keys() - {tracked.oid for tracked in found}:
            del self._seen[gone]
        return found

    async def create(self, template_hash: str) -> Tracked | None:
        """Makes the hash's template; None when somebody else has, or is about to.

        Raises:
            DatabaseInUse: A database of that name is there that is not ours, and somebody is connected to it.
        """
        name = self._names.template(template_hash)
        found = await self.find(template_hash)
        if found is not None and not self._is_abandoned(found):
            return None
        async with self._locked(name) as connection:
            found = await self._find(connection, template_hash)
            if found is not None and not self._is_abandoned(found):
                return None
            await self._drop(connection, name)
            try:
                with translated(name):
                    await connection.execute(self._creation(name))
            except DatabaseNotFound as exc:
                raise TestDatabaseError(f"the root template {self._settings.root_template!r} does not exist") from exc
            await self._comment(connection, name, template_hash)
            return await self._get(connection, template_hash)

    async def publish(self, tracked: Tracked) -> bool:
        """Finishes the template; False when somebody is connected to it, and then nothing has changed.

        Raises:
            TemplateNotFound: It was dropped meanwhile.
        """
        name = quoted(tracked.database)
        async with self._locked(tracked.database) as connection:
            current = await self._current(connection, tracked)
            if current.is_finished:
                return True
            # First, or somebody might come between the look and the mark.
            await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            if (await self._current(connection, tracked)).is_connected_to:
                await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
                return False
            await connection.execute(f"ALTER DATABASE {name} IS_TEMPLATE true")
            return True

    async def retract(self, tracked: Tracked) -> None:
        """Makes a finished template unfinished, so that no server hands out copies of it; `publish` undoes it.

        Raises:
            TemplateNotFound: It was dropped before.
        """
        async with self._locked(tracked.database) as connection:
            await self._current(connection, tracked)
            await connection.execute(f"ALTER DATABASE {quoted(tracked.database)} IS_TEMPLATE false")

    async def drop(self, tracked: Tracked) -> None:
        """Drops the template.

        Raises:
            TemplateNotFound: It was dropped before.
            DatabaseInUse: Somebody is connected to it, and it stays.
        """
        async with self._locked(tracked.database) as connection:
            await self._current(connection, tracked)
            await self._drop(connection, tracked.database)

    async def forget(self, tracked: Tracked) -> None:
        """Makes the template an ordinary database that is not ours; the next to initialize its hash drops it."""
        name = quoted(tracked.database)
        async with self._locked(tracked.database) as connection:
            await self._current(connection, tracked)
            async with connection.transaction():
                await connection.execute(f"ALTER DATABASE {name} IS_TEMPLATE false")
                await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
                await connection.execute(f"COMMENT ON DATABASE {name} IS NULL")

    async def has_copies(self, tracked: Tracked) -> bool:
        """Tells whether there are test databases of the template."""
        async with self._reading() as connection:
            found = await connection.fetchval(_ANY_COPY, self._names.tests(tracked.template_hash))
        return bool(found)

    async def wait_until_left(self, database: str, timeout: timedelta | None = None, *, numbered: bool = False) -> None:
        """Returns when nobody is connected to the database.

        Args:
            database: Its name.
            timeout: How long to wait; None: as long as a connection may take that is being closed.
            numbered: Means the databases whose names are this one, an underscore and a number.

        Raises:
            DatabaseInUse: Somebody still was when the time was over.
        """

        async def users() -> DatabaseInUse | None:
            async with self._reading() as connection:
                return await _users(connection, database, numbered=numbered)

        await _wait_until_left(users, timeout if timeout is not None else self._settings.closing_timeout)

    async def check(self) -> str | None:
        """Returns why the server cannot be used as it is; None when it can.

        Raises:
            ServerUnavailable: It does not answer.
            PermissionDenied: It refuses the role.
        """
        async with self._connection() as connection:
            allowed = await connection.fetchval(
                "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
            )
        return None if allowed else "the management role may not create databases"

    async def close(self) -> None:
        """Gives up the connection that is kept for looks."""
        async with self._line:
            if self._kept is not None:
                self._kept.terminate()

    # ------------------------------------------------------------------------------------------------------- inside

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with connect(self._server.url, application_name="cascade_state testdb") as connection:
            with translated(self._settings.postgres.database):
                yield connection

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Connection]:
        """Yields the connection that is kept for looks; a broken one is replaced, and those who had it get an error."""
        async with self._line:
            if self._kept is None or self._kept.is_closed():
                self._kept = await open_connection(
                    self._server.url, application_name="cascade_state testdb reader", settings={}
                )
            try:
                with translated(self._settings.postgres.database):
                    yield self._kept
            except BaseException:
                self._kept.terminate()
                raise

    @asynccontextmanager
    async def _locked(self, name: str) -> AsyncIterator[Connection]:
        """Yields a connection that holds the lock of the name; the lock ends with the connection."""
        key = int.from_bytes(hashlib.sha256(f"cascade_state integresql {name}".encode()).digest()[:8], "big") >> 1
        async with self._connection() as connection:
            await connection.fetchval("SELECT pg_advisory_lock($1)", key)
            yield connection

    async def _find(self, connection: Connection, template_hash: str) -> Tracked | None:
        row = await connection.fetchrow(_FIND, self._names.template(template_hash))
        tracked = _tracked(row) if row is not None else None
        if tracked is not None:
            self._note(tracked)
        return tracked

    async def _get(self, connection: Connection, template_hash: str) -> Tracked:
        found = await self._find(connection, template_hash)
        if found is None:
            raise TemplateNotFound(template=template_hash)
        return found

    async def _current(self, connection: Connection, tracked: Tracked) -> Tracked:
        found = await self._get(connection, tracked.template_hash)
        if found.oid != tracked.oid:  # dropped, and made anew
            raise TemplateNotFound(template=tracked.template_hash)
        return found

    def _creation(self, name: str) -> str:
        owner = self._settings.test_username
        return f"CREATE DATABASE {quoted(name)} TEMPLATE {quoted(self._settings.root_template)}" + (
            f" OWNER {quoted(owner)}" if owner is not None else ""
        )

    async def _comment(self, connection: Connection, name: str, template_hash: str) -> None:
        text = json.dumps(
            {
                "tool": "cascade_state",
                "built_at": datetime.now(UTC).isoformat(),
                "metadata": {"kind": _KIND, "hash": template_hash},
            }
        )
        statement = await connection.fetchval(
            "SELECT format('COMMENT ON DATABASE %I IS %L', $1::text, $2::text)", name, text
        )
        await connection.execute(statement)

    async def _drop(self, connection: Connection, name: str) -> None:
        """Drops the database if it is there, whatever it is."""
        is_template = await connection.fetchval("SELECT datistemplate FROM pg_database WHERE datname = $1", name)
        if is_template is None:
            return
        await _wait_until_left(lambda: _users(connection, name), self._settings.closing_timeout)
        if is_template:
            await connection.execute(f"ALTER DATABASE {quoted(name)} IS_TEMPLATE false")
        try:
            with translated(name):
                await connection.execute(f"DROP DATABASE {quoted(name)}")
        except BaseException:
            if is_template:
                await connection.execute(f"ALTER DATABASE {quoted(name)} IS_TEMPLATE true")
            raise

    def _note(self, tracked: Tracked) -> None:
        """Remembers since when nobody is connected; who came and went since the last look counts as connected."""
        before = self._seen.get(tracked.oid)
        if tracked.is_connected_to or before is None or before.session_count != tracked.session_count:
            self._seen[tracked.oid] = _Seen(time.monotonic(), tracked.session_count)

    def _is_abandoned(self, tracked: Tracked) -> bool:
        if tracked.is_finished or tracked.is_connected_to:
            return False
        return time.monotonic() - self._seen[tracked.oid].at >= self._settings.abandoned_after.total_seconds()


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    session_count: int


# A session has a user, an autovacuum worker has none: that comes and goes by itself, and DROP DATABASE ends it.
# (`backend_type` is hidden from a role that may not see other roles' sessions.)
_SELECT = """
    SELECT d.datname, d.oid::bigint AS oid, d.datistemplate AND NOT d.datallowconn AS is_finished,
           shobj_description(d.oid, 'pg_database') AS comment, pg_stat_get_db_sessions(d.oid) AS session_count,
           EXISTS (
               SELECT FROM pg_stat_activity a WHERE a.datid = d.oid AND a.usesysid IS NOT NULL
           ) AS is_connected_to
    FROM pg_database d
"""
_FIND = _SELECT + "WHERE d.datname = $1"
_NUMBERED = "starts_with(datname::text, $1 || '_') AND substr(datname::text, length($1) + 2) ~ '^[0-9]+$'"
_ANY_COPY = f"SELECT EXISTS (SELECT FROM pg_database WHERE {_NUMBERED})"  # noqa: S608 - two constants
_LIST = _SELECT + "WHERE starts_with(d.datname::text, $1)"


def _tracked(row: Any) -> Tracked | None:
    try:
        metadata = json.loads(row["comment"] or "")["metadata"]
        ours = metadata["kind"] == _KIND
    except (ValueError, TypeError, KeyError):
        return None
    if not ours:
        return None
    return Tracked(
        template_hash=metadata["hash"],
        database=row["datname"],
        oid=row["oid"],
        is_finished=row["is_finished"],
        is_connected_to=row["is_connected_to"],
        session_count=row["session_count"],
    )


_USERS = f"""
    SELECT datname, pid, application_name FROM pg_stat_activity
    WHERE usesysid IS NOT NULL AND (datname = $1 OR $2 AND {_NUMBERED})
    ORDER BY datname, pid
"""  # noqa: S608 - two constants


async def _users(connection: Connection, database: str, *, numbered: bool = False) -> DatabaseInUse | None:
    """Returns the error that names who is connected to the database; None when nobody is."""
    users = await connection.fetch(_USERS, database, numbered)
    if not users:
        return None
    first = users[0]["datname"]
    connections = tuple((row["pid"], row["application_name"]) for row in users if row["datname"] == first)
    return DatabaseInUse(database=first, connections=connections)


async def _wait_until_left(users: Callable[[], Awaitable[DatabaseInUse | None]], timeout: timedelta) -> None:
    deadline = time.monotonic() + timeout.total_seconds()
    while (in_use := await users()) is not None:
        if time.monotonic() >= deadline:
            raise in_use
        await asyncio.sleep(_POLL_SECONDS)
