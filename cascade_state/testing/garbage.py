"""Garbage collection: databases of tests that nobody needs any more.

What a test run leaves on a server that outlives it: templates of migrations that have changed since, copies in pools,
databases of processes that were killed. All bear names that begin alike, so a prefix chooses them; age and what is to
be kept narrow the choice. Nothing that is in use is ever dropped: what somebody is connected to, leases, makes or
builds, and what belongs to an open pool.

Age is that of the last use that is known: of a copy in a pool its last lease or return; of a template, when it was
built, or when its pool was last used; of others when their files were made, where the role may know that (a superuser,
or a member of `pg_read_server_files`). What has no known age is not older than anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from cascade_state.errors import DatabaseInUse, DatabaseNotFound, InvalidArgument, PermissionDenied
from cascade_state.testing.connections import Connection, connect, translated
from cascade_state.testing.pool.session import BOOKS, GRACE
from cascade_state.testing.pool.upkeep import MARK_MISSING
from cascade_state.testing.templates import lock_key

__all__ = ["collect_garbage"]

_logger = logging.getLogger(__name__)

# How long a template that is filled by somebody who holds no session may be without a connection.
_UNFINISHED = timedelta(minutes=2)

_ATTEMPTS = 3
_LOOKS, _LOOK_SECONDS = 10, 0.05  # at what seems to be in use

_HASH = re.compile("[0-9a-f]{12,64}")

_NEVER = ("postgres", "template0", "template1", BOOKS)

_DATABASES = """
SELECT d.datname::text AS name, d.oid, d.datistemplate AS is_template,
       shobj_description(d.oid, 'pg_database') AS comment,
       EXISTS (SELECT FROM pg_stat_activity a WHERE a.datname = d.datname AND a.usesysid IS NOT NULL) AS is_in_use
FROM pg_database d
WHERE d.datname <> current_database() AND d.datname <> ALL ($1::text[])
"""

_LOCKS = """
SELECT (l.classid::bigint << 32) | l.objid::bigint AS key
FROM pg_locks l
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
"""

_FILES = "SELECT modification FROM pg_stat_file('base/' || $1::oid::text || '/PG_VERSION', true)"

_MISSING = """
SELECT count(*) FROM slots s
WHERE starts_with(s.database, $1) AND s.holder IN (SELECT holder FROM holders WHERE missing_since IS NOT NULL)
"""

_SLOTS = """
SELECT s.database, s.template, s.changed_at,
       s.state = 'leased' AND s.holder IS NULL AS is_handed_out,
       EXISTS (
           SELECT FROM holders h
           WHERE h.missing_since IS NULL AND (h.holder = s.holder OR s.template = ANY (h.templates))
       ) AS is_in_use
FROM slots s
"""

_OPEN_POOLS = "SELECT DISTINCT unnest(templates) AS template FROM holders WHERE missing_since IS NULL"

# Only while nobody has taken it in the meantime: the pools of the server then leave it alone.
_DOOM = """
UPDATE slots s SET state = 'recycling', is_doomed = true, holder = NULL, may_disconnect = false
WHERE s.database = $1
  AND (s.holder IS NULL OR NOT EXISTS (SELECT FROM holders h WHERE h.holder = s.holder AND h.missing_since IS NULL))
RETURNING true
"""

_FORGET = "DELETE FROM slots WHERE database = $1 AND is_doomed"


class _Server(Protocol):
    @property
    def url(self) -> str: ...

    def url_for(self, name: str) -> str: ...

    async def drop_database(self, name: str, *, force: bool = False) -> None: ...


@dataclass(slots=True, kw_only=True)
class _Found:
    """A database, and what is known of it."""

    name: str
    oid: int
    is_in_use: bool
    is_template: bool
    belongs_to: str
    """The name that the prefix is compared with: that of the template, where it is a template's scratch database."""
    template: str = ""
    """The template that it is a copy of, where it is a pool's."""
    hash: str = ""
    used_at: datetime | None = None


@dataclass(slots=True)
class _Books:
    """What the pools know."""

    slots: Mapping[str, Any] = field(default_factory=dict)
    open_pools: Collection[str] = ()


async def collect_garbage(
    server: _Server, *, prefix: str, older_than: timedelta | None, keep: Collection[str], dry_run: bool
) -> list[str]:
    """Drops what nobody needs; see `DatabaseCommands.collect_garbage`."""
    if not prefix:
        raise InvalidArgument(argument="prefix", reason="must not be empty: it would choose every database")
    if isinstance(keep, str):
        raise InvalidArgument(argument="keep", reason="must be a collection of names or hashes, not one text")
    async with connect(server.url) as connection:
        found = await _survey(server, connection, prefix)
        hashes = {database.name: database.hash for database in found}
        chosen = [
            database
            for database in found
            if not database.is_in_use and not _is_kept(database, hashes.get(database.template, ""), keep)
        ]
        if older_than is not None:
            chosen = [database for database in chosen if await _is_older(connection, database, older_than)]
    if dry_run:
        return sorted(database.name for database in chosen)
    # Copies first: a template whose copies turn out to be in use is wanted.
    copies = [database for database in chosen if not database.is_template]
    dropped = [database.name for database in copies if await _drop(server, database)]
    needed = {database.template for database in copies if database.name not in dropped}
    templates = [database for database in chosen if database.is_template and database.name not in needed]
    dropped += [database.name for database in templates if await _drop(server, database)]
    return sorted(dropped)


async def _survey(server: _Server, connection: Connection, prefix: str) -> list[_Found]:
    with translated(""):
        rows = await connection.fetch(_DATABASES, list(_NEVER))
        for _ in range(_LOOKS):
            if not any(row["is_in_use"] and row["name"].startswith(prefix) for row in rows):
                break
            await asyncio.sleep(_LOOK_SECONDS)  # a client's close returns before the server's process has gone
            rows = await connection.fetch(_DATABASES, list(_NEVER))
        locks = {row["key"] for row in await connection.fetch(_LOCKS)}
    has_books = await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", BOOKS)
    books = await _read_books(server, prefix) if has_books else _Books()
    found = [_found(row, books, locks) for row in rows]
    leased_from = {database.template for database in found if database.is_in_use}
    for database in found:
        if database.name in leased_from:
            database.is_in_use = True
    return [database for database in found if database.belongs_to.startswith(prefix)]


async def _read_books(server: _Server, prefix: str) -> _Books:
    async with connect(server.url_for(BOOKS)) as books:
        with translated(BOOKS):
            if not await books.fetchval("SELECT to_regclass('slots') IS NOT NULL"):
                return _Books()
            await books.execute(MARK_MISSING)
            if await books.fetchval(_MISSING, prefix):
                # A holder that lost its connection, not its life, has this long to come back.
                await asyncio.sleep(GRACE.total_seconds())
                await books.execute(MARK_MISSING)
            slots = {row["database"]: row for row in await books.fetch(_SLOTS)}
            return _Books(slots, {row["template"] for row in await books.fetch(_OPEN_POOLS)})


def _found(row: Any, books: _Books, locks: Collection[int]) -> _Found:
    comment = _parsed(row["comment"])
    found = _Found(
        name=row["name"],
        oid=row["oid"],
        is_in_use=row["is_in_use"],
        is_template=row["is_template"],
        belongs_to=comment.get("scratch_of") or row["name"],
        hash=str((comment.get("metadata") or {}).get("hash") or ""),
        used_at=_instant(comment.get("built_at") or comment.get("begun_at")),
    )
    if found.belongs_to in books.open_pools or lock_key(found.belongs_to) in locks:
        found.is_in_use = True
    if "built_at" in comment and not found.is_template:  # being filled
        found.is_in_use = found.is_in_use or not _has_passed(found.used_at, _UNFINISHED)
    slot = books.slots.get(found.name)
    if slot is not None:
        found.template, found.used_at = slot["template"], slot["changed_at"]
        # Nobody can say whether an HTTP client is still there: it has as long as one that lost interest in filling.
        is_out = slot["is_handed_out"] and not _has_passed(found.used_at, _UNFINISHED)
        found.is_in_use = found.is_in_use or slot["is_in_use"] or is_out
    for other in books.slots.values():
        if other["template"] == found.name:
            found.used_at = max(found.used_at or other["changed_at"], other["changed_at"])
    return found


def _parsed(comment: str | None) -> Mapping[str, Any]:
    try:
        document = json.loads(comment or "")
    except ValueError:
        return {}
    return document if isinstance(document, dict) and document.get("tool") == "cascade_state" else {}


def _instant(text: Any) -> datetime | None:
    try:
        instant = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return instant if instant.tzinfo is not None else None


def _is_kept(database: _Found, template_hash: str, keep: Collection[str]) -> bool:
    names = (database.name, database.belongs_to, database.template)
    for wanted in keep:
        if wanted in names or (wanted and wanted in (database.hash, template_hash)):
            return True
        # A name that has the short form of the hash in it, as is the custom.
        if _HASH.fullmatch(wanted) and any(wanted[:12] in name for name in names):
            return True
    return False


async def _is_older(connection: Connection, database: _Found, age: timedelta) -> bool:
    used_at = database.used_at
    if used_at is None:
        try:
            with translated(database.name):
                used_at = await connection.fetchval(_FILES, database.oid)
        except PermissionDenied:
            return False
    return _has_passed(used_at, age)


def _has_passed(instant: datetime | None, age: timedelta) -> bool:
    return instant is not None and datetime.now(UTC) - instant >= age


async def _drop(server: _Server, database: _Found) -> bool:
    """Drops the database; False when it turns out to be in use, or somebody else was quicker."""
    try:
        if not database.template:
            await _drop_unused(server, database.name)
            return True
        async with connect(server.url_for(BOOKS)) as books:
            with translated(BOOKS):
                if not await books.fetchval(_DOOM, database.name):
                    return False
                # Doomed by us, it may be dropped by the keeper of an open pool before we come to it.
                with contextlib.suppress(DatabaseNotFound):
                    await _drop_unused(server, database.name)
                await books.execute(_FORGET, database.name)
        return True
    except DatabaseInUse as exc:
        _logger.info("database %s is left alone: %s", database.name, exc)
    except PermissionDenied as exc:
        _logger.warning("database %s cannot be dropped: %s", database.name, exc)
    except DatabaseNotFound:
        pass
    return False


async def _drop_unused(server: _Server, name: str) -> None:
    for _ in range(_ATTEMPTS - 1):
        try:
            await server.drop_database(name)
            return
        except DatabaseInUse as exc:
            if exc.connections:
                raise
            # No client: autovacuum, which is slow to leave on a busy machine.
    await server.drop_database(name)
