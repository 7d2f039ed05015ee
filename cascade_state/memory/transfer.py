"""Moving a flow, with its descendants and all that belongs to them, out of a memory store and into one."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from cascade_state.errors import AlreadyExists, FlowInstanceNotFound
from cascade_state.memory.decoding import (
    correlation_of,
    definition_of,
    delivery_of,
    event_of,
    instance_of,
    state_of,
    timer_of,
)
from cascade_state.memory.matching import match_key
from cascade_state.memory.rows import (
    BusinessKeyRow,
    DefinitionRow,
    FlowKey,
    FlowRow,
    HistoryRow,
    ResultRow,
    StateRow,
    TimerRow,
    WaitRow,
)
from cascade_state.memory.schema import wait_key
from cascade_state.memory.transaction import View
from cascade_state.model import documents
from cascade_state.model.export import ExportDocument, ExportedFlow, export_document
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.types import JsonObject

__all__ = ["export", "import_"]

# An export was within the limits of the store that it came from.
_MAXIMUM_BYTES = 1 << 28


def export(view: View, flow_instance_id: UUID) -> JsonObject:
    """Returns the document of a flow and its descendants."""
    first = view.flow_instances.get(flow_instance_id.int)
    if first is None:
        raise FlowInstanceNotFound(key=flow_instance_id)
    family = _with_descendants(view, first)
    pinned = dict.fromkeys((row.flow_id, row.flow_version) for row in family)
    definitions = [view.flow_definitions.get(key) for key in pinned]
    return export_document(
        ExportDocument(
            definitions=tuple(definition_of(row) for row in definitions if row is not None),
            flows=tuple(_exported(view, row) for row in family),
        )
    )


def _with_descendants(view: View, first: FlowRow) -> list[FlowRow]:
    """Returns the flow, its children, their children and so on, each generation in the order of creation."""
    family = [first]
    generation = [first]
    while generation:
        children = [
            child for row in generation for child in view.flow_instances.select("parent", row.flow_instance_id.int)
        ]
        generation = sorted(children, key=lambda row: (row.created_at, row.flow_instance_id.int))
        family += generation
    return family


def _exported(view: View, row: FlowRow) -> ExportedFlow:
    flow_key = row.flow_instance_id.int
    waits = list(view.correlations.select("flow", flow_key))
    history = (view.flow_events.get((flow_key, sequence)) for sequence in range(1, row.event_count + 1))
    return ExportedFlow(
        instance=instance_of(view, row),
        states=tuple(map(state_of, view.component_states.select("flow", flow_key))),
        timers=tuple(map(timer_of, view.timers.select("flow", flow_key))),
        waits=tuple(correlation_of(wait) for wait in waits if wait.delivered_at is None),
        deliveries=tuple(delivery_of(wait) for wait in waits if wait.delivered_at is not None),
        history=tuple(event_of(event) for event in history if event is not None),
    )


def import_(view: View, document: ExportDocument) -> FlowInstance:
    """Stores an export, all or nothing; returns the exported flow as it is stored now."""
    now = view.now()
    for definition in document.definitions:
        _import_definition(view, definition, now)
    for flow in document.flows:
        _import_flow(view, flow, now)
    first = view.flow_instances.get(document.flows[0].instance.flow_instance_id.int)
    assert first is not None  # noqa: S101 - just stored
    return instance_of(view, first)


def _import_definition(view: View, definition: FlowDefinition, now: datetime) -> None:
    key = (definition.flow_id, definition.version or 0)
    view.lock("deployment", definition.flow_id)
    stored = view.flow_definitions.get(key)
    if stored is None:
        view.lock("flow_definitions", key)
        content = _text(definition.content())
        view.flow_definitions.put(key, DefinitionRow(*key, definition.digest, content, definition.deployed_at or now))
    elif stored.digest != definition.digest:
        raise AlreadyExists(entity="flow definition", key=f"{definition.flow_id} version {definition.version}")


def _import_flow(view: View, flow: ExportedFlow, now: datetime) -> None:
    instance = flow.instance
    flow_key = instance.flow_instance_id.int
    view.lock("flow_instances", flow_key)
    if view.flow_instances.get(flow_key) is not None:
        raise AlreadyExists(
            entity="flow instance", key=str(instance.flow_instance_id), existing_id=instance.flow_instance_id
        )
    _take_business_key(view, instance)
    view.flow_instances.put(flow_key, _flow_row(flow, now))
    _import_parts(view, flow, flow_key, now)
    _import_waits(view, flow, now)


def _take_business_key(view: View, instance: FlowInstance) -> None:
    if instance.business_key is None:
        return
    key = (instance.flow_id, instance.business_key)
    view.lock("business_keys", key)
    holder = view.business_keys.get(key)
    if holder is not None:
        raise AlreadyExists(entity="business key", key=instance.business_key, existing_id=holder.flow_instance_id)
    view.business_keys.put(key, BusinessKeyRow(instance.flow_instance_id))


def _flow_row(flow: ExportedFlow, now: datetime) -> FlowRow:
    instance = flow.instance
    timers = {step_id: str(timer_id) for step_id, timer_id in instance.pending_timers.items()}
    return FlowRow(
        flow_instance_id=instance.flow_instance_id,
        root_id=instance.root_id,
        parent_id=instance.parent_id,
        flow_id=instance.flow_id,
        flow_version=instance.flow_version,
        status=instance.status,
        business_key=instance.business_key,
        trigger_data=_text(instance.trigger_data),
        error=None if instance.error is None else _text(instance.error),
        search_attributes=documents.dump_search_attributes(instance.search_attributes, "search_attributes"),
        waits=_text(instance.waits) if instance.waits else None,
        pending_timers=_text(timers) if timers else None,
        version=instance.version,
        event_count=max((event.sequence for event in flow.history), default=0),
        created_at=instance.created_at or now,
        updated_at=instance.updated_at or now,
        completed_at=instance.completed_at,
    )


def _import_parts(view: View, flow: ExportedFlow, flow_key: FlowKey, now: datetime) -> None:
    identity = flow.instance.flow_instance_id
    for result in flow.instance.step_results.values():
        view.step_results.put(
            (flow_key, result.step_id),
            ResultRow(
                flow_key,
                result.step_id,
                result.status,
                _text(result.outputs),
                None if result.error is None else _text(result.error),
                result.attempt,
                result.completed_at or now,
            ),
        )
    for state in flow.states:
        view.component_states.put(
            (flow_key, state.step_id),
            StateRow(identity, state.step_id, _text(state.state), state.version, state.expires_at, state.updated_at),
        )
    for timer in flow.timers:
        timer_key = timer.timer_id.int
        view.lock("timers", timer_key)
        if view.timers.get(timer_key) is not None:
            raise AlreadyExists(entity="timer", key=timer.timer_id)
        row = TimerRow(
            timer_id=timer.timer_id,
            flow_instance_id=identity,
            step_id=timer.step_id,
            due_at=timer.due_at,
            status=timer.status,
            attempts=timer.attempts,
            max_attempts=timer.max_attempts,
            payload=_text(timer.payload),
            last_error=timer.last_error,
            lease_token=_first_token(flow),
        )
        view.timers.put(timer_key, row)
    for event in flow.history:
        view.flow_events.put(
            (flow_key, event.sequence),
            HistoryRow(
                identity,
                event.sequence,
                event.event_type,
                _text(event.payload),
                event.recorded_at,
                view.feed_position(),
            ),
        )


def _import_waits(view: View, flow: ExportedFlow, now: datetime) -> None:
    rows = [
        WaitRow(
            correlation_key=wait.correlation_key,
            flow_instance_id=wait.flow_instance_id,
            step_id=wait.step_id,
            created_at=wait.created_at,
            expires_at=wait.expires_at,
            lease_token=_first_token(flow),
        )
        for wait in flow.waits
    ]
    rows += [
        WaitRow(
            correlation_key=delivery.correlation_key,
            flow_instance_id=delivery.flow_instance_id,
            step_id=delivery.step_id,
            created_at=delivery.delivered_at,
            expires_at=None,
            lease_token=_first_token(flow),
            delivered_at=delivery.delivered_at,
            event_id=delivery.event_id,
            payload=_text(delivery.payload),
            published_at=delivery.delivered_at,
            timed_out=delivery.timed_out,
            attempts=delivery.attempts,
        )
        for delivery in flow.deliveries
    ]
    keys = sorted({row.correlation_key for row in rows})
    for correlation_key in keys:
        view.lock("correlation key", correlation_key)
    for row in rows:
        view.lock("correlations", wait_key(row))
        view.correlations.put(wait_key(row), row)
    for correlation_key in keys:
        match_key(view, correlation_key, now)  # events may have come here before the wait


def _first_token(flow: ExportedFlow) -> int:
    """Returns a token above every lease that was given out before the move."""
    return flow.instance.version << 32


def _text(value: Any) -> str:
    return documents.dump(value, "document", maximum_bytes=_MAXIMUM_BYTES)
