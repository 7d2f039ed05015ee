"""Hands each test a database of the pool, sees whether it was left alone, and keeps it or gives it back.

The pool makes copies of the template ahead of time, in the background, for all processes of the run together; and it
takes back what a killed process had. Another connection, to the maintenance database, looks for what a test left open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING

from cascade_state.errors import DatabaseInUse, TestDatabaseError
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.connections import Connection, open_connection
from cascade_state.testing.databases import TemporaryDatabase
from cascade_state.testing.pool import DatabasePool
from cascade_state.testing.sessions import Session, sessions_that_stay

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from cascade_state.testing.pool import PooledDatabase
    from cascade_state.testing.pytest_plugin.template import TemplateDatabase
    from cascade_state.testing.server import PostgresServer

__all__ = ["PREFIX", "Databases"]

PREFIX = "cascade_state_test_"
_logger = logging.getLogger("cascade_state.testing")
# For connections that are just ending: pools close in the background, and a killed client's server process takes a
# moment to notice. A test that leaves none waits for nothing.
_PATIENCE_SECONDS = 2.0
_HAND_OUT = timedelta(minutes=5)  # a clone of a large template on a busy machine; longer than that is not waiting
# On a server that outlives the run, what was kept for a person, and what a killed run left, goes after this time.
_KEPT_FOR = timedelta(days=1)
_END_SECONDS = 10.0  # a person waits for the prompt; what is not dropped by then goes another time


class Databases:
    """The test databases of one process of a test run. Calls block.

    Args:
        server: Where.
        processes: How many processes the run has, this one included.
    """

    def __init__(self, server: PostgresServer, processes: int) -> None:
        self._server = server
        self._processes = processes
        self._pools: dict[str, DatabasePool] = {}
        self._leases: dict[str, tuple[AbstractAsyncContextManager[PooledDatabase], PooledDatabase]] = {}
        self._connection: Connection | None = None

    def hand_out(self, template: TemplateDatabase) -> TemporaryDatabase:
        """Returns a database of the caller's own, as the template is.

        Raises:
            DatabaseNotFound: Somebody dropped the template.
            TestDatabaseError: No copy can be made; see `DatabasePool.lease`.
        """
        return run_blocking(self._hand_out(template))

    def sessions_left(self, database: TemporaryDatabase) -> list[Session]:
        """Returns the connections to the database that are not just ending."""
        return run_blocking(self._sessions_left(database.name))

    def take_back(self, database: TemporaryDatabase, *, keep: bool) -> None:
        """Gives the database back to be made anew, or takes it out of the pool for a person."""
        if database.name in self._leases:
            lease, pooled = self._leases.pop(database.name)
            if keep:
                pooled.keep()
            run_blocking(lease.__aexit__(None, None, None))

    def close(self) -> None:
        """Leaves nothing on a server that outlives the run but the templates, and what was kept."""
        run_blocking(self._close())

    async def _hand_out(self, template: TemplateDatabase) -> TemporaryDatabase:
        if template not in self._pools:
            pool = DatabasePool(
                self._server,
                template,
                initial_size=self._processes + 1,
                max_size=4 * self._processes + 8,
                name_prefix=f"{PREFIX}{template.hash.short}",
            )
            self._pools[template] = await pool.open()
        lease = self._pools[template].lease(timeout=_HAND_OUT)
        pooled = await lease.__aenter__()
        self._leases[pooled.name] = (lease, pooled)
        return TemporaryDatabase(self._server, pooled.name)

    async def _sessions_left(self, name: str) -> list[Session]:
        if self._connection is None or self._connection.is_closed():
            application_name = f"cascade_state pytest {os.getpid()}"
            self._connection = await open_connection(self._server.url, application_name=application_name)
        return await sessions_that_stay(self._connection, name, patience=_PATIENCE_SECONDS)

    async def _close(self) -> None:
        for lease, _ in self._leases.values():  # of tests that were interrupted, or of the whole run
            await lease.__aexit__(None, None, None)
        await asyncio.gather(*(self._end(pool) for pool in self._pools.values()))
        if self._connection is not None:
            await self._connection.close()
        if not self._server.is_thrown_away:
            with contextlib.suppress(TestDatabaseError):  # others will try
                await self._server.collect_garbage(prefix=PREFIX, older_than=_KEPT_FOR)

    async def _end(self, pool: DatabasePool) -> None:
        try:
            if not self._server.is_thrown_away:
                async with asyncio.timeout(_END_SECONDS):
                    with contextlib.suppress(DatabaseInUse):  # another process goes on, and will see to them
                        await pool.discard()
        except (TestDatabaseError, TimeoutError) as exc:
            _logger.warning("the databases of template %s were not dropped: %s", pool.template, exc)
        await pool.close()
