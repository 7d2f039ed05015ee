"""The pools that this process has open, one for each template that somebody asked for lately.

An open pool costs a little all the time. What it knows is on the server, so it is closed when nobody uses it, and the
next who wants a database opens it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cascade_state.errors import PoolClosed, ServerUnavailable
from cascade_state.testing.integresql.settings import Settings
from cascade_state.testing.integresql.tracking import Tracked
from cascade_state.testing.pool import DatabasePool
from cascade_state.testing.server import PostgresServer

__all__ = ["OpenPools"]

_STATES = ("ready", "leased", "recycling")


@dataclass(slots=True)
class _Entry:
    pool: DatabasePool
    users: int = 0
    used_at: float = 0.0


class OpenPools:
    """Opens pools when they are used, and closes them."""

    def __init__(self, server: PostgresServer, settings: Settings) -> None:
        self._server = server
        self._settings = settings
        self._entries: dict[str, _Entry] = {}
        self._changing = asyncio.Lock()

    def __contains__(self, template_hash: str) -> bool:
        return template_hash in self._entries

    @asynccontextmanager
    async def using(self, tracked: Tracked) -> AsyncIterator[DatabasePool]:
        """Yields the template's pool, which stays open meanwhile unless it is discarded.

        Raises:
            ServerUnavailable: It cannot be opened.
        """
        entry = self._entries.get(tracked.template_hash) or await self._open(tracked)
        entry.users += 1
        try:
            yield entry.pool
        finally:
            entry.users -= 1
            entry.used_at = time.monotonic()

    async def discard(self, tracked: Tracked) -> None:
        """Drops the databases of the pool and closes it; who waits for one gets `PoolClosed`.

        Raises:
            DatabaseInUse: Somebody is connected to one; the pool stays as it was.
        """
        async with self.using(tracked) as pool:
            await pool.discard()
        entry = self._entries.get(tracked.template_hash)
        if entry is not None and entry.pool is pool:
            del self._entries[tracked.template_hash]

    async def close_idle(self, seconds: float) -> None:
        """Closes the pools that nobody has used for so long."""
        for template_hash, entry in list(self._entries.items()):
            if not entry.users and time.monotonic() - entry.used_at >= seconds:
                del self._entries[template_hash]  # before the first await, so that nobody begins to use it
                await entry.pool.close()

    async def close(self) -> None:
        """Closes all pools; their databases stay."""
        async with self._changing:
            while self._entries:
                _, entry = self._entries.popitem()
                with contextlib.suppress(ServerUnavailable):
                    await entry.pool.close()

    async def counts(self) -> dict[str, int]:
        """Returns how many databases of the open pools there are in each state."""
        counts: Counter[str] = Counter(dict.fromkeys(_STATES, 0))
        for entry in list(self._entries.values()):
            with contextlib.suppress(PoolClosed):  # discarded in this moment
                statistics = await entry.pool.statistics()
                counts.update({state: getattr(statistics, state) for state in _STATES})
        return dict(counts)

    async def _open(self, tracked: Tracked) -> _Entry:
        async with self._changing:
            entry = self._entries.get(tracked.template_hash)
            if entry is None:
                pool = self._pool(tracked)
                await pool.open()
                entry = self._entries[tracked.template_hash] = _Entry(pool, used_at=time.monotonic())
        return entry

    def _pool(self, tracked: Tracked) -> DatabasePool:
        settings = self._settings
        return DatabasePool(
            self._server,
            tracked.database,
            initial_size=settings.initial_pool_size,
            max_size=settings.max_pool_size,
            max_databases=settings.max_databases,
            name_prefix=settings.names.tests(tracked.template_hash),
            owner=settings.test_username,
            reclaim_after=max(settings.reclaim_after, settings.minimal_lifetime),
            unclaimed_after=max(settings.unclaimed_after, settings.minimal_lifetime),
        )
