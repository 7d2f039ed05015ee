"""An export with a bit of everything, and ways to break it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from cascade_state import FlowDefinition, FlowInstance, StepDefinition
from cascade_state.ids import new_timer_id
from cascade_state.model.component_states import ComponentState
from cascade_state.model.correlations import Correlation, Delivery
from cascade_state.model.events import FlowEvent
from cascade_state.model.export import ExportDocument, ExportedFlow, export_document
from cascade_state.model.timers import Timer, TimerStatus

Change: TypeAlias = Callable[[dict[str, Any]], None]

NOW = datetime(2030, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)
DEFINITION = FlowDefinition(flow_id="order", steps=(StepDefinition(step_id="a", component_type="x"),)).deployed(2, NOW)


def an_export() -> ExportDocument:
    flow = FlowInstance.create(
        DEFINITION, trigger_data=[1.0, None, {"é": 10**30}], business_key="b", search_attributes={"x": -0.0}
    )
    flow = flow.start().complete_step("a", {"n": 1}).fail_step("b", "x").suspend_for_event("c", "k")
    flow = flow.suspend_for_timer("d", due_at=NOW).as_stored(NOW)
    child = flow.child(DEFINITION).start().fail({"why": "x"}).as_stored(NOW + timedelta(1))
    identity = flow.flow_instance_id
    exported = ExportedFlow(
        instance=flow,
        states=(
            ComponentState(
                flow_instance_id=identity, step_id="a", state=[1], version=3, expires_at=NOW, updated_at=NOW
            ),
        ),
        timers=(
            Timer(
                timer_id=new_timer_id(identity),
                flow_instance_id=identity,
                step_id="a",
                due_at=NOW,
                status=TimerStatus.DEAD,
                attempts=2,
                max_attempts=2,
                payload={"p": 1},
                last_error="worn out",
            ),
        ),
        waits=(Correlation(correlation_key="k", flow_instance_id=identity, step_id="c", created_at=NOW),),
        deliveries=(
            Delivery(
                correlation_key="l",
                flow_instance_id=identity,
                step_id="e",
                event_id="event",
                payload=[],
                delivered_at=NOW,
                attempts=1,
            ),
        ),
        history=(
            FlowEvent(flow_instance_id=identity, sequence=1, event_type="t", payload={}, recorded_at=NOW, position=""),
        ),
    )
    return ExportDocument(definitions=(DEFINITION,), flows=(exported, ExportedFlow(instance=child)))


def put(*path: Any, value: Any) -> Change:
    def change(target: dict[str, Any]) -> None:
        inner: Any = target
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value

    return change


def drop(*path: Any) -> Change:
    def change(target: dict[str, Any]) -> None:
        inner: Any = target
        for part in path[:-1]:
            inner = inner[part]
        del inner[path[-1]]

    return change


def changed_by(change: Change) -> dict[str, Any]:
    """Returns the document of an export with one change."""
    changed: dict[str, Any] = copy.deepcopy(dict(export_document(an_export())))
    change(changed)
    return changed


_REPLACEMENTS: tuple[Any, ...] = (None, 7, -1, "x", "\ud800", [], {}, [[]], True)


def every_change() -> Iterator[Change]:
    """Yields changes that take away each part of the document, and put other values in its place."""
    for path in _places(dict(export_document(an_export()))):
        yield drop(*path)
        for value in _REPLACEMENTS:
            yield put(*path, value=value)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, inner in items:
        yield (*path, part)
        yield from _places(inner, (*path, part))
