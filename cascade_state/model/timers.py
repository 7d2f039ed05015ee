"""Timers: instants at which a step of a flow instance must be woken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from cascade_state.model.leases import Lease
from cascade_state.types import JsonValue

__all__ = ["WORN_OUT", "ScheduleTimer", "Timer", "TimerStatus"]

# The `last_error` of a timer that is dead because its holders kept vanishing, and so never told an error of
# their own.
WORN_OUT = "worn out: no attempt is left"


class TimerStatus(StrEnum):
    """Where a timer stands. A completed or cancelled timer is not stored any more."""

    PENDING = "PENDING"
    CLAIMED = "CLAIMED"
    DEAD = "DEAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """An instant at which (flow instance, step) must be woken.

    `attempts` counts claims; a timer that was claimed `max_attempts` times without being completed is DEAD.
    """

    timer_id: UUID
    flow_instance_id: UUID
    step_id: str
    due_at: datetime
    status: TimerStatus = TimerStatus.PENDING
    attempts: int = 0
    max_attempts: int
    payload: JsonValue = None
    last_error: str | None = None
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class ScheduleTimer:
    """A timer to be made: at `due_at`, or `after` a duration counted from the database's clock; exactly one of them."""

    step_id: str
    due_at: datetime | None = None
    after: timedelta | None = None
    payload: JsonValue = None
    max_attempts: int | None = None
