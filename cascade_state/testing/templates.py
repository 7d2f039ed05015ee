"""Template databases: built once by whoever comes first, finished or absent, never in between.

A builder holds an advisory lock in the maintenance database for as long as it builds; the lock ends with its
connection, however that ends. It builds under a scratch name and publishes in one transaction: comment, mark,
rename. A database that bears the template's name is therefore finished. What a killed builder left has a
scratch name, and the next builder, who holds the lock and so knows that nobody is at work on it, drops it.

Inside a process, callers who wait for an attempt share its outcome, a set-up error included. Another process
tries by itself.

Source: PostgreSQL manual, "Template Databases"; "Advisory Lock Functions"; "ALTER DATABASE".
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import inspect
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from importlib import metadata as distributions
from typing import Any, Protocol

from cascade_state.errors import DatabaseAlreadyExists, TemplateBusy, TestDatabaseError
from cascade_state.testing.connections import Connection, connect, is_lock_timeout, quoted, translated

__all__ = ["ensure_template", "lock_key"]

_logger = logging.getLogger(__name__)
_TOOL = "cascade_state"
_DISCONNECT_MILLISECONDS = 5_000


class _Server(Protocol):
    @property
    def url(self) -> str: ...

    def url_for(self, name: str) -> str: ...


class _AttemptAbandonedError(Exception):
    """The attempt was cancelled or ran out of its caller's time: a waiter takes over."""


_attempts: dict[tuple[str, str], concurrent.futures.Future[None]] = {}
_attempts_lock = threading.Lock()


async def ensure_template(
    server: _Server,
    name: str,
    setup: Callable[[str], Any],
    *,
    timeout: timedelta,
    metadata: Mapping[str, Any],
) -> None:
    """Returns when the template is finished; see `DatabaseCommands.ensure_template_exists`."""
    deadline = time.monotonic() + timeout.total_seconds()
    key = (server.url, name)
    while True:
        with _attempts_lock:
            attempt = _attempts.get(key)
            mine = attempt is None
            if attempt is None:
                attempt = _attempts[key] = concurrent.futures.Future()
        if mine:
            await _lead(key, attempt, _build_once(server, name, setup, deadline, metadata))
            return
        if await _follow(name, attempt, deadline):
            return


async def _lead(key: tuple[str, str], attempt: concurrent.futures.Future[None], work: Any) -> None:
    outcome: BaseException | None = None
    try:
        await work
    except BaseException as exc:
        shared = isinstance(exc, Exception) and not isinstance(exc, TemplateBusy)
        outcome = exc if shared else _AttemptAbandonedError()
        raise
    finally:
        with _attempts_lock:
            del _attempts[key]
        if outcome is None:
            attempt.set_result(None)
        else:
            attempt.set_exception(outcome)


async def _follow(name: str, attempt: concurrent.futures.Future[None], deadline: float) -> bool:
    """Waits for another task's attempt; False when it was given up and somebody has to take over."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wake(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # this waiter's loop is closed: nobody is there to wake
            loop.call_soon_threadsafe(woken.set)

    attempt.add_done_callback(wake)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(woken.wait(), timeout=max(0.0, deadline - time.monotonic()))
    if not attempt.done():
        raise TemplateBusy(template=name, process_id=os.getpid(), application_name="this process")
    error = attempt.exception()
    if isinstance(error, _AttemptAbandonedError):
        return False
    if error is not None:
        raise error
    return True


async def _build_once(
    server: _Server, name: str, setup: Callable[[str], Any], deadline: float, metadata: Mapping[str, Any]
) -> None:
    async with connect(server.url, application_name=f"{_TOOL} template {name}") as connection:
        await _lock(connection, name, deadline)
        if await _is_finished(connection, name):
            return
        await _drop_scratch(connection, name)
        scratch = f"{_scratch_prefix(name)}{secrets.token_hex(4)}"
        with translated(scratch):
            await connection.execute(f"CREATE DATABASE {quoted(scratch)} TEMPLATE template0")
            # For garbage collection, should this process be killed: whose it was, and since when it has been there.
            await _comment(connection, scratch, {"scratch_of": name, "begun_at": datetime.now(UTC).isoformat()})
        try:
            await _run_setup(setup, server.url_for(scratch))
            await _publish(connection, scratch, name, metadata)
        except BaseException:
            await _clean_up(server, name)
            raise


async def _run_setup(setup: Callable[[str], Any], url: str) -> None:
    if inspect.iscoroutinefunction(setup):
        await setup(url)
        return
    # A thread: plain functions may well run an event loop of their own, as Alembic's env.py does.
    result = await asyncio.to_thread(setup, url)
    if inspect.isawaitable(result):
        await result


async def _lock(connection: Connection, name: str, deadline: float) -> None:
    remaining = max(1, int((deadline - time.monotonic()) * 1000))
    key = lock_key(name)
    try:
        with translated(name):
            await connection.execute(f"SET lock_timeout = {remaining:d}")
            await connection.fetchval("SELECT pg_advisory_lock($1)", key)
    except Exception as exc:
        if not is_lock_timeout(exc):
            raise
        holder = await _lock_holder(connection, key)
        process_id, application_name = holder or (None, "")
        raise TemplateBusy(template=name, process_id=process_id, application_name=application_name) from exc
    await connection.execute("SET lock_timeout = 0")


async def _lock_holder(connection: Connection, key: int) -> tuple[int, str] | None:
    row = await connection.fetchrow(
        """
        SELECT a.pid, a.application_name
        FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND (l.classid::bigint << 32 | l.objid::bigint) = $1
        """,
        key,
    )
    return (row["pid"], row["application_name"]) if row else None


async def _is_finished(connection: Connection, name: str) -> bool:
    row = await connection.fetchrow(
        """
        SELECT datistemplate, shobj_description(oid, 'pg_database') AS comment
        FROM pg_database WHERE datname = $1
        """,
        name,
    )
    if row is None:
        return False
    if row["datistemplate"] and _is_ours(row["comment"]):
        return True
    raise DatabaseAlreadyExists(database=name)  # whatever it is, a builder here never made it


def _is_ours(comment: str | None) -> bool:
    try:
        document = json.loads(comment or "")
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("tool") == _TOOL


async def _publish(connection: Connection, scratch: str, name: str, metadata: Mapping[str, Any]) -> None:
    """Closes the scratch database to everybody and names it, on the connection that holds the lock."""
    document = {"tool_version": _tool_version(), "built_at": datetime.now(UTC).isoformat(), "metadata": dict(metadata)}
    with translated(name):
        # First, or else a pool that set-up forgot would be back before the rename.
        await connection.execute(f"ALTER DATABASE {quoted(scratch)} ALLOW_CONNECTIONS false")
        await connection.fetch(
            "SELECT pg_terminate_backend(pid, $2) FROM pg_stat_activity WHERE datname = $1",
            scratch,
            _DISCONNECT_MILLISECONDS,
        )
        async with connection.transaction():
            await _comment(connection, scratch, document)
            await connection.execute(f"ALTER DATABASE {quoted(scratch)} IS_TEMPLATE true")
            await connection.execute(f"ALTER DATABASE {quoted(scratch)} RENAME TO {quoted(name)}")


async def _comment(connection: Connection, database: str, document: Mapping[str, Any]) -> None:
    text = json.dumps({"tool": _TOOL, **document}, sort_keys=True)
    statement = await connection.fetchval(
        "SELECT format('COMMENT ON DATABASE %I IS %L', $1::text, $2::text)", database, text
    )
    await connection.execute(statement)


async def _clean_up(server: _Server, name: str) -> None:
    """Drops what the failed attempt left; if that fails too, the caller still gets the set-up's error."""

    async def drop() -> None:
        async with connect(server.url) as connection:
            await _drop_scratch(connection, name)

    try:
        # Shielded: a cancelled caller leaves no scratch database behind either.
        await asyncio.shield(drop())
    except (TestDatabaseError, OSError) as exc:
        _logger.warning("the scratch database of template %s was not dropped: %s", name, exc)


async def _drop_scratch(connection: Connection, name: str) -> None:
    rows = await connection.fetch(
        "SELECT datname FROM pg_database WHERE starts_with(datname::text, $1)", _scratch_prefix(name)
    )
    for row in rows:
        with translated(row["datname"]):
            await connection.execute(f"DROP DATABASE IF EXISTS {quoted(row['datname'])} WITH (FORCE)")


def _scratch_prefix(name: str) -> str:
    return f"{_TOOL}_scratch_{hashlib.sha256(name.encode()).hexdigest()[:16]}_"


def lock_key(name: str) -> int:
    """Returns the key of the advisory lock that goes with a name, in the maintenance database."""
    # 63 bits: the key's halves in pg_locks are unsigned, and a positive number makes them easy to put
    # together.
    digest = hashlib.sha256(f"{_TOOL} template {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _tool_version() -> str:
    try:
        return distributions.version("cascade-state")
    except distributions.PackageNotFoundError:
        return "unknown"
