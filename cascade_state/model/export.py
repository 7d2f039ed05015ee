"""The document that `export` gives and `import_` takes.

Format 1 is a JSON object: `format_version`; `definitions`, each with `version`, `deployed_at` and `content`;
and `flows`, the exported one first, each with its `instance`, `results`, `states`, `timers`, `waits`,
`deliveries` and `history`. Instants are ISO 8601 in UTC, ids are text. Leases are not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from cascade_state.errors import InvalidArgument
from cascade_state.model import documents
from cascade_state.model.advance import Limits
from cascade_state.model.arguments import check_count, check_instant, check_key, check_text
from cascade_state.model.component_states import ComponentState
from cascade_state.model.correlations import Correlation, Delivery
from cascade_state.model.events import FlowEvent
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus, StepStatus
from cascade_state.model.step_results import StepResult
from cascade_state.model.timers import Timer, TimerStatus
from cascade_state.types import JsonObject

__all__ = ["EXPORT_FORMAT_VERSION", "ExportDocument", "ExportedFlow", "check_export", "export_document"]

EXPORT_FORMAT_VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFlow:
    """One flow with all that belongs to it. The positions of history events are not kept: a feed has its own order."""

    instance: FlowInstance
    states: tuple[ComponentState, ...] = ()
    timers: tuple[Timer, ...] = ()
    waits: tuple[Correlation, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    history: tuple[FlowEvent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportDocument:
    """An export, decoded: the exported flow first, then its descendants, oldest first."""

    definitions: tuple[FlowDefinition, ...]
    flows: tuple[ExportedFlow, ...]


def export_document(export: ExportDocument) -> JsonObject:
    """Returns the JSON document of an export."""
    return {
        "format_version": EXPORT_FORMAT_VERSION,
        "definitions": [
            {
                "version": definition.version,
                "deployed_at": _plain(definition.deployed_at),
                "content": definition.content(),
            }
            for definition in export.definitions
        ],
        "flows": [_flow_document(flow) for flow in export.flows],
    }


def check_export(document: JsonObject, limits: Limits) -> ExportDocument:
    """Returns what a document holds.

    Raises:
        InvalidArgument: It is no export, or one of another format; `path` tells what is wrong where.
    """
    clean = documents.normalize(document, "document")
    if not isinstance(clean, dict):
        raise InvalidArgument(argument="document", reason="is no export")
    if clean.get("format_version") != EXPORT_FORMAT_VERSION:
        raise InvalidArgument(
            argument="document",
            path="$.format_version",
            reason=f"must be {EXPORT_FORMAT_VERSION}, the format that this version of the library knows",
        )
    definitions = _each(clean, "definitions", _definition, "$")
    flows = _each(clean, "flows", _flow, "$")
    if not flows:
        raise InvalidArgument(argument="document", path="$.flows", reason="must not be empty")
    deployed = {(definition.flow_id, definition.version) for definition in definitions}
    for index, flow in enumerate(flows):
        if (flow.instance.flow_id, flow.instance.flow_version) not in deployed:
            path = f"$.flows[{index}].instance.flow_version"
            raise InvalidArgument(argument="document", path=path, reason="is in none of the definitions")
    return ExportDocument(definitions=definitions, flows=flows)


def _flow_document(flow: ExportedFlow) -> dict[str, Any]:
    instance = _record(flow.instance, omit=("step_results", "lease", "changes"))
    return {
        "instance": instance,
        "results": [_record(result) for result in flow.instance.step_results.values()],
        "states": [_record(state) for state in flow.states],
        "timers": [_record(timer, omit=("lease",)) for timer in flow.timers],
        "waits": [_record(wait) for wait in flow.waits],
        "deliveries": [_record(delivery, omit=("lease",)) for delivery in flow.deliveries],
        "history": [_record(event, omit=("position",)) for event in flow.history],
    }


def _record(value: Any, omit: tuple[str, ...] = ()) -> dict[str, Any]:
    return {item.name: _plain(getattr(value, item.name)) for item in fields(value) if item.name not in omit}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _each(
    parent: Mapping[str, Any], name: str, build: Callable[[Mapping[str, Any], str], T], path: str
) -> tuple[T, ...]:
    items = parent.get(name)
    where = f"{path}.{name}"
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise InvalidArgument(argument="document", path=where, reason="must be an array")
    built = []
    for index, item in enumerate(items):
        here = f"{where}[{index}]"
        try:
            built.append(build(item, here))
        except InvalidArgument as error:
            if error.argument == "document" and error.path:
                raise  # a place further inside
            place = here if error.argument == "document" else f"{here}.{error.argument}"
            raise InvalidArgument(argument="document", path=place, reason=error.reason) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"is no part of an export ({type(error).__name__})"
            raise InvalidArgument(argument="document", path=here, reason=reason) from error
    return tuple(built)


def _definition(item: Mapping[str, Any], path: str) -> FlowDefinition:
    definition = FlowDefinition.from_content(
        item["content"], version=_CHECKS["version"](item["version"]), deployed_at=_instant(item["deployed_at"])
    )
    definition.validate()
    return definition


def _flow(item: Mapping[str, Any], path: str) -> ExportedFlow:
    identity = UUID(item["instance"]["flow_instance_id"])
    results = _each(item, "results", _result, path)
    return ExportedFlow(
        instance=_instance(item["instance"], {result.step_id: result for result in results}),
        states=_each(item, "states", lambda row, _: ComponentState(**_typed(row, identity)), path),
        timers=_each(item, "timers", lambda row, _: _timer(row, identity), path),
        waits=_each(item, "waits", lambda row, _: Correlation(**_typed(row, identity)), path),
        deliveries=_each(item, "deliveries", lambda row, _: Delivery(**_typed(row, identity)), path),
        history=_each(item, "history", lambda row, _: FlowEvent(**_typed(row, identity), position=""), path),
    )


def _instance(item: Mapping[str, Any], results: dict[str, StepResult]) -> FlowInstance:
    row = _typed(item, UUID(item["flow_instance_id"]))
    row["root_id"] = UUID(item["root_id"])
    row["parent_id"] = None if item["parent_id"] is None else UUID(item["parent_id"])
    row["status"] = FlowStatus(item["status"])
    row["pending_timers"] = {step_id: UUID(timer_id) for step_id, timer_id in item["pending_timers"].items()}
    return FlowInstance(**row, step_results=results)


def _result(item: Mapping[str, Any], path: str) -> StepResult:
    return StepResult(**{**_typed(item), "status": StepStatus(item["status"])})


def _timer(item: Mapping[str, Any], flow_instance_id: UUID) -> Timer:
    # Nobody holds an imported timer: a claimed one is pending again.
    status = TimerStatus.DEAD if TimerStatus(item["status"]) is TimerStatus.DEAD else TimerStatus.PENDING
    row = _typed(item, flow_instance_id)
    return Timer(**{**row, "timer_id": UUID(item["timer_id"]), "status": status})


def _typed(item: Mapping[str, Any], flow_instance_id: UUID | None = None) -> dict[str, Any]:
    """Returns a record with its fields checked and typed, and made sure that it belongs to its flow."""
    row: dict[str, Any] = {name: _CHECKS[name](value) if name in _CHECKS else value for name, value in item.items()}
    if flow_instance_id is not None:
        if UUID(item["flow_instance_id"]) != flow_instance_id:
            raise ValueError("belongs to another flow")
        row["flow_instance_id"] = flow_instance_id
    return row


def _instant(text: str) -> datetime:
    return check_instant(datetime.fromisoformat(text), "document")


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _key(name: str) -> Callable[[Any], str]:
    return lambda value: check_key(value, name)


def _count(name: str, minimum: int) -> Callable[[Any], int]:
    return lambda value: check_count(value, name, minimum=minimum, maximum=2**62)


def _waits(value: Any) -> dict[str, str]:
    return {check_key(step_id, "waits"): check_key(key, "waits") for step_id, key in value.items()}


def _timed_out(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("must be a bool")
    return value


# What is checked in a record, by the name of its field. Documents, payloads and the like may be any JSON value.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "attempt": _count("attempt", 1),
    "attempts": _count("attempts", 0),
    "business_key": _optional(_key("business_key")),
    "completed_at": _optional(_instant),
    "correlation_key": _key("correlation_key"),
    "created_at": _instant,
    "delivered_at": _instant,
    "deployed_at": _instant,
    "due_at": _instant,
    "event_id": _optional(_key("event_id")),
    "event_type": _key("event_type"),
    "expires_at": _optional(_instant),
    "flow_id": _key("flow_id"),
    "flow_version": _count("flow_version", 1),
    "last_error": _optional(lambda value: check_text(value, "last_error")),
    "max_attempts": _count("max_attempts", 1),
    "recorded_at": _instant,
    "search_attributes": dict,
    "sequence": _count("sequence", 1),
    "step_id": _key("step_id"),
    "timed_out": _timed_out,
    "updated_at": _instant,
    "version": _count("version", 1),
    "waits": _waits,
}
