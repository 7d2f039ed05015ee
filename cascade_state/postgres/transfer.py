"""Moving a flow, with its descendants and all that belongs to them, out of a store and into another one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from cascade_state.errors import AlreadyExists, FlowInstanceNotFound
from cascade_state.model import documents
from cascade_state.model.component_states import ComponentState
from cascade_state.model.correlations import Correlation, Delivery
from cascade_state.model.events import FlowEvent
from cascade_state.model.export import ExportDocument, ExportedFlow, export_document
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import Timer, TimerStatus
from cascade_state.postgres.advance_values import BUSINESS_KEY_SCOPE
from cascade_state.postgres.diagnosis import free_stale_key
from cascade_state.postgres.direct import Record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.instance_rows import instance_from_record, load_optional
from cascade_state.postgres.matching import match_keys
from cascade_state.postgres.statements import transfer as statements
from cascade_state.postgres.statements.parameters import columns
from cascade_state.types import JsonObject

__all__ = ["export", "import_"]


async def export(executor: Executor, flow_instance_id: UUID) -> JsonObject:
    """Returns the document of a flow and its descendants, all read from one state of the store."""
    async with executor.transaction(snapshot=True) as reader:
        partition_id = executor.partition_of(flow_instance_id)
        records = await reader.fetch(
            statements.FAMILY, {"partition_id": partition_id, "flow_instance_id": flow_instance_id}
        )
        family = _descendants(flow_instance_id, [instance_from_record(record) for record in records])
        if not family:
            raise FlowInstanceNotFound(key=flow_instance_id)
        wanted = columns(
            "flow",
            ("partition_id", "flow_instance_id"),
            [(partition_id, instance.flow_instance_id) for instance in family],
        )
        parts = {name: await reader.fetch(statement, wanted) for name, statement in statements.PARTS.items()}
        definitions = await reader.fetch(
            statements.DEFINITIONS,
            columns(
                "definition",
                ("flow_id", "version"),
                dict.fromkeys((instance.flow_id, instance.flow_version) for instance in family),
            ),
        )
    flows = tuple(_exported(instance, parts) for instance in family)
    return export_document(ExportDocument(definitions=tuple(map(_definition, definitions)), flows=flows))


def _descendants(flow_instance_id: UUID, family: Iterable[FlowInstance]) -> list[FlowInstance]:
    """Returns the flow, then its descendants, parents first. `family` is in the order of creation."""
    chosen: dict[UUID, FlowInstance] = {}
    for instance in family:
        if instance.flow_instance_id == flow_instance_id:
            chosen[instance.flow_instance_id] = instance
    remaining = [instance for instance in family if instance.flow_instance_id != flow_instance_id]
    found = bool(chosen)
    while found:
        children = [instance for instance in remaining if instance.parent_id in chosen]
        remaining = [instance for instance in remaining if instance.parent_id not in chosen]
        chosen.update({child.flow_instance_id: child for child in children})
        found = bool(children)
    return list(chosen.values())


def _exported(instance: FlowInstance, parts: dict[str, list[Record]]) -> ExportedFlow:
    own = {
        name: [record for record in records if record["flow_instance_id"] == instance.flow_instance_id]
        for name, records in parts.items()
    }
    return ExportedFlow(
        instance=instance,
        states=tuple(ComponentState(**_decoded(record, "state")) for record in own["states"]),
        timers=tuple(_timer(record) for record in own["timers"]),
        waits=tuple(Correlation(**record) for record in own["waits"]),
        deliveries=tuple(Delivery(**_decoded(record, "payload")) for record in own["deliveries"]),
        history=tuple(FlowEvent(**_decoded(record, "payload"), position="") for record in own["history"]),
    )


def _decoded(record: Record, name: str) -> dict[str, Any]:
    return {**record, name: load_optional(record[name])}


def _timer(record: Record) -> Timer:
    return Timer(**{**_decoded(record, "payload"), "status": TimerStatus(record["status"])})


def _definition(record: Record) -> FlowDefinition:
    return FlowDefinition.from_content(
        documents.load(record["content"]), version=record["version"], deployed_at=record["deployed_at"]
    )


async def import_(executor: Executor, document: ExportDocument) -> FlowInstance:
    """Stores an export, all or nothing; returns the exported flow as it is stored now."""
    async with executor.transaction(undoable=True) as writer:
        for definition in document.definitions:
            await _import_definition(writer, definition)
        for flow in document.flows:
            await _import_flow(writer, flow)
        for name, rows in _part_rows(writer, document.flows).items():
            if rows:
                types = statements.IMPORTED_PARTS[name]
                values = {"now": writer.now(), **columns("row", tuple(types), rows)}
                await writer.fetch(statements.IMPORT_PARTS[name], values)
        waits = [wait.correlation_key for flow in document.flows for wait in flow.waits]
        if waits:
            await match_keys(writer, waits)  # events may have come here before the waits
    first = document.flows[0].instance
    records = await executor.fetch(
        statements.FIND_IMPORTED,
        {
            "partition_id": executor.partition_of(first.flow_instance_id),
            "flow_instance_id": first.flow_instance_id,
        },
    )
    return instance_from_record(records[0])


async def _import_definition(writer: Executor, definition: FlowDefinition) -> None:
    values = {
        "flow_id": definition.flow_id,
        "version": definition.version,
        "digest": definition.digest,
        "content": documents.dump(definition.content(), "definition", maximum_bytes=1 << 28),
        "deployed_at": definition.deployed_at,
        "now": writer.now(),
    }
    records = await writer.fetch(statements.IMPORT_DEFINITION, values)
    if not records:
        records = await writer.fetch(statements.STORED_DIGEST, values)
    if records[0]["digest"] != definition.digest:
        raise AlreadyExists(entity="flow definition", key=f"{definition.flow_id} version {definition.version}")


async def _import_flow(writer: Executor, flow: ExportedFlow) -> None:
    instance = flow.instance
    identity, key = instance.flow_instance_id, instance.business_key
    if key is not None:
        taken = {
            "key_partition_id": writer.partition_of_key(key),
            "scope": BUSINESS_KEY_SCOPE + instance.flow_id,
            "key": key,
            "flow_instance_id": identity,
            "now": writer.now(),
        }
        while not await writer.fetch(statements.TAKE_KEY, taken):
            holders = await writer.fetch(statements.KEY_HOLDER, taken)
            if not holders or await free_stale_key(writer, instance.flow_id, key, holders[0]["flow_instance_id"]):
                continue
            holder = holders[0]["flow_instance_id"]
            if holder == identity:
                raise AlreadyExists(entity="flow instance", key=str(identity), existing_id=identity)
            raise AlreadyExists(entity="business key", key=key, existing_id=holder)
    values = {
        "partition_id": writer.partition_of(identity),
        "flow_instance_id": identity,
        "root_id": instance.root_id,
        "parent_id": instance.parent_id,
        "flow_id": instance.flow_id,
        "flow_version": instance.flow_version,
        "status": instance.status.value,
        "business_key": key,
        "trigger_data": _text(instance.trigger_data),
        "error": None if instance.error is None else _text(instance.error),
        "search_attributes": documents.dump_search_attributes(instance.search_attributes, "search_attributes"),
        "waits": _text(instance.waits) if instance.waits else None,
        "pending_timers": _text({step: str(timer) for step, timer in instance.pending_timers.items()})
        if instance.pending_timers
        else None,
        "version": instance.version,
        "event_count": max((event.sequence for event in flow.history), default=0),
        "created_at": instance.created_at,
        "updated_at": instance.updated_at,
        "completed_at": instance.completed_at,
    }
    if not await writer.fetch(statements.IMPORT_FLOW, values):
        raise AlreadyExists(entity="flow instance", key=str(identity), existing_id=identity)


def _part_rows(writer: Executor, flows: Sequence[ExportedFlow]) -> dict[str, list[tuple[Any, ...]]]:
    """Returns the rows of the tables beside flow_instances, each in the order of its columns."""
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in statements.IMPORTED_PARTS}
    for flow in flows:
        identity = flow.instance.flow_instance_id
        own = (writer.partition_of(identity), identity)
        # Above every token of a lease that was given out before the move; see the advance's waits.
        token = flow.instance.version << 32
        rows["results"] += [
            (
                *own,
                item.step_id,
                item.status.value,
                _text(item.outputs),
                None if item.error is None else _text(item.error),
                item.attempt,
                item.completed_at,
            )
            for item in flow.instance.step_results.values()
        ]
        rows["states"] += [
            (*own, item.step_id, _text(item.state), item.version, item.expires_at, item.updated_at)
            for item in flow.states
        ]
        rows["timers"] += [
            (
                own[0],
                item.timer_id,
                identity,
                item.step_id,
                item.due_at,
                item.status.value,
                item.attempts,
                item.max_attempts,
                _text(item.payload),
                item.last_error,
                token,
            )
            for item in flow.timers
        ]
        rows["history"] += [
            (*own, item.sequence, item.event_type, _text(item.payload), item.recorded_at) for item in flow.history
        ]
        rows["waits"] += [
            (
                writer.partition_of_key(item.correlation_key),
                item.correlation_key,
                identity,
                item.step_id,
                own[0],
                "NEW",
                item.created_at,
                item.expires_at,
                None,
                None,
                None,
                False,
                0,
                token,
            )
            for item in flow.waits
        ]
        rows["waits"] += [
            (
                writer.partition_of_key(item.correlation_key),
                item.correlation_key,
                identity,
                item.step_id,
                own[0],
                "DELIVERED",
                item.delivered_at,
                None,
                item.event_id,
                _text(item.payload),
                item.delivered_at,
                item.timed_out,
                item.attempts,
                token,
            )
            for item in flow.deliveries
        ]
    return rows


def _text(value: Any) -> str:
    return documents.dump(value, "document", maximum_bytes=1 << 28)
