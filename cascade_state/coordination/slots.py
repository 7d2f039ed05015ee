"""The places for handlers of one worker, shared between its loops."""

from __future__ import annotations

import asyncio
from contextlib import suppress

__all__ = ["Slots"]

# How long a loop that has more to claim waits for more free places, so that it claims some at once, not one by one.
_GATHERING_SECONDS = 0.005


class Slots:
    """Counts free places. Loops take them in turn, so that a long queue of one kind does not starve the others."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._enough = max(1, size // 4)
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()
        self._is_closed = False

    async def reserve(self, most: int, *, gather: bool) -> int:
        """Takes up to `most` places, as soon as one is free, and returns how many; none once it is closed.

        Args:
            gather: Waits a little for more than one to be free.
        """
        async with self._turn:
            await self._until(1)
            if gather:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_GATHERING_SECONDS):
                        await self._until(min(most, self._enough))
            taken = 0 if self._is_closed else min(most, self._free)
            self._free -= taken
            return taken

    def give_back(self, count: int) -> None:
        """Frees places."""
        self._free += count
        self._freed.set()

    def close(self) -> None:
        """Gives no more places away, and turns away who waits for one."""
        self._is_closed = True
        self._freed.set()

    async def _until(self, wanted: int) -> None:
        while self._free < wanted and not self._is_closed:
            self._freed.clear()
            await self._freed.wait()
