"""Reads the feed as a consumer does: going on behind what it has, until what must come has come.

An event appears only once no older transaction can still commit. On a server that serves other databases too, their
transactions count as well, so a test waits for what must appear, for a bounded time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cascade_state.abc import Store
from cascade_state.model.events import FlowEvent
from cascade_state.testing.contracts.base import PATIENCE

__all__ = ["FeedReader", "read_feed"]

_POLL_SECONDS = 0.01


class FeedReader:
    """Follows the feed from a position on, as a consumer does."""

    def __init__(self, store: Store, after: str | None = None, *, limit: int = 100) -> None:
        self.seen: list[FlowEvent] = []
        self._store = store
        self._after = after
        self._limit = limit

    async def read(self) -> list[FlowEvent]:
        """Returns what is new, and goes behind it."""
        batch = await self._store.events.read(after=self._after, limit=self._limit)
        assert len(batch) <= self._limit
        if batch:
            self._after = batch[-1].position
        self.seen += batch
        return batch

    async def read_until(self, is_enough: Callable[[Sequence[FlowEvent]], bool]) -> list[FlowEvent]:
        """Reads on until the events seen are enough; returns them all."""
        async with asyncio.timeout(PATIENCE):
            while not is_enough(self.seen):
                if not await self.read():
                    await asyncio.sleep(_POLL_SECONDS)
        return self.seen


async def read_feed(store: Store, count: int, *, limit: int = 100) -> list[FlowEvent]:
    """Returns the feed once it shows `count` events; fails the test if it shows more."""
    events = await FeedReader(store, limit=limit).read_until(lambda seen: len(seen) >= count)
    assert len(events) == count
    return events
