"""The rows of the memory store.

They are immutable and hold JSON as text, so nobody outside can reach what is stored. Flows and timers are
keyed by the integer of their UUID, which compares and hashes many times faster than the UUID and sorts
alike.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple, TypeAlias
from uuid import UUID

from cascade_state.model.feeds import FeedStart
from cascade_state.model.flow_status import FlowStatus, StepStatus
from cascade_state.model.timers import TimerStatus

__all__ = [
    "AssignmentKey",
    "AssignmentRow",
    "BusinessKey",
    "BusinessKeyRow",
    "DefinitionKey",
    "DefinitionRow",
    "EventKey",
    "EventRow",
    "FeedCheckpointKey",
    "FeedCheckpointRow",
    "FeedConsumerRow",
    "FlowKey",
    "FlowRow",
    "HistoryKey",
    "HistoryRow",
    "ReplicaSetRow",
    "ResultRow",
    "StateRow",
    "StepKey",
    "TargetRow",
    "TimerKey",
    "TimerRow",
    "WaitKey",
    "WaitRow",
    "WorkerKey",
    "WorkerRow",
]

DefinitionKey: TypeAlias = tuple[str, int]  # flow id, version
FlowKey: TypeAlias = int  # the integer of the flow instance id
TimerKey: TypeAlias = int  # the integer of the timer id
StepKey: TypeAlias = tuple[FlowKey, str]  # flow, step id
WaitKey: TypeAlias = tuple[str, FlowKey, str]  # correlation key, flow, step id
EventKey: TypeAlias = tuple[str, str]  # correlation key, event id
HistoryKey: TypeAlias = tuple[FlowKey, int]  # flow, sequence
BusinessKey: TypeAlias = tuple[str, str]  # flow id, business key
WorkerKey: TypeAlias = tuple[str, str]  # replica set, worker id
AssignmentKey: TypeAlias = tuple[str, int]  # replica set, partition
FeedCheckpointKey: TypeAlias = tuple[str, int]  # consumer, partition


class DefinitionRow(NamedTuple):
    """One version of a flow definition."""

    flow_id: str
    version: int
    digest: str
    content: str
    deployed_at: datetime
    undeployed_at: datetime | None = None


class FlowRow(NamedTuple):
    """A flow instance, without its step results."""

    flow_instance_id: UUID
    root_id: UUID
    parent_id: UUID | None
    flow_id: str
    flow_version: int
    status: FlowStatus
    business_key: str | None
    trigger_data: str
    error: str | None
    search_attributes: str
    waits: str | None
    pending_timers: str | None
    version: int
    event_count: int  # the last sequence used in the history
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    lease_holder: str | None = None
    lease_token: int = 0
    lease_expires_at: datetime | None = None


class BusinessKeyRow(NamedTuple):
    """Who holds a business key."""

    flow_instance_id: UUID


class ResultRow(NamedTuple):
    """A step result."""

    flow_key: FlowKey
    step_id: str
    status: StepStatus
    outputs: str
    error: str | None
    attempt: int
    completed_at: datetime | None


class StateRow(NamedTuple):
    """A component state."""

    flow_instance_id: UUID
    step_id: str
    state: str
    version: int
    expires_at: datetime | None
    updated_at: datetime


class TimerRow(NamedTuple):
    """A timer."""

    timer_id: UUID
    flow_instance_id: UUID
    step_id: str
    due_at: datetime
    status: TimerStatus
    attempts: int
    max_attempts: int
    payload: str
    last_error: str | None = None
    lease_holder: str | None = None
    lease_token: int = 0
    lease_expires_at: datetime | None = None


class WaitRow(NamedTuple):
    """A wait and, once an event was matched to it or its time is over, its delivery.

    The delivered event is kept whole: one that is given up becomes a dead letter.
    """

    correlation_key: str
    flow_instance_id: UUID
    step_id: str
    created_at: datetime
    expires_at: datetime | None
    lease_token: int
    delivered_at: datetime | None = None  # None: it still waits
    available_at: datetime | None = None  # a delivery that is not claimable before
    event_id: str | None = None
    payload: str | None = None
    mode: str | None = None
    published_at: datetime | None = None
    ordinal: int = 0
    timed_out: bool = False
    attempts: int = 0
    last_error: str | None = None
    lease_holder: str | None = None
    lease_expires_at: datetime | None = None


class EventRow(NamedTuple):
    """A published event: KEPT for whoever waits later, SEEN (remembered for deduplication), or DEAD."""

    correlation_key: str
    event_id: str
    payload: str
    mode: str
    status: str
    published_at: datetime
    ordinal: int
    expires_at: datetime
    reason: str | None = None


class HistoryRow(NamedTuple):
    """A history event. `position` is its place in the feed, given by the commit."""

    flow_instance_id: UUID
    sequence: int
    event_type: str
    payload: str
    recorded_at: datetime
    position: int | None


class ReplicaSetRow(NamedTuple):
    """A replica set. `worker_count` is how many workers the plan was made for."""

    generation: int
    worker_count: int


class WorkerRow(NamedTuple):
    """A worker of a replica set."""

    replica_set: str
    worker_id: str
    started_at: datetime
    heartbeat_at: datetime
    stale_after: timedelta
    metadata: str


class AssignmentRow(NamedTuple):
    """Who owns a partition."""

    owner: str | None
    generation: int


class TargetRow(NamedTuple):
    """Who is to own a partition; apart from its owner, because a handler may hold that row for long."""

    worker_id: str | None


class FeedConsumerRow(NamedTuple):
    """A consumer of the feed."""

    consumer: str
    start: FeedStart
    started_at: datetime
    paused_at: datetime | None


class FeedCheckpointRow(NamedTuple):
    """How far a consumer is in a partition, and how often what comes next has failed."""

    position: int
    updated_at: datetime
    attempts: int = 0
    last_error: str | None = None
    failed_at: datetime | None = None
