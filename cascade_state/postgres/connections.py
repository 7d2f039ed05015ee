"""SQLAlchemy connections: opened, begun on the wire, closed and thrown away in a way that survives cancellation."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cascade_state.abc.completion import run_to_completion
from cascade_state.postgres.direct import DriverConnection
from cascade_state.postgres.engine import opened_meanwhile

__all__ = [
    "LONGEST_SILENCE_SECONDS",
    "OwnConnection",
    "close_quietly",
    "connected",
    "discard",
    "driver_of",
    "has_autocommit",
    "invalidate_quietly",
    "start_on_wire",
    "start_or_discard",
]

_CLOSING_SECONDS = 2.0  # how long the server is given to say good-bye

# A connection may have been lost without a word (a firewall that forgot it). Whoever ends a transaction, or wants to
# know whether a connection is still there, waits no longer than this for an answer.
LONGEST_SILENCE_SECONDS = 3.0


async def driver_of(connection: AsyncConnection) -> DriverConnection:
    """Returns the asyncpg connection beneath a SQLAlchemy connection."""
    raw = await AsyncConnection.get_raw_connection(connection)
    driver: DriverConnection = raw.driver_connection
    return driver


async def has_autocommit(connection: AsyncConnection) -> bool:
    """Returns whether SQLAlchemy keeps the connection out of transactions."""
    raw = await connection.get_raw_connection()
    return getattr(raw.dbapi_connection, "isolation_level", None) == "autocommit"


async def start_on_wire(connection: AsyncConnection) -> DriverConnection:
    """Sends the BEGIN of a SQLAlchemy transaction now, and returns the driver connection that is inside it.

    SQLAlchemy's asyncpg adapter sends BEGIN with its own first statement. A statement sent to the driver
    before that would commit by itself, outside the transaction that the caller believes in.
    """
    raw = await AsyncConnection.get_raw_connection(connection)
    driver: DriverConnection = raw.driver_connection
    if not driver.is_in_transaction():
        adapter: Any = raw.dbapi_connection
        start = getattr(adapter, "_start_transaction", None)
        if start is not None:
            await start()
        if not driver.is_in_transaction():  # another release of SQLAlchemy: let it send a statement of its own
            await connection.exec_driver_sql("SELECT 1")
    return driver


class OwnConnection(AsyncConnection):
    """A SQLAlchemy connection whose driver connection is inside the transaction as soon as somebody gets hold of it."""

    __slots__ = ()

    async def get_raw_connection(self) -> Any:
        if self.in_transaction():
            await start_or_discard(self)
        return await super().get_raw_connection()


async def start_or_discard(connection: AsyncConnection) -> None:
    """Sends BEGIN unless it was sent; a connection on which that fails is not used again."""
    try:
        await start_on_wire(connection)
    except BaseException:
        # Cancelled within BEGIN, the server may be in a transaction that SQLAlchemy knows nothing of and would not roll
        # back.
        await run_to_completion(invalidate_quietly(connection))
        raise


async def connected(engine: AsyncEngine, kind: type[AsyncConnection] = AsyncConnection) -> AsyncConnection:
    """Takes a connection from an engine. Whoever is cancelled meanwhile gets none, and none is left open.

    Older releases of SQLAlchemy forget a connection whose first statements are cancelled. And they wait for a free one
    with `asyncio.wait_for`, which on Python 3.11 swallows a cancellation that comes in the moment when one is free.
    """
    cancellations = _cancellations()
    with opened_meanwhile() as opened:
        try:
            connection = await kind(engine)
        except BaseException:
            for driver in opened:
                await run_to_completion(_close_driver(driver))
            raise
    if _cancellations() > cancellations:
        await run_to_completion(close_quietly(connection))
        raise asyncio.CancelledError
    return connection


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def _close_driver(driver: DriverConnection) -> None:
    with suppress(Exception):  # it ends itself then
        await driver.close(timeout=_CLOSING_SECONDS)


async def invalidate_quietly(connection: AsyncConnection) -> None:
    """Ends its connection to the server."""
    with suppress(Exception):  # it is being thrown away
        await connection.invalidate()


async def discard(connection: AsyncConnection) -> None:
    """Ends its connection to the server, and gives its place in the pool back."""
    try:
        await connection.invalidate()
        await connection.close()
    except Exception:  # noqa: S110 - it is being thrown away
        pass


async def close_quietly(connection: AsyncConnection) -> None:
    """Gives it back to its pool, or throws it away if that fails."""
    try:
        await connection.close()
    except Exception:
        await discard(connection)
