"""A clock that stands still until a test moves it, on both back ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cascade_state.model.arguments import check_duration, check_instant

__all__ = ["FrozenClock"]

_START = datetime(2030, 1, 1, tzinfo=UTC)


class FrozenClock:
    """Tells the instant it was set to; a store opened with `clock=` obeys it in everything, SQL included."""

    def __init__(self, start: datetime = _START) -> None:
        self._now = check_instant(start, "start")

    def now(self) -> datetime:
        """Returns the instant the clock stands at."""
        return self._now

    def advance(self, duration: timedelta) -> datetime:
        """Moves the clock forward by `duration` and returns the new instant."""
        self._now += check_duration(duration, "duration", allow_zero=True)
        return self._now

    def set(self, instant: datetime) -> None:
        """Moves the clock to an instant, forward or backward."""
        self._now = check_instant(instant, "instant")
