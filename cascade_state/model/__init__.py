"""The domain: frozen values and pure rules, one entity a file. Imports nothing above `errors`.

The values are re-exported here; what else the modules hold is for the back ends.
"""

from __future__ import annotations

from cascade_state.model.component_states import ComponentState
from cascade_state.model.correlations import Correlation, DeadLetter, Delivery
from cascade_state.model.events import FlowEvent, NewEvent
from cascade_state.model.feeds import FeedBatch, FeedFailure, FeedLag, FeedNews, RegisteredConsumer
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_definitions import Condition, FlowDefinition, StepDefinition, Trigger
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus, StepStatus
from cascade_state.model.leases import Lease
from cascade_state.model.lists import CursorList, Page
from cascade_state.model.locks import LockInfo
from cascade_state.model.replica_sets import Membership, PartitionAssignment, RegisteredWorker
from cascade_state.model.statistics import Statistics
from cascade_state.model.step_results import StepResult
from cascade_state.model.timers import ScheduleTimer, Timer, TimerStatus

__all__ = [
    "ComponentState",
    "Condition",
    "Correlation",
    "CursorList",
    "DeadLetter",
    "Delivery",
    "FeedBatch",
    "FeedFailure",
    "FeedLag",
    "FeedNews",
    "FlowDefinition",
    "FlowEvent",
    "FlowInstance",
    "FlowInstanceFilter",
    "FlowStatus",
    "Lease",
    "LockInfo",
    "Membership",
    "NewEvent",
    "Page",
    "PartitionAssignment",
    "RegisteredConsumer",
    "RegisteredWorker",
    "ScheduleTimer",
    "Statistics",
    "StepDefinition",
    "StepResult",
    "StepStatus",
    "Timer",
    "TimerStatus",
    "Trigger",
]
