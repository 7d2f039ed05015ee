"""The demo's invariants find what is planted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cascade_state import FlowInstance, FlowStatus, open_store
from cascade_state.demo.invariants import Evidence, WorkerLog, check_all
from cascade_state.testing.clock import FrozenClock
from tests.unit.demo_runs import played_evidence


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """What a good run leaves; played once, because nothing here changes it."""

    async def play() -> Evidence:
        clock = FrozenClock()
        async with open_store("memory://", clock=clock) as store:
            return await played_evidence(store, clock, flow_count=12)

    return asyncio.run(play())


def broken(evidence: Evidence) -> set[str]:
    """Returns the first words of the invariants that do not hold."""
    return {" ".join(verdict.name.split()[:3]) for verdict in check_all(evidence) if not verdict.holds}


def find(evidence: Evidence, flow_id: str, status: FlowStatus = FlowStatus.COMPLETED) -> FlowInstance:
    return next(flow for flow in evidence.flows if (flow.flow_id, flow.status) == (flow_id, status))


def without_an_effect(evidence: Evidence) -> Evidence:
    lost = next(effect for effect in evidence.effects if effect.step_id == "charge-payment")
    return replace(evidence, effects=[effect for effect in evidence.effects if effect is not lost])


def with_an_effect_twice(evidence: Evidence) -> Evidence:
    twice = next(effect for effect in evidence.effects if effect.step_id == "charge-payment")
    return replace(evidence, effects=[*evidence.effects, twice])


def with_an_event_twice(evidence: Evidence) -> Evidence:
    received = next(effect for effect in evidence.effects if effect.what == "received")
    return replace(evidence, effects=[*evidence.effects, received])


def without_a_flow(evidence: Evidence) -> Evidence:
    lost = find(evidence, "review")
    return replace(evidence, flows=[flow for flow in evidence.flows if flow is not lost])


def with_a_flow_that_never_ended(evidence: Evidence) -> Evidence:
    ended = find(evidence, "order")
    stuck = replace(ended, status=FlowStatus.RUNNING)
    return replace(evidence, flows=[stuck if flow is ended else flow for flow in evidence.flows])


def with_a_flow_that_nobody_started(evidence: Evidence) -> Evidence:
    foreign = replace(find(evidence, "order"), business_key="order-9999")
    return replace(evidence, flows=[*evidence.flows, foreign])


def without_a_step_result(evidence: Evidence) -> Evidence:
    whole = find(evidence, "import")
    results = {step: result for step, result in whole.step_results.items() if step != "chunk-007"}
    torn = replace(whole, step_results=results)
    return replace(evidence, flows=[torn if flow is whole else flow for flow in evidence.flows])


def with_a_wrong_amount(evidence: Evidence) -> Evidence:
    charged = next(effect for effect in evidence.effects if effect.step_id == "charge-payment")
    dearer = replace(charged, amount=charged.amount + 1)
    return replace(evidence, effects=[dearer if effect is charged else effect for effect in evidence.effects])


def with_a_gap_in_a_history(evidence: Evidence) -> Evidence:
    identity = find(evidence, "order").flow_instance_id
    events = evidence.history[identity]
    return replace(evidence, history={**evidence.history, identity: [*events[:1], *events[2:]]})


def with_a_history_without_a_beginning(evidence: Evidence) -> Evidence:
    identity = find(evidence, "order").flow_instance_id
    events = [replace(item, sequence=item.sequence - 1) for item in evidence.history[identity][1:]]
    return replace(evidence, history={**evidence.history, identity: events})


def with_a_history_that_goes_on_after_the_end(evidence: Evidence) -> Evidence:
    identity = find(evidence, "order").flow_instance_id
    events = evidence.history[identity]
    again = replace(events[-1], sequence=len(events) + 1)
    return replace(evidence, history={**evidence.history, identity: [*events, again]})


def with_a_timer_left(evidence: Evidence) -> Evidence:
    return replace(evidence, statistics=replace(evidence.statistics, timers_pending=1))


def with_an_event_that_came_too_late(evidence: Evidence) -> Evidence:
    received = next(effect for effect in evidence.effects if effect.event_id is not None)
    late = replace(received, event_id="late#1", step_id="pick-up", what="received")
    return replace(evidence, effects=[*evidence.effects, late])


def log_of(evidence: Evidence, **facts: Any) -> WorkerLog:
    """Returns what a worker told that did its share: its first effect is in the books."""
    first = evidence.effects[0]
    return WorkerLog(name=first.worker, recorded=Counter({(first.business_key, first.step_id): 1}), **facts)


def with_an_idle_worker(evidence: Evidence) -> Evidence:
    logs = [log_of(evidence), WorkerLog(name="worker-2", work_left=30)]
    return replace(evidence, logs=logs, scenario=replace(evidence.scenario, slow=frozenset()))


def owned(evidence: Evidence, *owners: tuple[str, int]) -> Evidence:
    """Returns the evidence with effects of one flow by these workers, in these generations of its partition."""
    mine = [effect for effect in evidence.effects if effect.business_key == evidence.effects[0].business_key]
    written = {
        id(effect): replace(effect, worker=worker, generation=generation)
        for effect, (worker, generation) in zip(mine, owners, strict=False)
    }
    return replace(evidence, effects=[written.get(id(effect), effect) for effect in evidence.effects])


def with_two_owners_at_once(evidence: Evidence) -> Evidence:
    return owned(evidence, ("worker-1", 1), ("worker-2", 1))


def with_a_late_write_of_an_earlier_owner(evidence: Evidence) -> Evidence:
    return owned(evidence, ("worker-1", 1), ("worker-2", 2), ("worker-1", 1))


def with_an_acknowledged_commit_that_is_gone(evidence: Evidence) -> Evidence:
    log = WorkerLog(name="worker-1", recorded=Counter({("order-0001", "refund-twice"): 1}))
    return replace(evidence, logs=[log], scenario=replace(evidence.scenario, slow=frozenset()))


def with_a_killed_worker_that_held_nothing(evidence: Evidence) -> Evidence:
    log = log_of(evidence, killed=True)
    return replace(evidence, logs=[log], scenario=replace(evidence.scenario, slow=frozenset()))


def with_a_long_call_made_twice(evidence: Evidence) -> Evidence:
    (slow,) = evidence.scenario.slow
    return replace(evidence, logs=[log_of(evidence, began=Counter({slow: 2}))])


def test_everything_holds_before_anything_is_planted(evidence: Evidence) -> None:
    assert broken(evidence) == set()


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (without_an_effect, {"nothing was lost:", "the books balance"}),
        (with_an_effect_twice, {"nothing was done", "the books balance"}),
        (with_an_event_twice, {"nothing was done", "each event was"}),
        (without_a_flow, {"every flow ended", "nothing was lost:", "each event was"}),
        (with_a_flow_that_never_ended, {"every flow ended"}),
        (with_a_flow_that_nobody_started, {"every flow ended", "nothing was lost:"}),
        (without_a_step_result, {"every flow ended", "nothing was lost:", "every history is"}),
        (with_a_wrong_amount, {"the books balance"}),
        (with_a_gap_in_a_history, {"every history is"}),
        (with_a_history_without_a_beginning, {"every history is"}),
        (with_a_history_that_goes_on_after_the_end, {"every history is"}),
        (with_a_timer_left, {"nothing is left"}),
        (with_an_event_that_came_too_late, {"each event was"}),
        (with_an_acknowledged_commit_that_is_gone, {"what a worker"}),
        (with_a_killed_worker_that_held_nothing, {"what the killed"}),
        (with_a_long_call_made_twice, {"a living worker"}),
        (with_an_idle_worker, {"every worker really"}),
        (with_two_owners_at_once, {"in each partition"}),
        (with_a_late_write_of_an_earlier_owner, {"in each partition"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_planted_defect_is_found(evidence: Evidence, plant: Callable[[Evidence], Evidence], found: set[str]) -> None:
    assert broken(plant(evidence)) == found


def test_a_flow_that_the_killed_worker_held_and_nobody_finished_is_found(evidence: Evidence) -> None:
    stuck = with_a_flow_that_never_ended(evidence)
    key = find(evidence, "order").business_key or ""
    log = log_of(evidence, killed=True, in_hand=frozenset({("flow", key, "charge-payment")}))
    stuck = replace(stuck, logs=[log], scenario=replace(evidence.scenario, slow=frozenset()))

    verdict = next(item for item in check_all(stuck) if item.name.startswith("what the killed worker"))

    assert verdict.problems == (f"{key} is stuck: the killed worker held it (flow, charge-payment)",)


def test_a_partition_that_changes_its_owner_is_no_defect(evidence: Evidence) -> None:
    assert broken(owned(evidence, ("worker-1", 1), ("worker-2", 2), ("worker-2", 2))) == set()


def test_whoever_joined_when_little_was_left_need_not_have_worked(evidence: Evidence) -> None:
    logs = [log_of(evidence), WorkerLog(name="worker-4", work_left=29)]
    late = replace(evidence, logs=logs, scenario=replace(evidence.scenario, slow=frozenset()))
    assert broken(late) == set()


def test_a_worker_that_was_killed_in_its_first_call_has_worked(evidence: Evidence) -> None:
    key = find(evidence, "order").business_key or ""
    held = frozenset({("flow", key, "charge-payment")})
    logs = [log_of(evidence), WorkerLog(name="worker-2", killed=True, work_left=30, in_hand=held)]
    assert broken(replace(evidence, logs=logs, scenario=replace(evidence.scenario, slow=frozenset()))) == set()
