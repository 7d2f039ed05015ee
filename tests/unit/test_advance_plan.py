from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from cascade_state import (
    FlowDefinition,
    FlowInstance,
    InvalidArgument,
    InvalidTransition,
    LeaseLost,
    NewEvent,
    ScheduleTimer,
)
from cascade_state.ids import partition_of
from cascade_state.model.advance import AdvancePlan, HeldDelivery, HeldTimer, Limits, plan_advance
from cascade_state.model.correlations import Delivery
from cascade_state.model.leases import Lease
from cascade_state.model.timers import Timer

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = Lease(holder="w", token=3, expires_at=NOW)
DEFINITION = FlowDefinition(flow_id="order", document={"a": 1}).deployed(1, NOW)


def running() -> FlowInstance:
    return FlowInstance.create(DEFINITION, trigger_data={"n": 1}).start()


def stored(flow: FlowInstance) -> FlowInstance:
    return flow.as_stored(NOW)


def plan(flow: FlowInstance, **extras: Any) -> AdvancePlan:
    return plan_advance(flow, limits=Limits(max_document_bytes=1_000, max_attempts=7), **extras)


def a_timer(flow: FlowInstance, lease: Lease | None = LEASE) -> Timer:
    return Timer(
        timer_id=uuid4(), flow_instance_id=flow.flow_instance_id, step_id="a", due_at=NOW, max_attempts=1, lease=lease
    )


def a_delivery(flow: FlowInstance, lease: Lease | None = LEASE) -> Delivery:
    return Delivery(
        correlation_key="k", flow_instance_id=flow.flow_instance_id, step_id="a", delivered_at=NOW, lease=lease
    )


def test_a_new_flow_brings_its_trigger_data_and_a_stored_one_does_not() -> None:
    first = plan(running())
    assert first.is_new
    assert first.trigger_data == '{"n":1}'
    again = plan(stored(running()).complete_step("a"))
    assert not again.is_new
    assert again.trigger_data == "null"


def test_documents_are_encoded_and_what_is_empty_is_nothing() -> None:
    made = plan(stored(running()))
    assert (made.waits, made.pending_timers, made.error, made.search_attributes) == (None, None, None, "{}")
    made = plan(stored(running()).suspend_for_event("a", "k").suspend_for_timer("b", due_at=NOW))
    assert made.waits == '{"a":"k"}'
    assert made.pending_timers is not None
    assert plan(stored(running()).fail([1])).error == "[1]"


def test_an_acknowledged_timer_and_delivery_are_not_dropped_as_well() -> None:
    flow = stored(running().suspend_for_event("a", "k").suspend_for_timer("b", due_at=NOW))
    timer = replace(a_timer(flow), timer_id=flow.pending_timers["b"])
    resumed = flow.resume()
    assert len(plan(resumed).cancel) == len(plan(resumed).drop_waits) == 1
    made = plan(resumed, completes=[timer, a_delivery(flow), timer])
    assert (made.cancel, made.drop_waits) == ((), ())
    assert made.complete_timers == (HeldTimer(timer.timer_id, 3, "w"),)
    assert made.complete_deliveries == (HeldDelivery("k", flow.flow_instance_id, "a", 3, "w"),)


def test_a_wait_that_is_stored_anew_is_not_dropped_first() -> None:
    flow = stored(running().suspend_for_event("a", "k"))
    made = plan(flow.resume().suspend_for_event("a", "k"))
    assert [wait.correlation_key for wait in made.add_waits] == ["k"]
    assert made.drop_waits == ()
    other = plan(flow.suspend_for_event("a", "other"))
    assert other.drop_waits == (("a", "k"),)


def test_timers_get_ids_in_the_partition_and_the_attempts_of_the_store() -> None:
    flow = running().suspend_for_timer("a", after=timedelta(1))
    made = plan(flow, schedule=[ScheduleTimer("b", due_at=NOW, payload=(1,), max_attempts=2)])
    own, extra = made.schedule
    assert own.timer_id == flow.pending_timers["a"]
    assert (own.max_attempts, extra.max_attempts) == (7, 2)
    assert (extra.payload, extra.due_at, extra.after) == ("[1]", NOW, None)
    assert partition_of(extra.timer_id, 4096) == partition_of(flow.flow_instance_id, 4096)


def test_extra_events_come_after_those_of_the_transitions() -> None:
    made = plan(running(), events=[NewEvent("invoice.sent", {"n": 1})])
    assert [event.event_type for event in made.events] == [
        "flow_instance.created",
        "flow_instance.started",
        "invoice.sent",
    ]


def test_what_was_never_claimed_cannot_be_acknowledged() -> None:
    flow = stored(running())
    for item in (a_timer(flow, None), a_delivery(flow, None)):
        with pytest.raises(LeaseLost):
            plan(flow, completes=[item])


def test_nothing_is_scheduled_on_a_flow_that_ends() -> None:
    with pytest.raises(InvalidTransition):
        plan(running().complete(), schedule=[ScheduleTimer("a", due_at=NOW)])


@pytest.mark.parametrize(
    ("extras", "argument", "path"),
    [
        ({"put_states": {"a": float("nan")}}, "put_states", "$.a"),
        ({"put_states": {"a": {"b": [float("nan")]}}}, "put_states", "$.a.b[0]"),
        ({"put_states": {"": 1}}, "put_states", ""),
        ({"put_states": {"a": "x" * 2_000}}, "put_states", "$.a"),
        ({"remove_states": "abc"}, "remove_states", ""),
        ({"remove_states": [""]}, "remove_states", ""),
        ({"put_states": {"a": 1}, "remove_states": ["a"]}, "remove_states", ""),
        ({"schedule": ["a"]}, "schedule", ""),
        ({"schedule": [ScheduleTimer("", due_at=NOW)]}, "step_id", ""),
        ({"schedule": [ScheduleTimer("a")]}, "due_at", ""),
        ({"schedule": [ScheduleTimer("a", after=timedelta(-1))]}, "after", ""),
        ({"schedule": [ScheduleTimer("a", due_at=NOW, max_attempts=0)]}, "max_attempts", ""),
        ({"schedule": [ScheduleTimer("a", due_at=NOW, payload=b"x")]}, "payload", "$"),
        ({"cancel": ["no uuid"]}, "cancel", ""),
        ({"completes": ["no timer"]}, "completes", ""),
        ({"events": ["no event"]}, "events", ""),
        ({"events": [NewEvent("")]}, "event_type", ""),
        ({"events": [NewEvent("e", {"x": object()})]}, "events", "$.x"),
        ({"lease": "no lease"}, "lease", ""),
    ],
)
def test_an_unusable_extra_is_named(extras: dict[str, Any], argument: str, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan(stored(running()), **extras)
    assert (caught.value.argument, caught.value.path) == (argument, path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("flow_instance_id", "no uuid"), ("flow_id", ""), ("business_key", "\x00"), ("search_attributes", {"a": b""})],
)
def test_what_was_set_past_the_transitions_is_checked(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan(replace(running(), **{field: value}))
    assert caught.value.argument == field


def test_the_plan_tells_what_the_flow_is_then() -> None:
    made = plan(stored(running()).complete_step("a"))
    flow = made.stored(NOW + timedelta(1))
    assert (flow.version, flow.updated_at) == (2, NOW + timedelta(1))
    assert not flow.changes
