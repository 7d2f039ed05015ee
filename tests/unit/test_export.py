from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from cascade_state import InvalidArgument
from cascade_state.model.advance import Limits
from cascade_state.model.export import check_export, export_document
from cascade_state.model.leases import Lease
from cascade_state.model.timers import TimerStatus
from tests.unit.exports import Change, an_export, changed_by, drop, every_change, put

LEASE = Lease(holder="w", token=1, expires_at=datetime(2030, 1, 1, tzinfo=UTC))


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
def test_what_is_no_export_is_refused_with_the_place(change: Change, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_export(changed_by(change), Limits())
    assert caught.value.argument == "document"
    assert caught.value.path.startswith(path)


@pytest.mark.parametrize("value", [None, [], "x", 5, {}, {"format_version": "1"}])
def test_other_values_are_no_export(value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_export(value, Limits())
    assert caught.value.argument == "document"


def refused_argument(document: dict[str, Any]) -> str | None:
    try:
        check_export(document, Limits())
    except InvalidArgument as error:
        return error.argument
    return None


def test_whatever_is_changed_it_is_an_export_or_refused() -> None:
    assert {refused_argument(changed_by(change)) for change in every_change()} == {None, "document"}
