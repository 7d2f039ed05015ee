"""The statuses of a flow instance and the one table of what may follow what.

The state machine in the documentation is drawn from `TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

__all__ = ["TERMINAL_STATUSES", "TRANSITIONS", "FlowStatus", "StepStatus"]


class FlowStatus(StrEnum):
    """Where a flow instance stands."""

    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    WAITING_FOR_EVENT = "WAITING_FOR_EVENT"
    WAITING_FOR_TIMER = "WAITING_FOR_TIMER"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class StepStatus(StrEnum):
    """How a step ended."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


TERMINAL_STATUSES = frozenset({FlowStatus.COMPLETED, FlowStatus.FAILED, FlowStatus.CANCELLED})

_RUNNING = frozenset({FlowStatus.RUNNING})
_WAITING = frozenset({FlowStatus.WAITING_FOR_EVENT, FlowStatus.WAITING_FOR_TIMER})
_LIVE = frozenset(FlowStatus) - TERMINAL_STATUSES

# transition -> the statuses it is allowed in. `resume` is also allowed in RUNNING for a step that still
# waits, because several steps may wait at once and the first one to be resumed sets the flow running.
TRANSITIONS: Mapping[str, frozenset[FlowStatus]] = MappingProxyType(
    {
        "start": frozenset({FlowStatus.INITIALIZING}),
        "complete_step": _RUNNING,
        "fail_step": _RUNNING,
        "suspend_for_timer": _RUNNING | _WAITING,
        "suspend_for_event": _RUNNING | _WAITING,
        "resume": _WAITING,
        "complete": _RUNNING,
        "fail": _LIVE,
        "cancel": _LIVE,
    }
)
