"""The schema of an installation: made, checked and shown. Only `postgres/` and `cli/` import this module.

The migrations do the work (`migrations/env.py` says how processes that start at once keep apart); this
module finds them, in a checkout or in an installed package, runs them from inside an event loop, and tells
what a database holds. Alembic keeps its state in globals of the process and blocks, so it runs in a thread,
one call at a time.
"""

from __future__ import annotations

import asyncio
import io
import logging
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Text, cast, column, func, select, table
from sqlalchemy.ext.asyncio import AsyncConnection

from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.options import StoreOptions
from cascade_state.errors import LockNotAcquired, SchemaMismatch, StoreError
from cascade_state.ids import DEFAULT_PARTITION_COUNT
from cascade_state.model.arguments import check_duration
from cascade_state.postgres.engine import driver_url, unpooled_engine
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.renumbering import is_from_another_server, renumber_feed
from cascade_state.postgres.tables import metadata

# Alembic is imported where it is used: a process that only opens a store does without its 60 ms and 9 MB.
if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

__all__ = [
    "VERSION_TABLE",
    "InstalledSchema",
    "alembic_config",
    "alembic_lock",
    "check_database",
    "check_opening",
    "dump_schema",
    "head_revision",
    "installed_schema",
    "migrate_database",
    "migrations_directory",
    "read_schema",
    "restored_from_elsewhere",
]

_log = logging.getLogger("cascade_state.store")

VERSION_TABLE = "cascade_state_version"
# Where an application keeps its own revisions, and ours too if it embeds them.
_SHARED_VERSION_TABLE = "alembic_version"
_TABLES_READ = (VERSION_TABLE, _SHARED_VERSION_TABLE, "settings")
_REVISION_PREFIX = "cascade_state_"
_FIRST_WITH_FEEDS = "cascade_state_0007"  # asked for instead of the newest, which only Alembic knows
_RESTORED = "the database was restored from another server; migrate it before anything writes"
_HEAD = "cascade_state@head"  # by our branch label: other branches may lie beside it

# Alembic keeps what it works on in globals of the process: one command at a time, whoever runs it.
alembic_lock: threading.Lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledSchema:
    """What a database holds: the revision it is at and its partition count (None: it was never migrated)."""

    revision: str | None
    partition_count: int | None


async def migrate_database(
    url: str,
    *,
    schema: str | None = None,
    partition_count: int = DEFAULT_PARTITION_COUNT,
    lock_wait: timedelta = timedelta(minutes=1),
) -> None:
    """Brings the database to the newest revision; does nothing if it is there.

    A database that was restored from another server's dump gets its feed renumbered for this one, if need be.

    However many processes call it at once, one upgrades and the others wait for it. Each revision commits
    by itself, so an upgrade that was interrupted goes on from there when it is called again.

    Args:
        schema: Where to install, made when it is missing; None: the first schema of the search path.
        partition_count: How many partitions a new installation gets, for ever.
        lock_wait: How long to wait for another process that migrates.

    Raises:
        SchemaMismatch: The database was migrated by a newer version, or with another partition count.
        LockNotAcquired: Another process was still migrating after `lock_wait`.
        StoreUnavailable: The database cannot be reached.
        TransactionAborted: A table was busy for too long; call again.
    """
    options = StoreOptions(schema=schema, partition_count=partition_count, application_name="cascade_state migrations")
    check_duration(lock_wait, "lock_wait", allow_zero=True)
    if not await _is_current(url, options):
        await _upgrade_alone(url, options, lock_wait)
    engine = unpooled_engine(url, options)
    try:
        with translated():
            await renumber_feed(engine, schema=schema, wait=lock_wait)
    finally:
        await engine.dispose()


async def _upgrade_alone(url: str, options: StoreOptions, lock_wait: timedelta) -> None:
    from alembic.util import CommandError

    cancelled = threading.Event()
    config = alembic_config(schema=options.schema, partition_count=options.partition_count)
    config.attributes.update(url=driver_url(url), cancelled=cancelled, lock_wait_seconds=lock_wait.total_seconds())
    started = time.monotonic()
    try:
        with translated():
            await _in_thread(_upgrade, config, cancelled)
    except CommandError as error:
        if "lock_was_busy" in config.attributes:
            raise LockNotAcquired(lock_name="migration", waited=time.monotonic() - started) from error
        await _is_current(url, options)  # another process may have brought it further than we know
        raise StoreError(f"the migration failed: {error}") from error
    await _is_current(url, options)


async def check_database(
    connection: AsyncConnection,
    *,
    schema: str | None = None,
    partition_count: int = DEFAULT_PARTITION_COUNT,
) -> None:
    """Returns if the database is at the newest revision and has this partition count.

    Raises:
        SchemaMismatch: It is behind, ahead, was never migrated, has another partition count, or was restored from
            another server's dump.
    """
    found = await read_schema(connection, schema=schema)
    expected = head_revision()
    if found.revision is None:
        raise SchemaMismatch(expected=expected, found=None, reason="the database was never migrated; migrate it")
    _refuse_newer(found, expected)
    if found.revision != expected:
        raise SchemaMismatch(expected=expected, found=found.revision, reason="the database is behind; migrate it")
    _refuse_other_partition_count(found, partition_count)
    if await is_from_another_server(connection, schema=schema):
        raise restored_from_elsewhere()


def restored_from_elsewhere() -> SchemaMismatch:
    """Returns the error of whoever writes to a database that was restored from another server's dump."""
    return SchemaMismatch(expected="transaction ids of this server", found="another's", reason=_RESTORED)


async def check_opening(
    connection: AsyncConnection, *, schema: str | None = None, partition_count: int = DEFAULT_PARTITION_COUNT
) -> bool:
    """Returns whether the database may be written to: not before it is migrated, if it was restored from elsewhere.

    Raises:
        SchemaMismatch: It has another partition count.
    """
    found = await read_schema(connection, schema=schema)
    _refuse_other_partition_count(found, partition_count)
    has_feeds = found.revision is not None and found.revision >= _FIRST_WITH_FEEDS
    if has_feeds and await is_from_another_server(connection, schema=schema):
        _log.warning("writing is refused reason=%r", _RESTORED)
        return False
    return True


async def installed_schema(url: str, *, schema: str | None = None) -> InstalledSchema:
    """Returns what the database at an address holds, on a connection of its own.

    Raises:
        StoreUnavailable: The database cannot be reached.
    """
    engine = unpooled_engine(url, StoreOptions(schema=schema))
    try:
        with translated():
            async with engine.connect() as connection:
                return await read_schema(connection, schema=schema)
    finally:
        await engine.dispose()


async def read_schema(connection: AsyncConnection, *, schema: str | None = None) -> InstalledSchema:
    """Returns what the database holds."""
    own, shared, settings = (_qualified(connection, schema, name) for name in _TABLES_READ)
    relations = await connection.execute(
        select(func.to_regclass(own), func.to_regclass(shared), func.to_regclass(settings))
    )
    has_own, has_shared, has_settings = (relation is not None for relation in relations.one())
    revision = await _read_revision(connection, schema, VERSION_TABLE) if has_own else None
    if revision is None and has_shared:
        revision = await _read_revision(connection, schema, _SHARED_VERSION_TABLE)
    count = await _read_partition_count(connection, schema) if has_settings and revision is not None else None
    return InstalledSchema(revision=revision, partition_count=count)


def dump_schema(*, schema: str | None = None, partition_count: int = DEFAULT_PARTITION_COUNT) -> str:
    """Returns the whole schema as SQL that `psql` can run; it records the revision like a migration does."""
    from alembic import command

    StoreOptions(schema=schema, partition_count=partition_count)  # checks both
    output = io.StringIO()
    config = alembic_config(schema=schema, partition_count=partition_count)
    config.output_buffer = output
    with alembic_lock:
        command.upgrade(config, _HEAD, sql=True)
    return output.getvalue()


def migrations_directory() -> Path:
    """Returns where the migrations are: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "migrations", package.parent / "migrations"):
        if (directory / "env.py").is_file():
            return directory
    raise FileNotFoundError("the migrations of cascade_state are missing from this installation")


def alembic_config(
    *, schema: str | None = None, partition_count: int = DEFAULT_PARTITION_COUNT, **attributes: Any
) -> Config:
    """Returns a configuration for Alembic's own commands; the address goes into `attributes["url"]`.

    Args:
        attributes: More of what `migrations/env.py` reads, for example `connection`.
    """
    from alembic.config import Config

    directory = migrations_directory()
    config = Config(directory.parent / "alembic.ini")
    config.attributes.update(attributes, schema=schema, partition_count=partition_count, target_metadata=metadata)
    return config


@cache
def head_revision() -> str:
    """Returns the newest revision that this version of the library brings."""
    (head,) = _script().get_revisions(_HEAD)
    return str(head.revision)


@cache
def _known_revisions() -> frozenset[str]:
    return frozenset(script.revision for script in _script().walk_revisions())


def _script() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(migrations_directory()))


async def _is_current(url: str, options: StoreOptions) -> bool:
    """Says whether the database is at the newest revision; refuses one that this version must not touch."""
    found = await installed_schema(url, schema=options.schema)
    _refuse_newer(found, head_revision())
    _refuse_other_partition_count(found, options.partition_count)
    return found.revision == head_revision()


def _refuse_newer(found: InstalledSchema, expected: str) -> None:
    if found.revision is not None and found.revision not in _known_revisions():
        raise SchemaMismatch(
            expected=expected,
            found=found.revision,
            reason="it is ahead; use the version of the library that migrated it",
        )


def _refuse_other_partition_count(found: InstalledSchema, expected: int) -> None:
    if found.partition_count is not None and found.partition_count != expected:
        raise SchemaMismatch(
            expected=f"{expected} partitions",
            found=f"{found.partition_count} partitions",
            reason="the count is fixed by the first migration",
        )


async def _read_revision(connection: AsyncConnection, schema: str | None, name: str) -> str | None:
    version = column("version_num", Text)
    rows = await connection.scalars(select(version).select_from(table(name, version, schema=schema)))
    ours = sorted(row for row in rows if row.startswith(_REVISION_PREFIX))
    return ours[-1] if ours else None


async def _read_partition_count(connection: AsyncConnection, schema: str | None) -> int | None:
    name, value = column("name", Text), column("value", JSON)
    settings = table("settings", name, value, schema=schema)
    as_text = cast(value, Text)  # whatever the connection makes of json
    stored = await connection.scalar(select(as_text).select_from(settings).where(name == "partition_count"))
    return None if stored is None else int(stored)


def _qualified(connection: AsyncConnection, schema: str | None, name: str) -> str:
    quote = connection.dialect.identifier_preparer.quote
    return name if schema is None else f"{quote(schema)}.{name}"


def _upgrade(config: Config) -> None:
    from alembic import command

    with alembic_lock:
        command.upgrade(config, _HEAD)


async def _in_thread(function: Any, config: Config, cancelled: threading.Event) -> None:
    """Runs a blocking call to its end in a thread; a cancelled caller stops only the wait for the lock."""
    work = asyncio.ensure_future(asyncio.to_thread(function, config))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        cancelled.set()
        await run_to_completion(_settled(work))
        raise


async def _settled(work: asyncio.Future[None]) -> None:
    await asyncio.wait({work})
    work.exception()  # seen; the cancellation is what the caller gets
