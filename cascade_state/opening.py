"""`open_store`: picks the back end by the URL's scheme and imports it late."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from cascade_state.abc.options import StoreOptions
from cascade_state.abc.store import Store
from cascade_state.clock import Clock
from cascade_state.errors import InvalidArgument
from cascade_state.ids import DEFAULT_PARTITION_COUNT

__all__ = ["open_store"]

_BACK_ENDS = {
    "memory": ("cascade_state.memory.store", "MemoryStore"),
    "postgresql": ("cascade_state.postgres.store", "PostgresStore"),
    "postgresql+asyncpg": ("cascade_state.postgres.store", "PostgresStore"),
    "embedded": ("cascade_state.postgres.store", "PostgresStore"),
}


def open_store(
    url: str,
    *,
    schema: str | None = None,
    partition_count: int = DEFAULT_PARTITION_COUNT,
    pool_size: int = 10,
    pool_timeout_seconds: float = 30.0,
    pooler: Literal["pgbouncer"] | None = None,
    direct_url: str | None = None,
    clock: Clock | None = None,
    hints: bool = True,
    coalesce: bool = True,
    max_document_bytes: int = 1024 * 1024,
    max_attempts: int = 20,
    application_name: str = "cascade_state",
) -> Store:
    """Returns the store at a URL, to be entered once with `async with`. Nothing connects before that.

    Args:
        url: `postgresql://…` (several hosts are tried in turn until one accepts writes); `memory://`, a
            private store, or `memory://name`, shared by all openings in this process; `embedded://./data` or
            `embedded:///srv/data`, a server of our own in that directory, which stops with the last process
            that has it open.
        schema: The database schema of this installation; None: the connection's default.
        partition_count: A power of two from 16 to 4096; fixed by the first migration.
        pool_size: How many connections units of work may use at once.
        pool_timeout_seconds: How long a unit of work waits for a connection before `StoreUnavailable`.
        pooler: "pgbouncer" when `url` leads through a transaction pooler.
        direct_url: The same database without the pooler, for migrations and session-level locks.
        clock: Where time comes from, SQL included; None: the database's clock (the machine's in memory).
        hints: Whether committed work notifies other processes; a hint lost costs latency, never the outcome.
        coalesce: Whether one-statement operations that wait for a connection at the same time travel as one
            statement.
        max_document_bytes: The longest JSON document, in bytes of UTF-8.
        max_attempts: How often a timer or delivery may be claimed before it is dead; a timer may bring its
            own.
        application_name: How the connections are named in `pg_stat_activity`.

    Raises:
        InvalidArgument: The URL's scheme is unknown, or an option is out of range.
    """
    options = StoreOptions(
        schema=schema,
        partition_count=partition_count,
        pool_size=pool_size,
        pool_timeout_seconds=pool_timeout_seconds,
        pooler=pooler,
        direct_url=direct_url,
        clock=clock,
        hints=hints,
        coalesce=coalesce,
        max_document_bytes=max_document_bytes,
        max_attempts=max_attempts,
        application_name=application_name,
    )
    store: Store = _back_end(url)(url, options)
    return store


def _back_end(url: str) -> Any:
    scheme = url.partition("://")[0].lower() if isinstance(url, str) else ""
    try:
        module, name = _BACK_ENDS[scheme]
    except KeyError:
        known = ", ".join(f"{known}://" for known in _BACK_ENDS)
        raise InvalidArgument(argument="url", reason=f"must begin with one of {known}") from None
    return getattr(import_module(module), name)
