"""What the API does: templates made once, test databases handed out, all of it true to what PostgreSQL holds.

A template is initialized, filled by whoever asked first, finalized, and then copied by a `DatabasePool` whose slots are
rows on the server. This process keeps nothing that a restart could lose: it only remembers which pools it has open.

An HTTP client holds no session, so nothing proves that it lives. What it was given it keeps until it gives it back, or
until the pool is exhausted and nobody has been connected to the database for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable
from datetime import timedelta
from typing import Any, Self

from cascade_state.errors import (
    DatabaseDiscarded,
    DatabaseInUse,
    DatabaseNotFound,
    PermissionDenied,
    PoolClosed,
    ServerUnavailable,
    TemplateNotFound,
    TestDatabaseError,
)
from cascade_state.testing.integresql.database_config import DatabaseConfig
from cascade_state.testing.integresql.figures import Figures, Metric, exposition
from cascade_state.testing.integresql.pools import OpenPools
from cascade_state.testing.integresql.settings import Settings
from cascade_state.testing.integresql.tracking import TemplateTracking, Tracked
from cascade_state.testing.server import PostgresServer

__all__ = ["IntegresqlService"]

_logger = logging.getLogger("cascade_state.testdb")
_POLL_SECONDS = 0.1  # between looks at a template that another server may finish
_ROUND_SECONDS = 5.0
_LEAVE_SECONDS = 5.0
_IDLE_SECONDS = 600.0  # an open pool costs a little all the time
_LARGEST_NUMBER = 2**31 - 1


class IntegresqlService:
    """The templates and pools of one PostgreSQL server; use it as an async context manager.

    All methods raise `ServerUnavailable` or `PermissionDenied` while PostgreSQL cannot be used.
    """

    def __init__(self, settings: Settings, server: PostgresServer | None = None) -> None:
        """Takes the server that the settings name unless it is given another way to reach it."""
        self.settings = settings
        self.figures: Figures = Figures()
        self.stopping: asyncio.Event = asyncio.Event()
        self._server = server if server is not None else PostgresServer.from_url(settings.postgres.url)
        self._tracking = TemplateTracking(self._server, settings)
        self._pools = OpenPools(self._server, settings)
        self._looks: dict[str, asyncio.Task[Tracked | None]] = {}
        self._changes: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._rounds())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.stopping.set()
        # What is half done for somebody who is gone gets a moment to be undone.
        self._watching.cancel()
        await asyncio.wait({self._watching, *self._tasks}, timeout=_LEAVE_SECONDS)
        tasks = [self._watching, *self._tasks, *self._looks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pools.close()
        await self._tracking.close()

    async def initialize(self, template_hash: str) -> DatabaseConfig | None:
        """Makes an empty template for the caller to fill; None when there is one, filled or being filled.

        A caller who is cancelled leaves no template behind.
        """
        making = asyncio.ensure_future(self._tracking.create(template_hash))
        try:
            tracked = await asyncio.shield(making)
        except asyncio.CancelledError:
            self._in_background(self._unmake(making))
            raise
        if tracked is None:
            return None
        _logger.info("template=%s initialized", tracked.database)
        return self.settings.config_of(tracked.database)

    async def finalize(self, template_hash: str, *, closes_afterwards: bool = False) -> None:
        """Protects the template and has copies of it made; again is harmless.

        Args:
            template_hash: Of the template.
            closes_afterwards: The caller closes its connections only when it has the answer, so nobody waits for that
                here. Requests for a database do: they get none before the template is protected.

        Raises:
            TemplateNotFound: There is none.
            DatabaseInUse: Somebody was still connected to it after `leave_timeout`.
        """
        tracked = await self._tracked(template_hash)
        if await self._tracking.publish(tracked):
            self._published(tracked)
        elif closes_afterwards:
            self._in_background(self._publish_later(tracked))
        else:
            await self._publish(tracked)

    async def discard(self, template_hash: str) -> None:
        """Drops the template and its test databases; whoever waits for one gets `DatabaseDiscarded`.

        Raises:
            TemplateNotFound: There is none.
            DatabaseInUse: Somebody is connected to it or to a copy; nothing has changed.
        """
        tracked = await self._tracked(template_hash)
        await self._tracking.wait_until_left(tracked.database)
        await self._wait_until_copies_left(tracked)
        await self._tracking.retract(tracked)  # nobody gets another copy from now on, from no server
        try:
            await self._clear(tracked)
            await self._tracking.drop(tracked)
        except BaseException:
            if tracked.is_finished:
                await asyncio.shield(self._restore(tracked))
            raise
        finally:
            self._changed(template_hash)
        _logger.info("template=%s discarded", tracked.database)

    async def get(self, template_hash: str) -> tuple[int, DatabaseConfig]:
        """Returns the number and the address of a test database of the caller's own.

        Raises:
            TemplateNotFound: There is no such template.
            DatabaseDiscarded: It was discarded meanwhile.
            TimeoutError: It was not finalized in time, or no copy was free in time.
        """
        started = time.perf_counter()
        self.figures.waiting += 1
        try:
            tracked = await self._finished(template_hash)
            try:
                async with self._pools.using(tracked) as pool:
                    database = await pool.hand_out(timeout=self.settings.get_timeout)
            except (DatabaseNotFound, PoolClosed) as exc:
                raise DatabaseDiscarded(template=template_hash) from exc
        finally:
            self.figures.waiting -= 1
        self.figures.count_wait(time.perf_counter() - started)
        return database.number, self.settings.config_of(database.name)

    async def unlock(self, template_hash: str, number: int) -> None:
        """Gives a test database back as it is; nothing happens when it is not handed out.

        Raises:
            TemplateNotFound: There is no such template.
            DatabaseNotFound: It has no such database.
            DatabaseInUse: Somebody is connected to the database.
        """
        await self._take_back(template_hash, number, clean=True)

    async def recreate(self, template_hash: str, number: int) -> None:
        """Gives a test database back to be made anew in the background; raises as `unlock` does."""
        await self._take_back(template_hash, number, clean=False)

    async def reset(self) -> None:
        """Forgets all templates and drops all test databases; the databases of the templates stay.

        Raises:
            DatabaseInUse: Somebody is connected to a test database; its template stays as it was, the others do not.
        """
        failure: DatabaseInUse | None = None
        for tracked in await self._tracking.list_all():
            try:
                await self._forget(tracked)
            except TemplateNotFound:  # somebody else has just discarded it
                continue
            except DatabaseInUse as exc:
                failure = exc
        if failure is not None:
            raise failure

    async def check(self) -> None:
        """Returns when PostgreSQL can be used.

        Raises:
            ServerUnavailable: It does not answer.
            PermissionDenied: It refuses the role, or the role may not create databases.
        """
        complaint = await self._tracking.check()
        if complaint is not None:
            raise PermissionDenied(reason=complaint)

    async def metrics(self) -> str:
        """Returns the figures of this process and, when PostgreSQL can be reached, of all templates there."""
        try:
            metrics = list(await self._server_metrics())
            is_up = 1
        except (ServerUnavailable, PermissionDenied):
            metrics, is_up = [], 0
        up = Metric(
            name="postgres_up", kind="gauge", meaning="Whether PostgreSQL can be reached.", samples=[("", {}, is_up)]
        )
        return exposition([up, *metrics, *self.figures.metrics()])

    # ------------------------------------------------------------------------------------------------------- inside

    async def _tracked(self, template_hash: str) -> Tracked:
        tracked = await self._tracking.find(template_hash)
        if tracked is None:
            raise TemplateNotFound(template=template_hash)
        return tracked

    async def _finished(self, template_hash: str) -> Tracked:
        """Returns the template when it is finished."""
        first = tracked = await self._tracked(template_hash)
        try:
            async with asyncio.timeout(self.settings.finalize_timeout.total_seconds()):
                while not tracked.is_finished:
                    seen = await self._next_look(template_hash)
                    if seen is None or seen.oid != first.oid:
                        raise DatabaseDiscarded(template=template_hash)
                    tracked = seen
        except TimeoutError:
            raise TimeoutError("the template was not finalized in time") from None
        return tracked

    async def _next_look(self, template_hash: str) -> Tracked | None:
        """Returns what the template looks like in a moment, or as soon as it changes; all who wait share the look."""
        look = self._looks.get(template_hash)
        if look is None:
            look = self._looks[template_hash] = asyncio.ensure_future(self._look(template_hash))
        return await asyncio.shield(look)

    async def _look(self, template_hash: str) -> Tracked | None:
        change = self._changes[template_hash] = asyncio.Event()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(change.wait(), _POLL_SECONDS)
        finally:  # those who come later want a later look
            del self._changes[template_hash], self._looks[template_hash]
        return await self._tracking.find(template_hash)

    def _changed(self, template_hash: str) -> None:
        change = self._changes.get(template_hash)
        if change is not None:
            change.set()

    async def _publish(self, tracked: Tracked) -> None:
        deadline = time.monotonic() + self.settings.leave_timeout.total_seconds()
        while not await self._tracking.publish(tracked):
            remaining = timedelta(seconds=max(0.0, deadline - time.monotonic()))
            await self._tracking.wait_until_left(tracked.database, remaining)
        self._published(tracked)

    async def _publish_later(self, tracked: Tracked) -> None:
        try:
            await self._publish(tracked)
        except TestDatabaseError as exc:
            _logger.warning("template=%s was said to be filled, but is not finalized: %s", tracked.database, exc)

    def _published(self, tracked: Tracked) -> None:
        self._changed(tracked.template_hash)
        self._in_background(self._warm(tracked))
        _logger.info("template=%s finalized", tracked.database)

    async def _take_back(self, template_hash: str, number: int, *, clean: bool) -> None:
        tracked = await self._tracked(template_hash)
        name = f"{self.settings.names.tests(template_hash)}_{number:03d}"
        if not tracked.is_finished or not 0 <= number <= _LARGEST_NUMBER:
            raise DatabaseNotFound(database=name)
        await self._tracking.wait_until_left(name)
        async with self._pools.using(tracked) as pool:
            await pool.take_back(number, clean=clean)

    async def _unmake(self, making: asyncio.Future[Tracked | None]) -> None:
        """Drops what was made for a caller who is gone."""
        with contextlib.suppress(TestDatabaseError):
            tracked = await making
            if tracked is not None:
                await self._tracking.drop(tracked)
                self._changed(tracked.template_hash)

    async def _restore(self, tracked: Tracked) -> None:
        with contextlib.suppress(TemplateNotFound, ServerUnavailable):
            await self._tracking.publish(tracked)

    async def _forget(self, tracked: Tracked) -> None:
        await self._wait_until_copies_left(tracked)
        try:
            await self._clear(tracked)
            await self._tracking.forget(tracked)
        finally:
            self._changed(tracked.template_hash)

    async def _wait_until_copies_left(self, tracked: Tracked) -> None:
        await self._tracking.wait_until_left(self.settings.names.tests(tracked.template_hash), numbered=True)

    async def _clear(self, tracked: Tracked) -> None:
        """Drops the test databases of a template; who waits for one learns that it is gone."""
        if tracked.template_hash in self._pools or await self._tracking.has_copies(tracked):
            await self._pools.discard(tracked)

    async def _warm(self, tracked: Tracked) -> None:
        try:
            async with self._pools.using(tracked):
                pass
        except TestDatabaseError as exc:
            _logger.warning("template=%s has no copies yet: %s", tracked.database, exc)

    async def _rounds(self) -> None:
        """Sees which unfinished templates nobody fills, and closes pools that nobody uses."""
        while True:
            await asyncio.sleep(_ROUND_SECONDS)
            try:
                await self._tracking.list_all()
                await self._pools.close_idle(_IDLE_SECONDS)
            except TestDatabaseError as exc:
                _logger.debug("PostgreSQL cannot be looked at: %s", exc)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _server_metrics(self) -> Iterable[Metric]:
        templates = await self._tracking.list_all()
        finished = sum(tracked.is_finished for tracked in templates)
        counts = await self._pools.counts()
        return [
            Metric(
                name="templates",
                kind="gauge",
                meaning="Templates, by whether they are finished.",
                samples=[
                    ("", {"state": "initializing"}, len(templates) - finished),
                    ("", {"state": "finalized"}, finished),
                ],
            ),
            Metric(
                name="databases",
                kind="gauge",
                meaning="Test databases of the pools that are open, by what they are doing.",
                samples=[("", {"state": state}, count) for state, count in counts.items()],
            ),
        ]
