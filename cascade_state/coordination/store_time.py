"""How long it is until an instant of the store's clock.

Due times are the database's, and so is the clock that judges them. The machine's clock may differ from it and may jump;
what is slept by is the monotonic clock of this process, related to the store's clock by asking for the time now and
then. A store that was opened with a clock of its own is asked directly, as often as there is somebody to wait.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import datetime

from cascade_state.abc.store import Store

__all__ = ["StoreTime"]

_TRUSTED_SECONDS = 60.0  # clocks drift by milliseconds an hour; a clock that was set is noticed after a minute
_LOOK_SECONDS = 0.02  # how often a clock that a test moves is looked at


class StoreTime:
    """The store's clock, as seen from here."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._clock = store.options.clock
        self._ahead = 0.0  # of the monotonic clock, in seconds since the epoch
        self._asked_at = float("-inf")

    async def seconds_since(self, instant: datetime) -> float:
        """Returns how long ago an instant was; negative when it is still to come."""
        if self._clock is not None:
            return (self._clock.now() - instant).total_seconds()
        if time.monotonic() - self._asked_at > _TRUSTED_SECONDS:
            before = time.monotonic()
            now = await self._store.now()
            self._asked_at = time.monotonic()
            self._ahead = now.timestamp() - (before + self._asked_at) / 2
        return time.monotonic() + self._ahead - instant.timestamp()

    def distrust(self) -> None:
        """Asks for the time again when it is needed next."""
        self._asked_at = float("-inf")

    async def wait(self, event: asyncio.Event, until: datetime | None, longest: float) -> bool:
        """Returns when the event is set, at an instant, or after `longest` seconds; tells whether the event is set."""
        timeout = longest
        if until is not None:
            timeout = min(longest, max(0.0, -await self.seconds_since(until)))
        if self._clock is None or until is None:
            return await _set_within(event, timeout)
        deadline = time.monotonic() + longest
        while self._clock.now() < until and time.monotonic() < deadline:
            if await _set_within(event, _LOOK_SECONDS):
                return True
        return event.is_set()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
