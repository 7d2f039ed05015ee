"""Step results: how a step of a flow instance ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cascade_state.model.flow_status import StepStatus
from cascade_state.types import JsonValue

__all__ = ["StepResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """How a step ended. `attempt` counts how often it did, from 1; `completed_at` is None until it is stored."""

    step_id: str
    status: StepStatus
    outputs: JsonValue = None
    error: JsonValue = None
    attempt: int = 1
    completed_at: datetime | None = None
