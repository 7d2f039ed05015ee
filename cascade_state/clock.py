"""Where a store gets its time from, when it does not come from the database. Anybody may import this module.

A store without a clock judges time by the database (PostgreSQL) or by the machine (memory). A store opened
with a clock uses it for every time-dependent operation, SQL included, so that a test moves time instead of
sleeping.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

__all__ = ["Clock", "SystemClock"]


@runtime_checkable
class Clock(Protocol):
    """Something that tells the time."""

    def now(self) -> datetime:
        """Returns the current instant, aware and in UTC."""
        ...


class SystemClock:
    """The machine's clock; never goes backwards within one process."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest = datetime.min.replace(tzinfo=UTC)

    def now(self) -> datetime:
        """Returns the current instant in UTC, at least as late as the one returned before."""
        self._latest = max(self._latest, datetime.now(UTC))
        return self._latest
