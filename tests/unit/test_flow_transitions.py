from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_state import FlowDefinition, FlowInstance, FlowStatus, InvalidArgument, InvalidTransition, StepDefinition
from cascade_state.ids import partition_of
from cascade_state.model.flow_status import TERMINAL_STATUSES, TRANSITIONS

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DEFINITION = FlowDefinition(
    flow_id="order",
    steps=(
        StepDefinition(step_id="a", component_type="x"),
        StepDefinition(step_id="b", component_type="x", run_after=("a",)),
        StepDefinition(step_id="c", component_type="x", run_after=("a",)),
    ),
).deployed(3, NOW)

Transition = Callable[[FlowInstance], FlowInstance]

MOVES: dict[str, Transition] = {
    "start": lambda flow: flow.start(),
    "complete_step": lambda flow: flow.complete_step("a"),
    "fail_step": lambda flow: flow.fail_step("a", {"why": "x"}),
    "suspend_for_timer": lambda flow: flow.suspend_for_timer("a", after=timedelta(1)),
    "suspend_for_event": lambda flow: flow.suspend_for_event("b", "key"),
    "resume": lambda flow: flow.resume(),
    "complete": lambda flow: flow.complete(),
    "fail": lambda flow: flow.fail("x"),
    "cancel": lambda flow: flow.cancel("x"),
}


def new() -> FlowInstance:
    return FlowInstance.create(DEFINITION)


def running() -> FlowInstance:
    return new().start()


def stored(flow: FlowInstance) -> FlowInstance:
    return flow.as_stored(NOW)


IN_STATUS: dict[FlowStatus, Callable[[], FlowInstance]] = {
    FlowStatus.INITIALIZING: new,
    FlowStatus.RUNNING: running,
    FlowStatus.WAITING_FOR_EVENT: lambda: running().suspend_for_event("b", "key"),
    FlowStatus.WAITING_FOR_TIMER: lambda: running().suspend_for_timer("a", after=timedelta(1)),
    FlowStatus.COMPLETED: lambda: running().complete(),
    FlowStatus.FAILED: lambda: running().fail("x"),
    FlowStatus.CANCELLED: lambda: running().cancel(),
}


@pytest.mark.parametrize(("status", "transition"), list(product(FlowStatus, MOVES)))
def test_each_transition_is_allowed_exactly_where_the_table_says(status: FlowStatus, transition: str) -> None:
    flow = IN_STATUS[status]()
    assert flow.status is status
    if status in TRANSITIONS[transition]:
        moved = MOVES[transition](flow)
        assert len(moved.changes.events) == len(flow.changes.events) + 1
        assert moved.version == flow.version
    else:
        before = (flow, flow.changes)
        with pytest.raises(InvalidTransition) as caught:
            MOVES[transition](flow)
        assert caught.value.from_status == status
        assert (flow, flow.changes) == before


def test_the_table_names_every_transition() -> None:
    assert set(TRANSITIONS) == set(MOVES)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=12))
def test_the_status_always_says_what_the_flow_waits_for(names: list[str]) -> None:
    flow = new()
    for name in names:
        try:
            flow = MOVES[name](flow)
        except InvalidTransition:
            continue
        if flow.status is FlowStatus.WAITING_FOR_EVENT:
            assert flow.waits
        if flow.status is FlowStatus.WAITING_FOR_TIMER:
            assert flow.pending_timers
            assert not flow.waits
        if flow.status in TERMINAL_STATUSES or flow.status is FlowStatus.INITIALIZING:
            assert not flow.waits
            assert not flow.pending_timers
        assert set(flow.changes.added_timers) <= set(flow.pending_timers.values())
        assert set(flow.changes.added_waits) <= set(flow.waits)
        assert set(flow.changes.results) <= set(flow.step_results)


@settings(max_examples=200)
@given(st.lists(st.one_of(st.sampled_from(sorted(MOVES)), st.just("store")), max_size=14))
def test_the_changes_are_what_the_store_lacks(names: list[str]) -> None:
    """Applying only the changes to what was stored last gives the flow itself."""
    flow = new()
    timers: set[Any] = set()
    waits: dict[str, str] = {}
    results: dict[str, Any] = {}
    for name in [*names, "store"]:
        if name == "store":
            changes = flow.changes
            timers = (timers - set(changes.dropped_timers)) | set(changes.added_timers)
            waits = {step: key for step, key in waits.items() if (step, key) not in changes.dropped_waits}
            waits.update({step: wait.correlation_key for step, wait in changes.added_waits.items()})
            results.update(changes.results)
            assert timers == set(flow.pending_timers.values())
            assert waits == flow.waits
            assert set(results) == set(flow.step_results)
            flow = stored(flow)
            assert not flow.changes
        else:
            try:
                flow = MOVES[name](flow)
            except InvalidTransition:
                continue


def test_a_new_flow_is_pinned_to_its_definition() -> None:
    flow = FlowInstance.create(DEFINITION, trigger_data=(1, 2), business_key="b", search_attributes={"x": 1})
    assert (flow.flow_id, flow.flow_version, flow.version) == ("order", 3, 0)
    assert flow.root_id == flow.flow_instance_id
    assert flow.trigger_data == [1, 2]
    assert flow.created_at is None
    assert [event.event_type for event in flow.changes.events] == ["flow_instance.created"]


def test_a_definition_that_was_not_deployed_makes_no_flow() -> None:
    with pytest.raises(InvalidArgument, match="deploy it first"):
        FlowInstance.create(FlowDefinition(flow_id="x", document={"a": 1}))


def test_a_child_lives_in_the_partition_of_its_root() -> None:
    parent = running()
    child = parent.child(DEFINITION)
    grandchild = child.child(DEFINITION)
    assert grandchild.root_id == parent.flow_instance_id
    assert grandchild.parent_id == child.flow_instance_id
    for count in (16, 256, 4096):
        ids = (parent.flow_instance_id, child.flow_instance_id, grandchild.flow_instance_id)
        assert len({partition_of(identity, count) for identity in ids}) == 1


def test_ready_steps_follow_the_definition() -> None:
    flow = running()
    assert [step.step_id for step in flow.ready_steps(DEFINITION)] == ["a"]
    flow = flow.complete_step("a", {"n": 1})
    assert [step.step_id for step in flow.ready_steps(DEFINITION)] == ["b", "c"]
    flow = flow.suspend_for_event("c", "key")
    assert [step.step_id for step in flow.ready_steps(DEFINITION)] == ["b"]
    assert flow.fail("x").ready_steps(DEFINITION) == ()
    assert running().fail_step("a", "x").ready_steps(DEFINITION) == ()
    with pytest.raises(InvalidArgument):
        flow.ready_steps(DEFINITION.deployed(4, NOW))


def test_outputs_are_found_by_name() -> None:
    flow = running().complete_step("a", {"n": 1}).fail_step("b", "x").complete_step("c", [1])
    assert flow.step_output("a", "n") == 1
    assert flow.step_output("a", "m", "none") == "none"
    assert flow.step_output("b", "n") is None
    assert flow.step_output("c", "n") is None
    assert flow.step_output("d", "n") is None
    assert flow.completed_steps == {"a", "c"}
    assert flow.failed_steps == {"b"}


def test_a_step_that_ends_again_counts_its_attempts() -> None:
    flow = running().fail_step("a", "x").complete_step("a")
    assert (flow.step_results["a"].attempt, flow.step_results["a"].outputs) == (2, {})
    assert flow.completed_steps == {"a"}


def test_what_is_passed_in_is_copied() -> None:
    data = {"list": [1]}
    flow = FlowInstance.create(DEFINITION, trigger_data=data, search_attributes=data).start()
    flow = flow.complete_step("a", data)
    data["list"].append(2)
    assert flow.trigger_data == flow.search_attributes == flow.step_results["a"].outputs == {"list": [1]}


def test_resuming_one_step_leaves_the_others_waiting() -> None:
    flow = running().suspend_for_event("a", "key").suspend_for_timer("b", after=timedelta(1))
    assert flow.status is FlowStatus.WAITING_FOR_EVENT
    flow = flow.resume("a")
    assert flow.status is FlowStatus.RUNNING
    assert set(flow.pending_timers) == {"b"}
    flow = flow.resume("b")  # running, but this step still waits
    assert not flow.pending_timers
    with pytest.raises(InvalidTransition):
        flow.resume("b")


def test_suspending_again_for_the_same_key_keeps_the_wait() -> None:
    flow = stored(running().suspend_for_event("a", "key"))
    again = flow.suspend_for_event("a", "key")
    assert not again.changes.added_waits
    assert not again.changes.dropped_waits
    other = flow.suspend_for_event("a", "other")
    assert other.changes.dropped_waits == (("a", "key"),)
    assert other.waits == {"a": "other"}
    timed = flow.suspend_for_event("a", "key", expires_at=NOW)
    assert timed.changes.added_waits["a"].expires_at == NOW


def test_a_timer_replaces_the_one_the_step_waits_for() -> None:
    flow = stored(running().suspend_for_timer("a", after=timedelta(1)))
    (before,) = flow.pending_timers.values()
    flow = flow.suspend_for_timer("a", due_at=NOW)
    assert flow.changes.dropped_timers == (before,)
    assert before not in flow.pending_timers.values()


@pytest.mark.parametrize("times", [{}, {"due_at": NOW, "after": timedelta(1)}, {"due_at": datetime(2030, 1, 1)}])  # noqa: DTZ001
def test_a_timer_wants_exactly_one_good_time(times: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        running().suspend_for_timer("a", **times)


def test_storing_stamps_the_times_and_clears_the_changes() -> None:
    flow = stored(running().complete_step("a"))
    assert (flow.version, flow.created_at, flow.updated_at, flow.completed_at) == (1, NOW, NOW, None)
    assert flow.step_results["a"].completed_at == NOW
    later = NOW + timedelta(1)
    ended = flow.complete().as_stored(later)
    assert (ended.version, ended.created_at, ended.completed_at) == (2, NOW, later)
    assert ended.step_results["a"].completed_at == NOW


def test_a_repr_shows_no_payload() -> None:
    flow = FlowInstance.create(DEFINITION, trigger_data={"password": "hunter2"}).start().fail("hunter2")
    assert "hunter2" not in repr(flow)
