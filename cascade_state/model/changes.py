"""What a flow instance remembers of the transitions that are not stored yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from cascade_state.model.events import NewEvent
from cascade_state.model.step_results import StepResult
from cascade_state.model.timers import ScheduleTimer

__all__ = ["NOTHING_PENDING", "Changes", "NewWait"]


@dataclass(frozen=True, slots=True)
class NewWait:
    """A wait that is to be stored."""

    correlation_key: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The difference between a flow instance and what the store has of it.

    `dropped_waits` and `dropped_timers` name only what is stored; a wait that was added and resumed before it
    was ever stored leaves no trace here.
    """

    results: Mapping[str, StepResult] = field(default_factory=dict)
    added_waits: Mapping[str, NewWait] = field(default_factory=dict)
    dropped_waits: tuple[tuple[str, str], ...] = ()  # (step id, correlation key)
    added_timers: Mapping[UUID, ScheduleTimer] = field(default_factory=dict)
    dropped_timers: tuple[UUID, ...] = ()
    events: tuple[NewEvent, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.events)  # every transition records an event


NOTHING_PENDING = Changes()
