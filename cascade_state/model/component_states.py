"""Component states: the JSON that a component keeps for one step of one flow instance."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cascade_state.types import JsonValue

__all__ = ["ComponentState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentState:
    """The JSON that a component keeps for (flow instance, step). It is not found any more from `expires_at` on."""

    flow_instance_id: UUID
    step_id: str
    state: JsonValue
    version: int
    expires_at: datetime | None = None
    updated_at: datetime
