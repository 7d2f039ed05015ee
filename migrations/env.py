"""The environment that Alembic runs the revisions in, from the command line and from `store.migrate()` alike.

Where the database is: `-x url=…`, or what a program put in (`attributes["url"]`, the option
`sqlalchemy.url`), or the variable DATABASE_URL; `postgresql://` means asyncpg. `-x schema=…` installs into
that schema, and makes it when it is missing; `-x partition_count=…` counts at the first migration only.

Many processes may start at once: each takes an advisory lock of the database first, so one upgrades, and
the others find the work done. They ask for the lock again and again instead of waiting inside one
statement, because a waiting statement holds a snapshot, and CREATE INDEX CONCURRENTLY in the process that
has the lock would wait for that.

Each revision commits by itself. Logging is left as it was. A revision that an application embeds runs in the
application's environment instead of this one.
"""

from __future__ import annotations

import asyncio
import os
import pkgutil
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import BigInteger, Connection, MetaData, func, inspect, literal, select, text
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.types import UserDefinedType

VERSION_TABLE = "cascade_state_version"
SCHEMA_COMMENT = "made by the migrations of cascade_state"
# Another process migrates for as long as it needs; whoever waits longer than this is told so.
LOCK_WAIT_SECONDS = 60.0
LOCK_POLL_SECONDS = 0.05
# DDL that waits for a busy table makes everybody after it wait too, so it gives up soon and can be run again.
LOCK_TIMEOUT = "10s"
# BLAKE2b with 8 bytes, as for every advisory lock of cascade_state; one for all schemas of a database.
LOCK_KEY = int.from_bytes(blake2b(b"cascade_state//migration/", digest_size=8).digest(), "big", signed=True)

config = context.config
arguments: dict[str, str] = context.get_x_argument(as_dictionary=True)
schema: str | None = arguments.get("schema") or config.attributes.get("schema")
if "partition_count" in arguments:
    config.attributes["partition_count"] = arguments["partition_count"]  # for the first revision


class XID8(UserDefinedType[int]):
    """A type that SQLAlchemy does not know by itself when it reads a schema."""

    def get_col_spec(self, **_: Any) -> str:
        """Returns the name of the type."""
        return "xid8"


def driver_address() -> str:
    """Returns the address in the form that the driver takes."""
    url = (
        arguments.get("url")
        or config.attributes.get("url")
        or config.get_main_option("sqlalchemy.url")
        or os.environ.get("DATABASE_URL")
    )
    if not url:
        raise CommandError("no database: set DATABASE_URL, or give -x url=postgresql://…")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres", "postgresql+asyncpg"):
        raise CommandError("the database address must begin with postgresql://")
    return f"postgresql://{rest}"


def metadata_to_compare() -> MetaData | None:
    """Returns the tables of the application, unless the command line runs a command that compares nothing."""
    given = config.attributes.get("target_metadata")
    if given is not None:
        return given
    command = getattr(config.cmd_opts, "cmd", None)
    name = config.get_main_option("target_metadata")
    if name is None or (command is not None and command[0].__name__ not in ("check", "revision")):
        return None
    return pkgutil.resolve_name(name)


def options() -> dict[str, Any]:
    """Returns what both modes tell Alembic."""
    metadata = metadata_to_compare()
    if metadata is not None:
        PGDialect.ischema_names.setdefault("xid8", XID8)

    def is_ours(name: str | None, kind: str, _: Any) -> bool:
        return kind != "table" or metadata is None or name in metadata.tables

    return {
        "target_metadata": metadata,
        "include_name": is_ours,
        "version_table": VERSION_TABLE,
        "version_table_schema": schema,
        "transaction_per_migration": True,
        "compare_type": True,
        "compare_server_default": True,
        "on_version_apply": report,
    }


def report(*, ctx: Any, step: Any, **_: Any) -> None:
    """Tells a person at the command line which revision was applied; a program hears nothing."""
    if config.cmd_opts is not None and not ctx.as_sql:
        config.print_stdout("%s %s", "upgraded to" if step.is_upgrade else "downgraded from", step.up_revision_id)


def run_offline() -> None:
    """Writes the SQL instead of running it."""
    context.configure(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **options())
    with context.begin_transaction():
        if schema is not None:
            quoted = context.get_context().dialect.identifier_preparer.quote(schema)
            context.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted}")
            context.execute(f"SET search_path TO {quoted}")
        context.run_migrations()


def run_online() -> None:
    """Runs on the connection or engine that a program gave, or on a connection of its own."""
    given = config.attributes.get("connection")
    if isinstance(given, Connection):
        migrate(given)
    elif isinstance(given, AsyncEngine):
        run(migrate_with(given))
    else:
        # The driver reads the address itself, so everything that libpq knows works.
        address = driver_address()
        connect: dict[str, Any] = {"dsn": address, "server_settings": {"application_name": "cascade_state migrations"}}
        if "," in address and "target_session_attrs" not in address:
            connect["target_session_attrs"] = "read-write"  # several hosts: the one that is not a standby
        run(migrate_with(create_async_engine("postgresql+asyncpg://", connect_args=connect, poolclass=NullPool)))


async def migrate_with(engine: AsyncEngine) -> None:
    """Migrates on one connection of the engine."""
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end; in a thread of its own when an event loop runs here already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, work).result()


def migrate(connection: Connection) -> None:
    """Does what the command asked for, alone; inside a transaction of the caller's if there is one."""
    joined = connection.in_transaction()
    with alone(connection, joined=joined), inside_schema(connection, joined=joined):
        context.configure(connection=connection, **options())
        with context.begin_transaction():
            context.run_migrations()
        if not context.get_context().get_current_heads():
            remove_traces(connection)
        if not joined:
            connection.commit()


@contextmanager
def alone(connection: Connection, *, joined: bool) -> Iterator[None]:
    """Holds the migration lock; inside a transaction of the caller's, until that one ends."""
    acquire = (func.pg_try_advisory_xact_lock if joined else func.pg_try_advisory_lock)(literal(LOCK_KEY, BigInteger))
    cancelled = config.attributes.get("cancelled")
    deadline = time.monotonic() + config.attributes.get("lock_wait_seconds", LOCK_WAIT_SECONDS)
    while not connection.scalar(select(acquire)):
        if time.monotonic() >= deadline or (cancelled is not None and cancelled.is_set()):
            config.attributes["lock_was_busy"] = True  # for a program, which cannot import an error from here
            raise CommandError("another process is migrating this database")
        connection.execute(select(func.pg_sleep(LOCK_POLL_SECONDS)))
        if not joined:
            connection.commit()
    if joined:
        yield
        return
    try:
        connection.commit()
        yield
        connection.rollback()
        connection.execute(select(func.pg_advisory_unlock(literal(LOCK_KEY, BigInteger))))
        connection.commit()
    except BaseException:
        connection.invalidate()  # closes it, which gives the lock back whatever state it is in
        raise


@contextmanager
def inside_schema(connection: Connection, *, joined: bool) -> Iterator[None]:
    """Makes unqualified names mean our schema, and bounds the wait for locks; afterwards all is as it was."""
    names = ("search_path", "lock_timeout")
    before = {name: connection.scalar(select(func.current_setting(name))) for name in names}
    default_schema = connection.dialect.default_schema_name
    change(connection, "lock_timeout", LOCK_TIMEOUT)
    if schema is not None:
        quoted = connection.dialect.identifier_preparer.quote(schema)
        if schema not in inspect(connection).get_schema_names():
            execute_literally(connection, f"CREATE SCHEMA {quoted}")
            execute_literally(connection, f"COMMENT ON SCHEMA {quoted} IS '{SCHEMA_COMMENT}'")
        change(connection, "search_path", quoted)
        connection.dialect.default_schema_name = schema  # so that comparing reads our tables
    if not joined:
        connection.commit()
    try:
        yield
    finally:
        connection.dialect.default_schema_name = default_schema
    for name, value in before.items():
        change(connection, name, value)
    if not joined:
        connection.commit()


def change(connection: Connection, name: str, value: Any) -> None:
    """Changes a setting of the session."""
    connection.execute(select(func.set_config(name, value, False)))


def execute_literally(connection: Connection, statement: str) -> None:
    """Executes a statement that takes no parameters, although a name in it may contain a colon."""
    connection.execute(text(statement.replace(":", r"\:")))


def remove_traces(connection: Connection) -> None:
    """After a downgrade to base: drops the empty version table, and the schema if the migrations made it."""
    connection.execute(text(f"DROP TABLE IF EXISTS {VERSION_TABLE}"))
    if schema is not None:
        namespace = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = :schema"
        comment = connection.scalar(text(namespace), {"schema": schema})
        in_use = "SELECT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace(:schema))"
        quoted = connection.dialect.identifier_preparer.quote(schema)
        if comment == SCHEMA_COMMENT and not connection.scalar(text(in_use), {"schema": quoted}):
            execute_literally(connection, f"DROP SCHEMA {quoted}")


if context.is_offline_mode():
    run_offline()
else:
    run_online()
