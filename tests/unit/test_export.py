from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from cascade_state import FlowDefinition, FlowInstance, InvalidArgument, StepDefinition
from cascade_state.ids import new_timer_id
from cascade_state.model.advance import Limits
from cascade_state.model.component_states import ComponentState
from cascade_state.model.correlations import Correlation, Delivery
from cascade_state.model.events import FlowEvent
from cascade_state.model.export import ExportDocument, ExportedFlow, check_export, export_document
from cascade_state.model.leases import Lease
from cascade_state.model.timers import Timer, TimerStatus

NOW = datetime(2030, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)
LEASE = Lease(holder="w", token=1, expires_at=NOW)
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


def document() -> dict[str, Any]:
    return dict(export_document(an_export()))


def test_an_export_survives_json() -> None:
    export = an_export()
    text = json.dumps(export_document(export), allow_nan=False)
    assert check_export(json.loads(text), Limits()) == export


def test_nobody_holds_an_imported_timer() -> None:
    export = an_export()
    first = export.flows[0]
    claimed = replace(first.timers[0], status=TimerStatus.CLAIMED, lease=LEASE)
    flows = (replace(first, timers=(claimed,)), *export.flows[1:])
    plain = export_document(replace(export, flows=flows))
    assert "lease" not in plain["flows"][0]["timers"][0]
    timer = check_export(plain, Limits()).flows[0].timers[0]
    assert (timer.status, timer.lease) == (TimerStatus.PENDING, None)


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(target: dict[str, Any]) -> None:
        inner: Any = target
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(target: dict[str, Any]) -> None:
        inner: Any = target
        for part in path[:-1]:
            inner = inner[part]
        del inner[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (put("format_version", value=2), "$.format_version"),
        (drop("format_version"), "$.format_version"),
        (put("flows", value=[]), "$.flows"),
        (put("flows", value="x"), "$.flows"),
        (drop("definitions"), "$.definitions"),
        (put("definitions", value=[]), "$.flows[0].instance.flow_version"),
        (put("flows", 1, "instance", "flow_version", value=3), "$.flows[1].instance.flow_version"),
        (put("definitions", 0, value=5), "$.definitions[0]"),
        (put("definitions", 0, "content", "steps", 0, "step_id", value=""), "$.definitions[0]"),
        (drop("flows", 0, "instance", "status"), "$.flows[0]"),
        (put("flows", 0, "instance", "status", value="GONE"), "$.flows[0]"),
        (put("flows", 0, "instance", "surprise", value=1), "$.flows[0]"),
        (put("flows", 0, "states", 0, "step_id", value=""), "$.flows[0].states[0].step_id"),
        (put("flows", 0, "states", 0, "flow_instance_id", value=str(uuid4())), "$.flows[0].states[0]"),
        (put("flows", 0, "timers", 0, "due_at", value="2030-01-01"), "$.flows[0].timers[0]"),
        (put("flows", 0, "history", 0, "sequence", value=0), "$.flows[0].history[0].sequence"),
        (put("flows", 0, "deliveries", 0, "timed_out", value="yes"), "$.flows[0].deliveries[0]"),
        (put("flows", 0, "results", 0, "status", value="DONE"), "$.flows[0].results[0]"),
        (put("flows", 0, "waits", value=None), "$.flows[0].waits"),
    ],
)
def test_what_is_no_export_is_refused_with_the_place(change: Callable[[dict[str, Any]], None], path: str) -> None:
    changed = copy.deepcopy(document())
    change(changed)
    with pytest.raises(InvalidArgument) as caught:
        check_export(changed, Limits())
    assert caught.value.argument == "document"
    assert caught.value.path.startswith(path)


@pytest.mark.parametrize("value", [None, [], "x", 5, {}, {"format_version": "1"}])
def test_other_values_are_no_export(value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_export(value, Limits())
    assert caught.value.argument == "document"


def test_every_part_can_be_missing_or_wrong_without_another_error() -> None:
    """Whatever is put in place of any value of the document, it is an export or `InvalidArgument`."""

    def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
        items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for part, inner in items:
            yield (*path, part)
            yield from places(inner, (*path, part))

    original = document()
    for path in list(places(original)):
        for change in (
            drop(*path),
            *(put(*path, value=value) for value in (None, 7, -1, "\ud7ff", [], {}, [[]], True)),
        ):
            changed = copy.deepcopy(original)
            change(changed)
            try:
                check_export(changed, Limits())
            except InvalidArgument as error:
                assert error.argument == "document", path
