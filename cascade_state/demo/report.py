"""What a run is told as: one JSON document, and the same for people."""

from __future__ import annotations

from collections import Counter, defaultdict

from cascade_state import JsonObject
from cascade_state.demo.invariants import Evidence, ending_of
from cascade_state.demo.run import Run
from cascade_state.demo.scenario import Moment
from cascade_state.demo.text_table import table
from cascade_state.demo.timeline import timeline_lines, timeline_of

__all__ = ["document_of", "lines_of"]

_SHOWN_PROBLEMS = 5


def document_of(run: Run) -> JsonObject:
    """Returns the run as a JSON document."""
    return {
        "ok": run.is_good,
        "seed": run.options.seed,
        "server_version": run.server_version,
        "seconds": {name: round(value, 2) for name, value in run.seconds.items()},
        "flows": {"started": len(run.scenario.flows), "all": sum(1 for _ in run.scenario.all_flows())},
        "outcomes": _outcomes(run.evidence),
        "counts": _counts(run),
        "kill": _kill(run),
        "workers": _workers(run.evidence),
        "invariants": [
            {
                "name": verdict.name,
                "holds": verdict.holds,
                "detail": verdict.detail,
                "problems": list(verdict.problems),
            }
            for verdict in run.verdicts
        ],
        "timeline": timeline_of(run),
    }


def lines_of(document: JsonObject) -> list[str]:
    """Returns the document as lines for people."""
    lines = ["", "Outcomes", *_outcome_lines(document["outcomes"])]
    lines += ["", "What happened", *_count_lines(document)]
    lines += ["", "Timeline of one flow"]
    lines += timeline_lines(document["timeline"])
    lines += ["", "Invariants", *_invariant_lines(document["invariants"])]
    seconds = document["seconds"]
    broken = sum(not item["holds"] for item in document["invariants"])
    verdict = "All invariants hold." if document["ok"] else f"{broken} invariant(s) broke."
    lines += ["", f"{verdict} {seconds['total']:.1f} s in all, {seconds['work']:.1f} s of them work."]
    return lines


# The document


def _outcomes(evidence: Evidence) -> list[JsonObject]:
    flows: Counter[tuple[str, str]] = Counter((plan.flow_id, plan.story) for plan in evidence.scenario.all_flows())
    statuses: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    as_predicted: Counter[tuple[str, str]] = Counter()
    for plan, flow in evidence.pairs():
        statuses[plan.flow_id, plan.story][flow.status.value] += 1
        as_predicted[plan.flow_id, plan.story] += ending_of(plan, flow) is not None
    return [
        {
            "flow_id": flow_id,
            "story": story,
            "flows": count,
            "as_predicted": as_predicted[flow_id, story],
            "statuses": dict(statuses[flow_id, story]),
        }
        for (flow_id, story), count in sorted(flows.items())
    ]


def _counts(run: Run) -> JsonObject:
    published = run.world.published
    told = Counter(event.event_type for events in run.evidence.history.values() for event in events)
    received = [item for item in run.evidence.effects if item.event_id is not None]
    not_arrived = Counter(
        flow.flow_id
        for flow in run.evidence.flows
        for step_id in ("pick-up", "verdict")
        if flow.step_output(step_id, "arrived") is False
    )
    return {
        "steps_done": sum(item.what == "done" for item in run.evidence.effects),
        "history_events": sum(told.values()),
        "events_before_the_flow": published[Moment.BEFORE],
        "events_after_the_wait": published[Moment.WAITING] + published[Moment.REMINDED],
        "events_at_the_deadline": published[Moment.DEADLINE],
        "events_after_the_end": published[Moment.ENDED],
        "events_duplicate": run.world.duplicates,
        "events_received": len(received),
        "attempts_failed": told["demo.attempt_failed"],
        "steps_failed_for_good": told["step.failed"],
        "deadlines_by_timer": not_arrived["order"],
        "deadlines_by_expiry": not_arrived["review"],
        "reminders": sum(flow.step_output("remind", "reminded", False) for flow in run.evidence.flows),
        "children_started": sum(flow.parent_id is not None for flow in run.evidence.flows),
    }


def _kill(run: Run) -> JsonObject | None:
    kill = run.kill
    if kill is None:
        return None
    seconds = kill.recovered_seconds
    return {
        "worker": kill.worker,
        "process_id": kill.process_id,
        "after_seconds": round(kill.after_seconds, 2),
        "held": [{"claim": claim, "flow": key, "step": step} for claim, key, step in kill.held],
        "begun_again": [{"flow": key, "step": step} for key, step in kill.again],
        "recovered_seconds": None if seconds is None else round(seconds, 2),
    }


def _workers(evidence: Evidence) -> list[JsonObject]:
    done = Counter(effect.worker for effect in evidence.effects)
    return [{"worker": log.name, "killed": log.killed, "effects": done[log.name]} for log in evidence.logs]


# For people


def _outcome_lines(outcomes: list[JsonObject]) -> list[str]:
    rows = [("flow", "story", "flows", "ended as", "as predicted")]
    for item in outcomes:
        statuses = ", ".join(f"{status} {count}" for status, count in sorted(item["statuses"].items()))
        good = item["as_predicted"] == item["flows"]
        rows.append(
            (
                item["flow_id"],
                item["story"],
                str(item["flows"]),
                statuses,
                f"{_mark(good)} {item['as_predicted']}",
            )
        )
    return table(rows, right=(2,))


def _count_lines(document: JsonObject) -> list[str]:
    counts, kill = document["counts"], document["kill"]
    lines = [
        f"  {document['flows']['all']} flows ({counts['children_started']} of them children) did "
        f"{counts['steps_done']:,} steps and left {counts['history_events']:,} history events",
        f"  events published: {counts['events_before_the_flow']} before their flow existed, "
        f"{counts['events_after_the_wait']} after the wait, {counts['events_at_the_deadline']} at the deadline, "
        f"{counts['events_after_the_end']} after the end; {counts['events_duplicate']} of them duplicates",
        f"  {counts['attempts_failed']} attempts failed and were repeated, {counts['steps_failed_for_good']} steps "
        "failed for good",
        f"  deadlines that passed: {counts['deadlines_by_timer']} told by a timer, {counts['deadlines_by_expiry']} by "
        f"an expired wait; {counts['reminders']} reminders sent",
    ]
    done = ", ".join(f"{item['worker']} {item['effects']:,}" for item in document["workers"])
    lines.append(f"  effects recorded by {done}")
    if kill is None:
        return [*lines, "  no worker was killed"]
    held = sorted({item["flow"] for item in kill["held"]})
    shown = ", ".join(held[:6]) + (f" and {len(held) - 6} more" if len(held) > 6 else "")
    lines.append(
        f"  {kill['worker']} was killed after {kill['after_seconds']:.1f} s; it held {len(held)} flows: {shown}"
    )
    if kill["recovered_seconds"] is not None:
        lines.append(
            f"  the others began {len(kill['begun_again'])} of those steps again, the last one "
            f"{kill['recovered_seconds']:.1f} s after the kill"
        )
    return lines


def _invariant_lines(invariants: list[JsonObject]) -> list[str]:
    lines = []
    for item in invariants:
        lines.append(f"  {_mark(item['holds'])} {item['name']} ({item['detail']})")
        problems = item["problems"]
        lines += [f"      {problem}" for problem in problems[:_SHOWN_PROBLEMS]]
        if len(problems) > _SHOWN_PROBLEMS:
            lines.append(f"      … and {len(problems) - _SHOWN_PROBLEMS} more")
    return lines


def _mark(good: bool) -> str:
    return "✓" if good else "✗"
