"""Connections that stay checked out of SQLAlchemy's pool, and are lent to one task at a time.

A checkout from the pool and its return cost as much as a small statement: a greenlet, events, a reset. So the store
keeps what it checked out, a few connections in autocommit mode for single statements, and those of units of work.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cascade_state.abc.completion import run_to_completion
from cascade_state.errors import StoreNotOpen, StoreUnavailable
from cascade_state.postgres.connections import (
    LONGEST_SILENCE_SECONDS,
    OwnConnection,
    close_quietly,
    connected,
    discard,
    driver_of,
)
from cascade_state.postgres.direct import DriverConnection
from cascade_state.postgres.error_translation import translated

__all__ = ["KEPT_LOCK_TIMEOUT", "Kept", "KeptConnections"]

# A kept connection in autocommit mode serves many callers, so it must not wait long for a row that one of them contends
# for; see StoreExecutor.
KEPT_LOCK_TIMEOUT = "200ms"

Kept: TypeAlias = tuple[AsyncConnection, DriverConnection]


class KeptConnections:
    """At most `size` connections; taking one of them costs nothing.

    They are opened when first needed, and replaced when they break. One that is put back goes to whoever waits
    longest, and never to a task that comes just then: it would come again and again, and others never.

    Args:
        autocommit: For operations that are one statement; otherwise for transactions.
        patience_seconds: How long somebody waits for one; None: for as long as it takes.
    """

    def __init__(
        self, engine: AsyncEngine, size: int, *, autocommit: bool = True, patience_seconds: float | None = None
    ) -> None:
        self._engine = engine
        self._size = size
        self._autocommit = autocommit
        self._patience_seconds = patience_seconds
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
            async with asyncio.timeout(LONGEST_SILENCE_SECONDS):
                await driver.execute("SELECT 1")  # the driver sends it when the cancellation has arrived
        except Exception:
            driver.terminate()
        finally:
            self.put_back(kept)

    async def give_up(self, kept: Kept) -> None:
        """Takes a connection back to its pool: somebody else may know it, and it is not lent again as it is."""
        await close_quietly(kept[0])
        self._one_less()
        self._wake_one(None)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is lent any more."""
        return self._closed

    async def close(self, *, wait: bool = True) -> None:
        """Closes all connections, those that are lent when they are put back.

        Args:
            wait: Whether to return when all are closed, those that are lent included.
        """
        self._closed = True
        while self._waiting:
            self._wake_one(None)
        while self._free:
            connection, _ = self._free.pop()
            await close_quietly(connection)
            self._open -= 1
        if not self._open:
            self._all_closed.set()
        if wait:
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
        """Returns one as soon as there is one.

        Raises:
            StoreUnavailable: There was none in time.
        """
        now = asyncio.get_running_loop().time()
        deadline = None if self._patience_seconds is None else now + self._patience_seconds
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
                async with asyncio.timeout_at(deadline):
                    given = await turn
            except TimeoutError as error:
                if turn.cancelled():
                    raise StoreUnavailable(reason="no connection of the pool became free in time") from error
                given = turn.result()  # in the last moment; nobody else knows of it
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
                if self._autocommit:
                    connection = await connected(self._engine)
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                    return connection, await driver_of(connection)
                return await self._checked_out()
        except BaseException:
            self._one_less()
            self._wake_one(None)
            raise

    async def _checked_out(self) -> Kept:
        """Takes a connection from the pool, passing over those that the server closed meanwhile."""
        while True:
            connection = await connected(self._engine, OwnConnection)
            try:
                driver = await driver_of(connection)
                if not driver.is_closed():
                    return connection, driver
                # In a task of its own: older releases of SQLAlchemy swallow a cancellation that meets them here.
                await run_to_completion(connection.invalidate())
            except BaseException:
                await run_to_completion(discard(connection))
                raise
            await connection.close()

    def _drop(self, kept: Kept) -> None:
        """Closes a connection without waiting: nobody is left to wait for it."""
        connection, driver = kept
        self._one_less()
        driver.terminate()
        self._in_background(discard(connection))

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
