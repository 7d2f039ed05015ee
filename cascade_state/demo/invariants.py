"""What must be true at the end, whatever happened in between: plan, store, books and workers' reports must agree.

Each invariant is a function from the evidence to the problems it found; no problem means that it holds. Nothing
here asks the store, so a test can plant a defect in the evidence and see it found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from cascade_state import FlowEvent, FlowInstance, FlowStatus, Statistics, StepStatus
from cascade_state.demo.effects import Effect
from cascade_state.demo.scenario import Ending, PlannedFlow, Scenario

__all__ = ["Evidence", "Verdict", "WorkerLog", "check_all", "done_steps", "ending_of"]

_SURELY_SOME_WORK = 30  # flows

_ENDINGS = {
    FlowStatus.COMPLETED: "flow_instance.completed",
    FlowStatus.FAILED: "flow_instance.failed",
    FlowStatus.CANCELLED: "flow_instance.cancelled",
}


@dataclass(frozen=True, kw_only=True)
class WorkerLog:
    """What one worker process told of itself. Pairs are (business key, step id).

    `work_left` is how many flows had not ended when it got its first share. `recorded` counts effects whose commit had
    succeeded, `lost` claims that it found lost (a machine that stalls for longer than a lease loses it, rightly);
    `in_hand` is what it had begun and not finished when it ended, with the kind of claim.
    """

    name: str
    killed: bool = False
    work_left: int = 0
    began: Counter[tuple[str, str]] = field(default_factory=Counter)
    recorded: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    in_hand: frozenset[tuple[str, str, str]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that is known at the end. `flows` and `history` come from the store, `effects` from the books."""

    scenario: Scenario
    flows: Sequence[FlowInstance]
    history: Mapping[UUID, Sequence[FlowEvent]]
    effects: Sequence[Effect]
    statistics: Statistics
    logs: Sequence[WorkerLog] = ()

    def pairs(self) -> Iterator[tuple[PlannedFlow, FlowInstance]]:
        """Yields each planned flow that is in the store with what it became."""
        stored = {(flow.flow_id, flow.business_key): flow for flow in self.flows}
        for plan in self.scenario.all_flows():
            flow = stored.get((plan.flow_id, plan.business_key))
            if flow is not None:
                yield plan, flow


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether an invariant holds; `detail` says on how much evidence."""

    name: str
    detail: str
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def check_all(evidence: Evidence) -> list[Verdict]:
    """Returns the verdict on each invariant."""
    verdicts = []
    for name, check in _INVARIANTS.items():
        detail, problems = check(evidence)
        verdicts.append(Verdict(name=name, detail=detail, problems=tuple(problems)))
    return verdicts


def done_steps(flow: FlowInstance) -> frozenset[str]:
    """Returns the completed steps that did something; those whose condition was false did not."""
    return frozenset(step for step in flow.completed_steps if not flow.step_output(step, "skipped", False))


def ending_of(plan: PlannedFlow, flow: FlowInstance) -> Ending | None:
    """Returns the planned ending that the flow came to, or None."""
    for ending in plan.endings:
        if (flow.status, flow.failed_steps, done_steps(flow)) == (ending.status, ending.failed, ending.done):
            return ending
    return None


def _flows_ended_as_planned(evidence: Evidence) -> tuple[str, list[str]]:
    planned = {(plan.flow_id, plan.business_key) for plan in evidence.scenario.all_flows()}
    stored = Counter((flow.flow_id, flow.business_key or "") for flow in evidence.flows)
    problems = [f"{key} is missing" for _, key in sorted(planned - stored.keys())]
    problems += [f"{key} was never started" for _, key in sorted(stored.keys() - planned)]
    problems += [f"{key} exists {count} times" for (_, key), count in sorted(stored.items()) if count > 1]
    for plan, flow in evidence.pairs():
        if ending_of(plan, flow) is None:
            done = ", ".join(sorted(done_steps(flow) ^ plan.endings[0].done)[:3])
            problems.append(f"{plan.business_key} is {flow.status.value}, differs in steps: {done or 'none'}")
    return f"{len(planned)} flows", problems


def _nothing_done_twice(evidence: Evidence) -> tuple[str, list[str]]:
    done = Counter((item.business_key, item.step_id) for item in evidence.effects if item.what == "done")
    received = Counter(
        (item.business_key, item.step_id, item.event_id) for item in evidence.effects if item.event_id is not None
    )
    problems = [f"{key} did {step} {count} times" for (key, step), count in done.items() if count > 1]
    problems += [
        f"{key} received {event_id} {count} times" for (key, _, event_id), count in received.items() if count > 1
    ]
    return f"{len(evidence.effects)} effects", problems


def _nothing_lost(evidence: Evidence) -> tuple[str, list[str]]:
    in_books = {(item.business_key, item.step_id) for item in evidence.effects if item.what == "done"}
    in_store = {
        (flow.business_key or "", result.step_id)
        for flow in evidence.flows
        for result in flow.step_results.values()
        if result.status is StepStatus.COMPLETED and result.step_id in done_steps(flow)
    }
    problems = [f"{key} completed {step}, but its effect is lost" for key, step in sorted(in_store - in_books)]
    problems += [f"{key} did {step}, but its result is lost" for key, step in sorted(in_books - in_store)]
    return f"{len(in_store)} steps", problems


def _reported_is_stored(evidence: Evidence) -> tuple[str, list[str]]:
    stored = Counter((item.worker, item.business_key, item.step_id) for item in evidence.effects)
    problems, total = [], 0
    for log in evidence.logs:
        total += log.recorded.total()
        problems += [
            f"{log.name} was told that {step} of {key} is committed, but it is not there"
            for (key, step), count in log.recorded.items()
            if count > stored[log.name, key, step]
        ]
    return f"{total} commits acknowledged", problems


def _events_received_once(evidence: Evidence) -> tuple[str, list[str]]:
    received = Counter(item.event_id for item in evidence.effects if item.event_id is not None)
    expected = {event_id for plan in evidence.scenario.all_flows() for event_id in plan.received}
    possible = {
        event.event_id
        for plan in evidence.scenario.all_flows()
        for event in plan.events
        if event.event_id in expected or len(plan.endings) > 1
    }
    results = {str(flow.flow_instance_id) for flow in evidence.flows if flow.parent_id is not None}
    must = expected | results
    problems = [f"event {event_id} reached nobody" for event_id in sorted(must - received.keys())]
    problems += [
        f"event {event_id} came too late, yet was received" for event_id in sorted(received.keys() - must - possible)
    ]
    problems += [f"event {event_id} was received {count} times" for event_id, count in received.items() if count > 1]
    return f"{len(received)} events", problems


def _books_balance(evidence: Evidence) -> tuple[str, list[str]]:
    booked: Counter[str] = Counter()
    for item in evidence.effects:
        booked[item.business_key] += item.amount
    problems, total = [], 0
    for plan, flow in evidence.pairs():
        ending = ending_of(plan, flow)
        if ending is None:
            continue  # told by another invariant
        total += ending.amount
        if booked[plan.business_key] != ending.amount:
            problems.append(f"{plan.business_key} booked {booked[plan.business_key]} instead of {ending.amount}")
    return f"{total:,} booked", problems


def _history_is_whole(evidence: Evidence) -> tuple[str, list[str]]:
    problems = []
    for flow in evidence.flows:
        events = evidence.history.get(flow.flow_instance_id, ())
        if [event.sequence for event in events] != list(range(1, len(events) + 1)):
            problems.append(f"the history of {flow.business_key} has a gap or is out of order")
        if [event.event_type for event in events].count("flow_instance.created") != 1:
            problems.append(f"the history of {flow.business_key} does not tell of one beginning")
        endings = [event.event_type for event in events if event.event_type in _ENDINGS.values()]
        if flow.is_terminal and endings != [_ENDINGS[flow.status]]:
            problems.append(f"the history of {flow.business_key} tells of {len(endings)} endings")
        told = Counter(event.payload["step_id"] for event in events if event.event_type == "step.completed")
        if told != Counter(flow.completed_steps):
            problems.append(f"the history of {flow.business_key} differs from its step results")
    return f"{sum(map(len, evidence.history.values()))} history events", problems


def _nothing_left_over(evidence: Evidence) -> tuple[str, list[str]]:
    figures = evidence.statistics
    left = {
        "timers": figures.timers_pending,
        "dead timers": figures.timers_dead,
        "deliveries": figures.deliveries_pending,
        "dead letters": figures.dead_letters,
        "waits": sum(len(flow.waits) + len(flow.pending_timers) for flow in evidence.flows),
    }
    return "timers, waits, deliveries", [f"{count} {name} left" for name, count in left.items() if count]


def _killed_work_was_finished(evidence: Evidence) -> tuple[str, list[str]]:
    flows = {flow.business_key: flow for flow in evidence.flows}
    killed = [log for log in evidence.logs if log.killed]
    problems, total = [], 0
    for log in killed:
        total += len(log.in_hand)
        if not log.in_hand:
            problems.append(f"{log.name} had nothing in hand when it was killed")
        for claim, key, step in sorted(log.in_hand):
            flow = flows.get(key)
            if flow is None or not flow.is_terminal:
                problems.append(f"{key} is stuck: the killed worker held it ({claim}, {step})")
    return f"{total} claims", problems


def _leases_were_kept(evidence: Evidence) -> tuple[str, list[str]]:
    problems, alone = [], 0
    for key, step in sorted(evidence.scenario.slow):
        began = sum(log.began[key, step] for log in evidence.logs)
        killed = sum(
            (in_hand_key, in_hand_step) == (key, step)
            for log in evidence.logs
            if log.killed
            for _, in_hand_key, in_hand_step in log.in_hand
        )
        alone += not killed
        lost = sum(log.lost[key, step] for log in evidence.logs)
        # A worker killed between a commit and its report seems to have the step in hand still.
        if evidence.logs and not 1 <= began <= 1 + killed + lost:
            problems.append(f"{step} of {key} was called {began} times, {killed} of them by a killed worker")
    return f"{alone} calls longer than their lease", problems


def _every_worker_worked(evidence: Evidence) -> tuple[str, list[str]]:
    """Whoever joins when little is left may get nothing; with a third of thirty flows, the chance is one in 200,000.

    A worker that was killed in the middle of its first call has worked, and could record nothing.
    """
    expected = [log for log in evidence.logs if log.work_left >= _SURELY_SOME_WORK]
    worked = {log.name for log in expected if log.recorded.total() or (log.killed and log.in_hand)}
    problems = [f"{log.name} recorded nothing" for log in expected if log.name not in worked]
    return f"{len(expected)} workers", problems


def _one_owner_at_a_time(evidence: Evidence) -> tuple[str, list[str]]:
    """Effects are in the order of their recording, so in each partition generations must only grow."""
    partitions = {flow.business_key: flow.partition_id for flow in evidence.flows}
    owners: dict[tuple[int, int], str] = {}
    latest: dict[int, int] = {}
    problems = []
    for item in evidence.effects:
        partition = partitions.get(item.business_key)
        if partition is None or item.generation is None:
            continue
        owner = owners.setdefault((partition, item.generation), item.worker)
        if owner != item.worker:
            problems.append(f"{owner} and {item.worker} both wrote in generation {item.generation} of {partition}")
        if item.generation < latest.get(partition, 0):
            problems.append(f"{item.worker} wrote in partition {partition} after it had another owner")
        latest[partition] = max(item.generation, latest.get(partition, 0))
    return f"{len(owners)} shares in {len(latest)} partitions", problems


_INVARIANTS: dict[str, Callable[[Evidence], tuple[str, list[str]]]] = {
    "every flow ended as the scenario predicts": _flows_ended_as_planned,
    "nothing was done twice": _nothing_done_twice,
    "nothing was lost: each step has its effect, each effect its step": _nothing_lost,
    "what a worker was told is committed is there": _reported_is_stored,
    "each event was received once, late ones and duplicates never": _events_received_once,
    "the books balance": _books_balance,
    "every history is whole: no gap, one beginning, one end": _history_is_whole,
    "nothing is left over": _nothing_left_over,
    "every worker really worked": _every_worker_worked,
    "in each partition one worker at a time wrote": _one_owner_at_a_time,
    "what the killed worker held was finished by the others": _killed_work_was_finished,
    "a living worker kept its leases: long calls were made once": _leases_were_kept,
}
