"""`DatabasePool`: what the users of the pool see."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from cascade_state.errors import (
    DatabaseInUse,
    DatabaseNotFound,
    InvalidArgument,
    PoolClosed,
    PoolTimeout,
    ServerUnavailable,
    TestDatabaseError,
)
from cascade_state.model.arguments import check_duration
from cascade_state.testing.connections import checked_name
from cascade_state.testing.databases import DatabaseCommands
from cascade_state.testing.pool import slots, upkeep
from cascade_state.testing.pool.keeper import PATIENCE_SECONDS, Counters, Keeper, PoolOptions, in_use
from cascade_state.testing.pool.pooled_database import PooledDatabase, PoolStatistics
from cascade_state.testing.pool.session import PoolSession, shared_session
from cascade_state.testing.pool.slots import Slot, SlotState, database_name, database_prefix

if TYPE_CHECKING:
    from cascade_state.testing.pool.blocking import BlockingPool

__all__ = ["DatabasePool"]

_logger = logging.getLogger(__name__)

_CORES = os.cpu_count() or 1
_POLL_SECONDS = 0.05  # what a lost hint costs
_LEAVE_SECONDS = 0.002
_CLEAR_SECONDS = 30.0  # for another process to finish the copy that it is making


class DatabasePool:
    """Migrated test databases of one template: handed out at once, made ahead in the background.

    `async with` opens and closes it, or `open()` and `close()`. It belongs to the event loop that it was opened in;
    `blocking` is its twin for code without one. The databases and the books of who has which stay on the server: other
    processes share them, and whoever opens the pool next continues with them.

    Args:
        server: A started server. Behind a pooler, its direct address.
        template: A finished template database, see `ensure_template_exists`.
        initial_size: How many databases to keep ready ahead of those that are leased.
        max_size: How many databases of this template there may be.
        max_databases: How many there may be of all templates of the server. For a new one, idle templates lose theirs,
            the least recently used first; the templates themselves stay. None: as many as the pools want.
        name_prefix: Databases are called `PREFIX_000`, `PREFIX_001`, …; None: `TEMPLATE_test`, shortened if need be.
        owner: The role that owns the databases; None: the one of the server's URL.
        reclaim_after: How long nobody must have been connected to a database that was given out by `hand_out`, before
            it is taken from its holder when the pool is exhausted.
        unclaimed_after: The same, when nobody has ever been connected to it.
        shrink_after: How long databases beyond `initial_size` stay when nobody wants them.

    Raises:
        InvalidArgument: A size is out of range.
        InvalidDatabaseName: `template`, `owner` or `name_prefix` cannot be (part of) a name.
    """

    def __init__(
        self,
        server: DatabaseCommands,
        template: str,
        *,
        initial_size: int = _CORES,
        max_size: int = 4 * _CORES,
        max_databases: int | None = None,
        name_prefix: str | None = None,
        owner: str | None = None,
        reclaim_after: timedelta = timedelta(seconds=1),
        unclaimed_after: timedelta = timedelta(seconds=30),
        shrink_after: timedelta = timedelta(seconds=60),
    ) -> None:
        _check_size("max_size", max_size, 1, None)
        _check_size("initial_size", initial_size, 0, max_size)
        if max_databases is not None:
            _check_size("max_databases", max_databases, 1, None)
        prefix = name_prefix if name_prefix is not None else database_prefix(checked_name(template))
        checked_name(database_name(prefix, 10 * max_size))
        self._server = server
        self._options = PoolOptions(
            template=checked_name(template),
            initial_size=initial_size,
            max_size=max_size,
            max_databases=max_databases,
            name_prefix=prefix,
            owner=checked_name(owner) if owner is not None else None,
            reclaim_after=reclaim_after,
            unclaimed_after=unclaimed_after,
            shrink_after=shrink_after,
        )
        self._counters = Counters()
        self._scope: AsyncExitStack | None = None
        self._session: PoolSession
        self._keeper: Keeper
        self._keeping: asyncio.Task[None]
        self._is_leaving = False
        self._waiting = 0
        self._turn: asyncio.Lock  # whoever has it is the next to be served
        self._may_be_ready: asyncio.Event
        self._failure: Exception
        self._failures = 0
        self._leases: dict[str, PooledDatabase] = {}
        self._undoing: set[asyncio.Task[Any]] = set()

    @property
    def template(self) -> str:
        """The name of the template database."""
        return self._options.template

    @cached_property
    def blocking(self) -> BlockingPool:
        """A pool of the same databases for code without an event loop; it is opened and closed by itself."""
        from cascade_state.testing.pool.blocking import BlockingPool

        return BlockingPool(DatabasePool(self._server, **asdict(self._options)))

    async def open(self) -> Self:
        """Connects and starts making databases; does not wait for them. Opening it twice is harmless.

        Raises:
            ServerUnavailable: Nobody answers.
            PermissionDenied: The role may not create databases.
        """
        if self._scope is not None:
            return self
        async with AsyncExitStack() as scope:
            self._turn = asyncio.Lock()
            self._may_be_ready = asyncio.Event()
            self._session = await scope.enter_async_context(shared_session(self._server))
            await scope.enter_async_context(self._session.pool_of(self.template))
            self._keeper = Keeper(
                session=self._session,
                options=self._options,
                counters=self._counters,
                waiting=lambda: self._waiting,
                is_ready=self._may_be_ready.set,
                report=self._report,
            )
            self._session.listeners.add(self._notified)
            scope.callback(self._session.listeners.discard, self._notified)
            self._keeping = asyncio.ensure_future(self._keeper.run())
            scope.push_async_callback(self._end)
            self._scope = scope.pop_all()
        return self

    async def close(self) -> None:
        """Stops the background work; the databases stay. Callers that wait get `PoolClosed`. Harmless when closed.

        What is leased through this object and not yet given back is made anew once nobody is connected to it.
        """
        scope, self._scope = self._scope, None
        if scope is not None:
            await scope.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def lease(
        self, *, timeout: timedelta | None = timedelta(seconds=60)
    ) -> AbstractAsyncContextManager[PooledDatabase]:
        """Returns a context with a database of one's own: `async with pool.lease() as database`.

        It is given back at the end, connections to it are ended, and it is made anew in the background, unless
        `keep_clean()` was called. Nobody else gets it as long as this process lives, however long that takes. Callers
        are served in the order in which they came.

        Args:
            timeout: How long to wait for a database; None: as long as it takes.

        Raises:
            InvalidArgument: The time-out is no timedelta.
            PoolTimeout: None became free in time.
            PoolClosed: The pool is not open, or was closed or cleared while this caller waited.
            DatabaseNotFound: There is no such template.
            DatabaseInUse: Somebody is connected to the template.
            ServerUnavailable: The server does not answer, or has no room.
        """
        return _Lease(self, _checked_timeout(timeout))

    async def hand_out(self, *, timeout: timedelta | None = timedelta(seconds=60)) -> PooledDatabase:
        """Returns a database for somebody who holds no session, such as an HTTP client.

        It stays handed out, also when this process ends, until `take_back`; or until the pool is exhausted and nobody
        has been connected to it for a while (`reclaim_after`, `unclaimed_after`). Raises the same as `lease`.
        """
        return await self._next(_checked_timeout(timeout), None)

    async def take_back(self, number: int, *, clean: bool = False) -> bool:
        """Takes back what `hand_out` gave out; says whether it was out.

        Args:
            number: The database's `number`.
            clean: It was not changed and may be handed out as it is. Otherwise it is made anew in the background.

        Raises:
            DatabaseNotFound: The pool has no such number.
            DatabaseInUse: It is not clean, and somebody is connected to it; nothing changed.
            PoolClosed: The pool is not open.
        """
        self._check_open()
        template = self.template
        row = await self._session.fetchrow(slots.LOOK_UP, template, number)
        if row is None:
            raise DatabaseNotFound(database=database_name(self._options.name_prefix, number))
        if not row["is_out"]:
            return False
        if not clean:
            await self._check_unused(row["database"])
        state = SlotState.READY if clean else SlotState.RECYCLING
        taken = await self._session.fetchrow(slots.TAKE_BACK, template, number, row["generation"], state.value)
        self._count_return(is_clean=clean)
        return taken is not None

    async def clear(self) -> tuple[str, ...]:
        """Drops all databases of the pool, those that were handed out without a session included; returns their names.

        Callers that wait get `PoolClosed`; the next one finds the pool being filled again.

        Raises:
            DatabaseInUse: A live session leases one of them, or somebody is connected to one; nothing was dropped.
            PoolClosed: The pool is not open.
        """
        self._check_open()
        async with self._keeper.pause():
            return await self._clear()

    async def discard(self) -> tuple[str, ...]:
        """Drops all databases of the pool, as `clear` does, and closes it; returns their names.

        Raises:
            DatabaseInUse: A live session leases one of them, or somebody is connected to one; nothing was dropped, and
                the pool is open.
            PoolClosed: The pool is not open.
        """
        self._check_open()
        self._is_leaving = True  # nobody gets a database from here on, and nobody waits for one
        try:
            async with self._keeper.pause():
                names = await self._clear()
                await self.close()
                return names
        finally:
            self._is_leaving = False

    async def statistics(self) -> PoolStatistics:
        """Returns counts of the server as it is now, and of what this object did.

        Raises:
            PoolClosed: The pool is not open.
        """
        self._check_open()
        options, done = self._options, self._counters
        row = await self._session.fetchrow(upkeep.COUNTS, self.template)
        return PoolStatistics(
            template=self.template,
            ready=row["ready"],
            leased=row["leased"],
            recycling=row["recycling"],
            databases=row["everywhere"],
            waiting=self._waiting,
            initial_size=options.initial_size,
            max_size=options.max_size,
            max_databases=options.max_databases,
            handed_out=done.handed_out,
            returned_clean=done.returned_clean,
            returned_dirty=done.returned_dirty,
            copies_made=done.copies_made,
            copies_failed=done.copies_failed,
            recovered=done.recovered,
        )

    # ----- Handing out

    async def _lend(self, timeout: timedelta | None) -> PooledDatabase:
        self._check_open()
        return await self._next(timeout, self._session.holder)

    async def _next(self, timeout: timedelta | None, holder: int | None) -> PooledDatabase:
        self._check_open()
        database = None
        if not self._waiting:  # nobody to overtake
            with contextlib.suppress(ServerUnavailable):
                database = await self._take(holder)
        if database is None:
            database = await self._wait(timeout, holder)
        self._counters.handed_out += 1
        self._keeper.wake(wanted=True)
        return database

    async def _wait(self, timeout: timedelta | None, holder: int | None) -> PooledDatabase:
        start, failures = time.monotonic(), self._failures
        self._waiting += 1
        self._keeper.wake(wanted=True)
        try:
            async with asyncio.timeout(timeout.total_seconds() if timeout is not None else None):
                async with self._turn:
                    return await self._serve(holder, failures)
        except TimeoutError as exc:
            if isinstance(exc, TestDatabaseError):
                raise
            waited = time.monotonic() - start
            raise PoolTimeout(template=self.template, waited=waited, reason=await self._explain()) from None
        finally:
            self._waiting -= 1

    async def _serve(self, holder: int | None, failures: int) -> PooledDatabase:
        """Returns the next database that becomes ready, to the one whose turn it is."""
        away_since: float | None = None
        while True:
            self._check_open()
            if self._failures != failures:
                raise self._failure
            self._may_be_ready.clear()
            try:
                database = await self._take(holder)
                away_since = None
                if database is not None:
                    return database
            except ServerUnavailable:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > PATIENCE_SECONDS:
                    raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._may_be_ready.wait()

    async def _take(self, holder: int | None) -> PooledDatabase | None:
        """Takes a ready database; a caller that is cancelled meanwhile leaves it where it was."""
        taking = asyncio.ensure_future(self._lease_slot(holder))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._undo)
            self._undoing.add(taking)
            raise

    async def _lease_slot(self, holder: int | None) -> PooledDatabase | None:
        row = await self._session.fetchrow(slots.LEASE, self.template, holder)
        if row is None:
            return None
        database = PooledDatabase(self._server, Slot.of(row))
        if holder is not None:
            self._leases[database.name] = database
            self._session.leased.add(database.name)
        return database

    def _undo(self, taking: asyncio.Task[PooledDatabase | None]) -> None:
        self._undoing.discard(taking)
        if taking.cancelled() or taking.exception() is not None:
            return
        database = taking.result()
        if database is None:
            return
        if database.name in self._leases:
            undoing = asyncio.ensure_future(self._give_back(database, is_clean=True))
        else:
            undoing = asyncio.ensure_future(self._hand_back(database))
        self._undoing.add(undoing)
        undoing.add_done_callback(self._undoing.discard)

    async def _hand_back(self, database: PooledDatabase) -> None:
        key = (database.template, database.number, database.generation)
        with contextlib.suppress(TestDatabaseError):
            await self._session.fetchrow(slots.TAKE_BACK, *key, SlotState.READY.value)
        self._may_be_ready.set()

    async def _give_back(self, database: PooledDatabase, *, is_clean: bool) -> None:
        if self._leases.pop(database.name, None) is not database:
            return  # the pool was closed before its lease ended, and has given it up
        key = (database.template, database.number, database.generation, self._session.holder)
        try:
            if is_clean:
                given = await self._session.fetchrow(slots.GIVE_BACK_CLEAN, *key, database.name)
            else:
                given = await self._session.fetchrow(slots.GIVE_BACK_DIRTY, *key, True)
        except TestDatabaseError as exc:
            # The outcome of the test is what counts. Others see to the database when this session ends.
            _logger.warning("database %s was not given back: %s", database.name, exc)
            return
        finally:
            self._session.leased.discard(database.name)
        if given is None:
            _logger.warning("database %s was not this process's any more when it was given back", database.name)
        self._count_return(is_clean=is_clean)

    async def _let_go(self, database: PooledDatabase) -> None:
        if self._leases.pop(database.name, None) is not database:
            return
        key = (database.template, database.number, database.generation, self._session.holder)
        try:
            await self._session.fetchrow(slots.LET_GO, *key)
        except TestDatabaseError as exc:
            _logger.warning("database %s was not kept: %s", database.name, exc)
        finally:
            self._session.leased.discard(database.name)
        self._keeper.wake()

    def _count_return(self, *, is_clean: bool) -> None:
        if is_clean:
            self._counters.returned_clean += 1
            self._may_be_ready.set()
        else:
            self._counters.returned_dirty += 1
            self._keeper.wake()

    # ----- The rest

    async def _end(self) -> None:
        while self._waiting:  # they find out by themselves, one after the other
            self._may_be_ready.set()
            await asyncio.sleep(_LEAVE_SECONDS)
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        while self._undoing:
            await asyncio.wait(self._undoing)
        for database in tuple(self._leases.values()):
            await self._give_up(database)
        if not self._keeping.cancelled():
            self._keeping.result()  # a mistake of ours must not pass unseen

    async def _give_up(self, database: PooledDatabase) -> None:
        del self._leases[database.name]
        self._session.leased.discard(database.name)
        key = (database.template, database.number, database.generation, self._session.holder)
        with contextlib.suppress(TestDatabaseError):
            await self._session.fetchrow(slots.GIVE_BACK_DIRTY, *key, False)

    async def _clear(self) -> tuple[str, ...]:
        async with self._session.worker() as connection:
            users = await connection.fetch(upkeep.USERS, self.template)
            if users:
                raise in_use(users)
            rows = await connection.fetch(upkeep.DOOM, self.template)
        self._report(PoolClosed(template=self.template))
        deadline = time.monotonic() + _CLEAR_SECONDS
        while True:
            await self._keeper.work_off()
            row = await self._session.fetchrow(upkeep.COUNT_DOOMED, self.template)
            if not row["doomed"]:
                return tuple(sorted(row["database"] for row in rows))
            if time.monotonic() > deadline:
                raise DatabaseInUse(database=row["database"])
            await asyncio.sleep(_POLL_SECONDS)

    async def _check_unused(self, database: str) -> None:
        async with self._session.worker() as connection:
            rows = await connection.fetch(upkeep.CONNECTED, database)
        if rows:
            raise in_use(rows)

    async def _explain(self) -> str:
        with contextlib.suppress(TestDatabaseError):
            now = await asyncio.wait_for(self.statistics(), 1.0)
            bound = f", {now.databases} of {now.max_databases} on the server" if now.max_databases is not None else ""
            trouble = f"; {self._keeper.trouble}" if self._keeper.trouble else ""
            counts = f"{now.leased} of {now.max_size} are leased, {now.recycling} are being made, {now.ready} are ready"
            return f"{counts}{bound}{trouble}"
        return "the server does not answer"

    def _check_open(self) -> None:
        if self._scope is None or self._is_leaving:
            raise PoolClosed(template=self.template)

    def _report(self, exc: Exception) -> None:
        self._failure = exc
        self._failures += 1
        self._may_be_ready.set()

    def _notified(self, template: str) -> None:
        if template == self.template:
            self._may_be_ready.set()


class _Lease(AbstractAsyncContextManager[PooledDatabase]):
    """A lease to enter. No generator: one that is forgotten would end with its object, in the middle of a test."""

    def __init__(self, pool: DatabasePool, timeout: timedelta | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._database: PooledDatabase

    async def __aenter__(self) -> PooledDatabase:
        self._database = await self._pool._lend(self._timeout)
        return self._database

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        if self._database.is_kept:
            await _to_the_end(self._pool._let_go(self._database))
            return
        is_clean = self._database.is_clean and exc_type is None
        await _to_the_end(self._pool._give_back(self._database, is_clean=is_clean))


async def _to_the_end(work: Any) -> None:
    """Waits for the work, also when the waiting caller is cancelled, and then lets the cancellation go on."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _checked_timeout(timeout: timedelta | None) -> timedelta | None:
    return None if timeout is None else check_duration(timeout, "timeout", allow_zero=True)


def _check_size(argument: str, value: int, least: int, most: int | None) -> None:
    if value < least or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidArgument(argument=argument, reason=f"must be {bound}, not {value}")
