"""The keeper: what a pool does in the background, so that a database is ready before it is asked for.

It looks whenever something was taken or given back, whenever somebody waits, and now and then. Each time it settles
what became of lost holders, decides how many databases there should be, and starts makers for those that are not
ready. Any number of keepers, in any number of processes, may work on one pool: a decision is taken under a lock, a
job is claimed by one of them.

Only the pool imports this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from cascade_state.errors import (
    DatabaseAlreadyExists,
    DatabaseInUse,
    DatabaseNotFound,
    ServerUnavailable,
)
from cascade_state.testing.connections import Connection, as_ours, quoted, translated
from cascade_state.testing.pool import upkeep
from cascade_state.testing.pool.session import GRACE, PoolSession

__all__ = ["PATIENCE_SECONDS", "Counters", "Keeper", "PoolOptions", "in_use"]

_logger = logging.getLogger(__name__)

_WAITED_FOR_SECONDS = 0.1  # between two looks while somebody waits
_IDLE_SECONDS = 2.0  # otherwise; a holder that is gone is then noticed before the next test wants its database
_RETRY_SECONDS = (0.05, 0.2)  # before the second and the third attempt to copy
_TEMPLATE_SECONDS = 1.0  # for sessions of the template to leave; PostgreSQL itself would hold the copy up for five
_PROBED_NAMES = 100  # beyond max_size: names that databases of others may have

# How long a server may be away (restarting, out of room) before whoever waits is told.
PATIENCE_SECONDS = 5.0
_END_SECONDS = 10.0
_PARALLEL = max(2, os.cpu_count() or 1)


class _Postponed(Exception):
    """Somebody is connected to a database that is to be dropped, and must not be cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """What a pool was told."""

    template: str
    initial_size: int
    max_size: int
    max_databases: int | None
    name_prefix: str
    owner: str | None
    reclaim_after: timedelta
    unclaimed_after: timedelta
    shrink_after: timedelta


@dataclass(slots=True)
class Counters:
    """What this pool object has done since it was made."""

    handed_out: int = 0
    returned_clean: int = 0
    returned_dirty: int = 0
    copies_made: int = 0
    copies_failed: int = 0
    recovered: int = 0  # from holders that were gone, or from nobody in particular


@dataclass(slots=True)
class Keeper:
    """The background work of one open pool."""

    session: PoolSession
    options: PoolOptions
    counters: Counters
    waiting: Callable[[], int]
    is_ready: Callable[[], None]
    """Told when a database has become ready; the notification says so too, a little later."""
    report: Callable[[Exception], None]
    """Told what made a copy fail for good; it is for whoever waits."""
    trouble: str = ""
    """What made the last attempt to copy fail."""
    _is_paused: bool = False
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _look: asyncio.Event = field(default_factory=asyncio.Event)
    _is_wanted: bool = True  # somebody asked since the last look: only then others are evicted, and failures forgotten
    _has_failed: bool = False
    _is_ended: bool = False
    _recovered_at: float = float("-inf")
    _makers: set[asyncio.Task[None]] = field(default_factory=set)

    def wake(self, *, wanted: bool = False) -> None:
        """Makes the keeper look soon."""
        self._is_wanted = self._is_wanted or wanted
        self._look.set()

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            while True:
                async with self._looking:
                    if not self._is_paused:
                        await self._look_around()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_WAITED_FOR_SECONDS if self.waiting() else _IDLE_SECONDS):
                        await self._look.wait()
                self._look.clear()
        finally:
            await self._end_makers()

    @asynccontextmanager
    async def pause(self) -> AsyncIterator[None]:
        """Stops the work, waits for what is under way, and goes on at the end."""
        self._is_paused = True
        try:
            async with self._looking:
                while self._makers:
                    await asyncio.wait(self._makers)
            yield
        finally:
            self._is_paused = False
            self.wake()

    async def work_off(self) -> None:
        """Does all open jobs and returns, or raises what goes wrong; for a pool that is paused.

        What a holder was making is open again once that holder is known to be gone.
        """
        async with self.session.worker() as connection:
            await self._recover(connection)
        while await self._one_job():
            pass

    async def _end_makers(self) -> None:
        """Lets each finish what it is making: a copy that is broken off has to be made again by others."""
        self._is_ended = True
        if self._makers:
            await asyncio.wait(self._makers, timeout=_END_SECONDS)
        for maker in self._makers:
            maker.cancel()
        if self._makers:
            await asyncio.wait(self._makers)

    async def _look_around(self) -> None:
        is_wanted, self._is_wanted = self._is_wanted or self.waiting() > 0, False
        if is_wanted:
            self._has_failed = False
        try:
            async with self.session.worker() as connection:
                jobs = await self._plan(connection, is_wanted)
            self._start_makers(jobs)
            if self._is_time_to_recover():
                async with self.session.worker() as connection:
                    if await self._recover(connection):
                        self.wake()
        except ServerUnavailable as exc:  # whoever waits finds out by itself
            if self.trouble != str(exc):  # once, not at every look
                _logger.warning("pool of %s: %s", self.options.template, exc)
            self.trouble = str(exc)
            await asyncio.sleep(_WAITED_FOR_SECONDS)
        except Exception as exc:
            self._fail(as_ours(exc))

    def _start_makers(self, jobs: int) -> None:
        if self._has_failed:
            return  # until somebody asks again
        for _ in range(min(jobs, _PARALLEL) - len(self._makers)):
            maker = asyncio.ensure_future(self._make())
            self._makers.add(maker)
            maker.add_done_callback(self._makers.discard)

    def _is_time_to_recover(self) -> bool:
        # A look after each test must stay cheap.
        now = time.monotonic()
        if now - self._recovered_at < (_WAITED_FOR_SECONDS if self.waiting() else _IDLE_SECONDS) * 0.9:
            return False
        self._recovered_at = now
        return True

    async def _recover(self, connection: Connection) -> bool:
        """Settles what became of databases whose holders are gone, or that are gone themselves; says if any was."""
        template = self.options.template
        await connection.fetch(upkeep.MARK_MISSING)
        gone = await connection.fetch(upkeep.RECOVER_GONE, GRACE)
        self.counters.recovered += sum(row["template"] == template for row in gone)
        for row in gone:
            _logger.info("database %s: its holder is gone", row["database"])
        await connection.fetch(upkeep.FORGET_GONE, GRACE)
        stale = await connection.fetch(upkeep.MARK_STALE, template)
        await connection.fetch(upkeep.NOTE_CONNECTED, template)
        return bool(gone or stale)

    async def _plan(self, connection: Connection, is_wanted: bool) -> int:
        """Decides how many databases there should be; returns how many jobs are open."""
        options = self.options
        wanted = options.initial_size + self.waiting()
        if options.max_databases is None:
            arguments = (options.name_prefix, self._last_number, wanted, options.max_size)
            counts = await connection.fetchrow(upkeep.PLAN, options.template, *arguments)
            jobs = int(counts["open_jobs"] + counts["grown"])
        else:
            counts = await self._count(connection)
            jobs = int(counts["open_jobs"])
            if counts["ready"] + counts["coming"] < wanted and counts["total"] < options.max_size:
                jobs += await self._grow_within_budget(connection, is_wanted, options.max_databases)
        if counts["ready"] + counts["coming"] > wanted and not is_wanted:
            await connection.fetch(upkeep.SHRINK, options.template, options.initial_size, options.shrink_after)
        if not jobs and self.waiting() and not counts["ready"] and counts["coming"] < self.waiting():
            jobs += await self._reclaim(connection, self.waiting() - counts["coming"])
        return jobs

    async def _grow_within_budget(self, connection: Connection, is_wanted: bool, max_databases: int) -> int:
        """Takes up what is left of the budget; when it is not enough, idle templates are to lose some of theirs."""
        options = self.options
        async with connection.transaction():
            await connection.fetchval(upkeep.ONE_AT_A_TIME)
            counts = await self._count(connection)
            wanted = options.initial_size + self.waiting() - counts["ready"] - counts["coming"]
            wanted = min(wanted, options.max_size - counts["total"])
            room = max_databases - counts["everywhere"]
            missing = wanted - room - counts["doomed"]
            evicted = []
            if is_wanted and missing > 0:
                evicted = await connection.fetch(upkeep.EVICT, options.template, missing)
            arguments = (options.name_prefix, self._last_number, min(wanted, room))
            grown = await connection.fetch(upkeep.GROW, options.template, *arguments)
            return len(evicted) + len(grown)

    @property
    def _last_number(self) -> int:
        return self.options.max_size + _PROBED_NAMES

    async def _reclaim(self, connection: Connection, count: int) -> int:
        options = self.options
        rows = await connection.fetch(
            upkeep.RECLAIM, options.template, count, options.reclaim_after, options.unclaimed_after
        )
        self.counters.recovered += len(rows)
        return len(rows)

    async def _count(self, connection: Connection) -> Any:
        return await connection.fetchrow(upkeep.COUNTS, self.options.template)

    async def _make(self) -> None:
        """Does open jobs, one after the other, until there is none."""
        away_since: float | None = None
        while not (self._has_failed or self._is_ended):
            try:
                if not await self._one_job():
                    return
                away_since = None
            except ServerUnavailable as exc:
                self.trouble = str(exc)
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > PATIENCE_SECONDS:
                    self._fail(exc)
                    return
                await asyncio.sleep(_RETRY_SECONDS[-1])
            except Exception as exc:
                self._fail(as_ours(exc))

    def _fail(self, exc: Exception) -> None:
        self._has_failed = True
        self.counters.copies_failed += 1
        _logger.warning("pool of %s: a copy failed: %s", self.options.template, exc)
        self.report(exc)

    async def _one_job(self) -> bool:
        """Does an open job; False when there is none that can be done now."""
        async with self.session.clones, self.session.worker() as connection:
            job = await connection.fetchrow(upkeep.CLAIM, self.options.template, self.session.holder)
            if job is None:
                return False
            self.session.making.add(job["database"])
            try:
                await self._do(connection, job)
            except _Postponed:
                await self._release(job)
            except BaseException:
                await self._release(job)
                raise
            finally:
                self.session.making.discard(job["database"])
            return True

    async def _do(self, connection: Connection, job: Any) -> None:
        key = (job["template"], job["number"], self.session.holder)
        if job["is_doomed"]:
            await self._drop(connection, job)
            await connection.fetch(upkeep.VANISH, *key)
            self.wake()  # there is room for others now
            return
        is_retried = False
        for pause in (*_RETRY_SECONDS, None):
            try:
                await self._copy(connection, job, is_retried=is_retried)
                break
            except DatabaseAlreadyExists as exc:  # finished meanwhile, by the server, for a maker that was killed
                self.trouble = str(exc)
                if pause is None:
                    raise
            await asyncio.sleep(pause)
            is_retried = True
        self.trouble = ""
        self.counters.copies_made += 1
        await connection.fetch(upkeep.FINISH, *key, job["template_oid"])
        self.is_ready()

    async def _copy(self, connection: Connection, job: Any, *, is_retried: bool) -> None:
        template = job["template"]
        if job["template_oid"] is None:
            raise DatabaseNotFound(database=template)
        if job["is_template_in_use"]:
            await self._await_template(connection, template)
        if job["is_there"] or is_retried:
            await self._drop(connection, job)
        owner = f"OWNER {quoted(self.options.owner)}" if self.options.owner else ""
        strategy = self.session.server.copy_strategy
        with translated(template):
            await connection.execute(
                f"CREATE DATABASE {quoted(job['database'])} TEMPLATE {quoted(template)} {owner} {strategy}"
            )

    async def _await_template(self, connection: Connection, template: str) -> None:
        deadline = time.monotonic() + _TEMPLATE_SECONDS
        while users := await connection.fetch(upkeep.CONNECTED, template):
            if time.monotonic() > deadline:
                raise in_use(users)
            self.trouble = str(in_use(users))
            await asyncio.sleep(_RETRY_SECONDS[0])

    async def _drop(self, connection: Connection, job: Any) -> None:
        force = "WITH (FORCE)" if job["may_disconnect"] else ""
        try:
            with translated(job["database"]):
                await connection.execute(f"DROP DATABASE IF EXISTS {quoted(job['database'])} {force}")
        except DatabaseInUse as exc:
            raise _Postponed from exc

    async def _release(self, job: Any) -> None:
        """Leaves a job to whoever looks next; on another connection, for the own may be in the middle of something."""
        self.session.making.discard(job["database"])

        async def release() -> None:
            with contextlib.suppress(ServerUnavailable):
                await self.session.fetchrow(upkeep.RELEASE, job["template"], job["number"], self.session.holder)

        await asyncio.shield(release())


def in_use(users: list[Any]) -> DatabaseInUse:
    """Returns the error that names the users of the first of these databases."""
    database = users[0]["database"]
    connections = tuple((row["process_id"], row["application_name"]) for row in users if row["database"] == database)
    return DatabaseInUse(database=database, connections=connections)
