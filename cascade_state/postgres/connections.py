"""Connections and their transactions: taken, started, ended and given back in a way that survives cancellation."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction

from cascade_state.abc.completion import run_to_completion
from cascade_state.errors import StoreNotOpen, TransactionAborted
from cascade_state.postgres.direct import DriverConnection, expect_begin, was_rolled_back_instead
from cascade_state.postgres.engine import opened_meanwhile
from cascade_state.postgres.error_translation import translated

__all__ = [
    "KEPT_LOCK_TIMEOUT",
    "KeptConnections",
    "OwnTransaction",
    "driver_of",
    "has_autocommit",
    "start_on_wire",
    "start_or_discard",
]

# A kept connection serves many callers, so it must not wait long for a row that one of them contends for; see
# StoreExecutor.
KEPT_LOCK_TIMEOUT = "200ms"

_CLOSING_SECONDS = 2.0  # how long the server is given to say good-bye

# A connection may have been lost without a word (a firewall that forgot it). Whoever ends a transaction, or wants to
# know whether a connection is still there, waits no longer than this for an answer.
_LONGEST_SILENCE_SECONDS = 3.0

Kept: TypeAlias = tuple[AsyncConnection, DriverConnection]


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


class _OwnConnection(AsyncConnection):
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
        await run_to_completion(_invalidated(connection))
        raise


class OwnTransaction:
    """A pooled connection with a transaction on it: begin once, then commit or roll back once.

    Args:
        settings: Statements without results to be sent with the BEGIN, which then goes with the first statement: a
            transaction that nobody uses costs no round trip. None: BEGIN is sent when it begins.
    """

    def __init__(self, engine: AsyncEngine, execution_options: dict[str, Any], *, settings: str | None = None) -> None:
        self._engine = engine
        self._execution_options = execution_options
        self._settings = settings
        self.connection: AsyncConnection
        self.driver: DriverConnection
        self._transaction: AsyncTransaction

    async def begin(self) -> None:
        """Takes a connection and sends BEGIN: one round trip, or none when that is put off."""
        with translated():
            self.connection = await self._checked_out()
            try:
                expect_begin(self.driver, self._settings or "")
                if self._execution_options:
                    await self.connection.execution_options(**self._execution_options)
                self._transaction = await self.connection.begin()
                if self._settings is None:
                    await start_on_wire(self.connection)
            except BaseException:
                # Cancelled within BEGIN, the server may be in a transaction that SQLAlchemy knows nothing of and would
                # not roll back: this connection must not be used again.
                await run_to_completion(_discard(self.connection))
                raise

    async def _checked_out(self) -> AsyncConnection:
        """Takes a connection from the pool, passing over those that the server closed meanwhile."""
        while True:
            connection = await _connected(self._engine, _OwnConnection)
            try:
                driver = await driver_of(connection)
                if not driver.is_closed():
                    self.driver = driver
                    return connection
                # In a task of its own: older releases of SQLAlchemy swallow a cancellation that meets them here.
                await run_to_completion(connection.invalidate())
            except BaseException:
                await run_to_completion(_discard(connection))
                raise
            await connection.close()

    async def commit(self) -> None:
        """Commits (one round trip) and gives the connection back, whatever happens."""
        try:
            with translated():
                await self._transaction.commit()
        finally:
            await self._give_back()
        if was_rolled_back_instead(self.driver):
            raise TransactionAborted(reason="an earlier statement of this transaction failed", sqlstate="25P02")

    async def rollback(self) -> None:
        """Rolls back and gives the connection back; a connection that is gone has rolled back by itself."""
        await self._give_back()

    async def _give_back(self) -> None:
        connection = self.connection
        try:
            if self.driver.is_closed():
                await connection.invalidate()
            async with asyncio.timeout(_LONGEST_SILENCE_SECONDS):
                await connection.close()  # rolls back what is open
        except Exception:
            self.driver.terminate()
            await _discard(connection)


async def _connected(engine: AsyncEngine, kind: type[AsyncConnection] = AsyncConnection) -> AsyncConnection:
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
        await run_to_completion(_close(connection))
        raise asyncio.CancelledError
    return connection


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def _close_driver(driver: DriverConnection) -> None:
    with suppress(Exception):  # it ends itself then
        await driver.close(timeout=_CLOSING_SECONDS)


async def _invalidated(connection: AsyncConnection) -> None:
    with suppress(Exception):  # it is being thrown away
        await connection.invalidate()


async def _discard(connection: AsyncConnection) -> None:
    try:
        await connection.invalidate()
        await connection.close()
    except Exception:  # noqa: S110 - it is being thrown away
        pass


class KeptConnections:
    """A few autocommit connections that stay checked out, for operations that are one statement.

    Taking one from here costs nothing; a checkout from the pool and its return cost as much as the statement
    itself. They are opened when first needed, and replaced when they break. One that is put back goes to whoever
    waits longest, and never to a task that comes just then: it would come again and again, and others never.
    """

    def __init__(self, engine: AsyncEngine, size: int) -> None:
        self._engine = engine
        self._size = size
        self._free: list[Kept] = []
        self._open = 0
        self._waiting: deque[asyncio.Future[Kept | None]] = deque()  # None: there is room to open one
        self._background: set[asyncio.Task[None]] = set()
        self._closed = False
        self._all_closed = asyncio.Event()

    async def take(self) -> Kept:
        """Lends one connection, to be given back with `put_back`; waits in turn when all are lent."""
        kept = self._free_one()
        return await self._next() if kept is None else kept

    def put_back(self, kept: Kept) -> None:
        """Takes a connection back; one that broke is replaced when it is needed."""
        if self._closed or kept[1].is_closed() or kept[1].is_in_transaction():
            self._drop(kept)  # in a transaction: cancelled while it was being ended
            self._wake_one(None)
        elif not self._wake_one(kept):
            self._free.append(kept)

    def put_aside(self, kept: Kept) -> None:
        """Takes back a connection whose statement was cancelled; it is lent again once the server answered on it."""
        self._in_background(self._proven(kept))

    async def _proven(self, kept: Kept) -> None:
        driver = kept[1]
        try:
            async with asyncio.timeout(_LONGEST_SILENCE_SECONDS):
                await driver.execute("SELECT 1")  # the driver sends it when the cancellation has arrived
        except Exception:
            driver.terminate()
        finally:
            self.put_back(kept)

    async def close(self) -> None:
        """Closes all connections, those that are lent when they are put back; returns when all are closed."""
        self._closed = True
        while self._waiting:
            self._wake_one(None)
        while self._free:
            connection, _ = self._free.pop()
            await _close(connection)
            self._open -= 1
        if not self._open:
            self._all_closed.set()
        await self._all_closed.wait()
        while self._background:
            await asyncio.wait(set(self._background))

    def _free_one(self) -> Kept | None:
        """Returns one that nobody uses and that did not break meanwhile."""
        while self._free:
            kept = self._free.pop()
            if not kept[1].is_closed():
                return kept
            self._drop(kept)
        return None

    async def _next(self) -> Kept:
        while True:
            if self._closed:
                raise StoreNotOpen
            kept = self._free_one()
            if kept is not None:
                return kept
            if self._open < self._size:
                return await self._opened()
            turn: asyncio.Future[Kept | None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                given = await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was given to a task that cannot use it any more
                    self._pass_on(turn.result())
                raise
            if given is not None:
                if not given[1].is_closed():
                    return given
                self._drop(given)

    def _pass_on(self, given: Kept | None) -> None:
        if given is None:
            self._wake_one(None)
        else:
            self.put_back(given)

    async def _opened(self) -> Kept:
        self._open += 1
        try:
            with translated():
                connection = await _connected(self._engine)
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                return connection, await driver_of(connection)
        except BaseException:
            self._one_less()
            self._wake_one(None)
            raise

    def _drop(self, kept: Kept) -> None:
        """Closes a connection without waiting: nobody is left to wait for it."""
        connection, driver = kept
        self._one_less()
        driver.terminate()
        self._in_background(_discard(connection))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _one_less(self) -> None:
        self._open -= 1
        if self._closed and not self._open:
            self._all_closed.set()

    def _wake_one(self, kept: Kept | None) -> bool:
        """Gives a connection, or the room for one, to whoever waits longest; returns whether anybody waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(kept)
                return True
        return False


async def _close(connection: AsyncConnection) -> None:
    try:
        await connection.close()
    except Exception:
        await _discard(connection)
