"""History: what happened to a flow instance, in order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cascade_state.types import JsonValue

__all__ = ["FlowEvent", "NewEvent"]


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A history event to be recorded with an advance."""

    event_type: str
    payload: JsonValue = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEvent:
    """A recorded history event.

    `sequence` counts 1, 2, 3 … within one flow; `position` is its opaque place in the feed.
    """

    flow_instance_id: UUID
    sequence: int
    event_type: str
    payload: JsonValue = None
    recorded_at: datetime
    position: str
