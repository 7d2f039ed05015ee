"""From rows to values. Each read decodes afresh, so a caller gets a copy of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

from cascade_state.errors import InvalidArgument, SerializationError
from cascade_state.memory.rows import DefinitionRow, FlowRow, HistoryRow, ResultRow, StateRow, TimerRow, WaitRow
from cascade_state.memory.transaction import View
from cascade_state.model.component_states import ComponentState
from cascade_state.model.correlations import Correlation, Delivery
from cascade_state.model.documents import load
from cascade_state.model.events import FlowEvent
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.leases import Lease
from cascade_state.model.lists import decode_cursor, encode_cursor
from cascade_state.model.step_results import StepResult
from cascade_state.model.timers import Timer

__all__ = [
    "correlation_of",
    "decode_feed_position",
    "definition_of",
    "delivery_of",
    "encode_feed_position",
    "event_of",
    "instance_of",
    "lease_of",
    "state_of",
    "timer_of",
]

_FEED = "events"  # the subject of feed positions

T = TypeVar("T")


def instance_of(view: View, row: FlowRow) -> FlowInstance:
    """Returns the flow instance of a row, with its step results."""
    return _decoded("flow instance", row.flow_instance_id, lambda: _instance(view, row))


def _instance(view: View, row: FlowRow) -> FlowInstance:
    results = view.step_results.select("flow", row.flow_instance_id.int)
    return FlowInstance(
        flow_instance_id=row.flow_instance_id,
        root_id=row.root_id,
        parent_id=row.parent_id,
        flow_id=row.flow_id,
        flow_version=row.flow_version,
        status=row.status,
        business_key=row.business_key,
        trigger_data=load(row.trigger_data),
        step_results={result.step_id: _result(result) for result in results},
        pending_timers={}
        if row.pending_timers is None
        else {step_id: UUID(timer_id) for step_id, timer_id in load(row.pending_timers).items()},
        waits={} if row.waits is None else load(row.waits),
        error=None if row.error is None else load(row.error),
        search_attributes={} if row.search_attributes == "{}" else load(row.search_attributes),
        created_at=row.created_at,
        updated_at=row.updated_at,
        completed_at=row.completed_at,
        version=row.version,
        lease=lease_of(row),
    )


def _result(row: ResultRow) -> StepResult:
    return StepResult(
        step_id=row.step_id,
        status=row.status,
        outputs=load(row.outputs),
        error=None if row.error is None else load(row.error),
        attempt=row.attempt,
        completed_at=row.completed_at,
    )


def lease_of(row: FlowRow | TimerRow | WaitRow) -> Lease | None:
    """Returns the lease that a row is under, or None."""
    if row.lease_holder is None or row.lease_expires_at is None:
        return None
    return Lease(holder=row.lease_holder, token=row.lease_token, expires_at=row.lease_expires_at)


def definition_of(row: DefinitionRow) -> FlowDefinition:
    """Returns the definition of a row."""
    return _decoded(
        "flow definition",
        f"{row.flow_id} version {row.version}",
        lambda: FlowDefinition.from_content(load(row.content), version=row.version, deployed_at=row.deployed_at),
    )


def state_of(row: StateRow) -> ComponentState:
    """Returns the component state of a row."""
    return _decoded(
        "component state",
        f"{row.flow_instance_id} step {row.step_id}",
        lambda: ComponentState(
            flow_instance_id=row.flow_instance_id,
            step_id=row.step_id,
            state=load(row.state),
            version=row.version,
            expires_at=row.expires_at,
            updated_at=row.updated_at,
        ),
    )


def timer_of(row: TimerRow) -> Timer:
    """Returns the timer of a row."""
    return _decoded(
        "timer",
        row.timer_id,
        lambda: Timer(
            timer_id=row.timer_id,
            flow_instance_id=row.flow_instance_id,
            step_id=row.step_id,
            due_at=row.due_at,
            status=row.status,
            attempts=row.attempts,
            max_attempts=row.max_attempts,
            payload=load(row.payload),
            last_error=row.last_error,
            lease=lease_of(row),
        ),
    )


def correlation_of(row: WaitRow) -> Correlation:
    """Returns the wait of a row."""
    return Correlation(
        correlation_key=row.correlation_key,
        flow_instance_id=row.flow_instance_id,
        step_id=row.step_id,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def delivery_of(row: WaitRow) -> Delivery:
    """Returns the delivery of a row that has one."""
    assert row.delivered_at is not None  # noqa: S101 - the caller chose a delivered row
    return Delivery(
        correlation_key=row.correlation_key,
        flow_instance_id=row.flow_instance_id,
        step_id=row.step_id,
        event_id=row.event_id,
        payload=None if row.payload is None else load(row.payload),
        delivered_at=row.delivered_at,
        timed_out=row.timed_out,
        attempts=row.attempts,
        lease=lease_of(row),
    )


def event_of(row: HistoryRow) -> FlowEvent:
    """Returns the history event of a row. One that is not committed yet has the empty position: it is in no feed."""
    return _decoded(
        "flow event",
        f"{row.flow_instance_id} sequence {row.sequence}",
        lambda: FlowEvent(
            flow_instance_id=row.flow_instance_id,
            sequence=row.sequence,
            event_type=row.event_type,
            payload=load(row.payload),
            recorded_at=row.recorded_at,
            position="" if row.position is None else encode_feed_position(row.position),
        ),
    )


def encode_feed_position(position: int) -> str:
    """Returns a place in the feed as opaque text."""
    return encode_cursor(_FEED, (position,))


def decode_feed_position(position: str) -> int:
    """Returns the place in the feed of a position.

    Raises:
        InvalidArgument: It is no position of this feed.
    """
    try:
        key = decode_cursor(position, _FEED, (int,))
    except InvalidArgument:
        raise InvalidArgument(argument="after", reason="is not a position of this feed") from None
    assert key is not None  # noqa: S101 - only None gives None
    return int(key[0])


def _decoded(entity: str, key: Any, decode: Callable[[], T]) -> T:
    try:
        return decode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} while decoding"
        raise SerializationError(entity=entity, key=key, reason=reason) from error
