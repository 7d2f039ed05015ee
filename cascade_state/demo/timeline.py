"""The history of one flow, with who did each step and where a worker was killed."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from cascade_state import FlowEvent, FlowInstance, JsonObject
from cascade_state.demo.run import Run
from cascade_state.demo.text_table import table

__all__ = ["timeline_lines", "timeline_of"]

_LONGEST = 40  # events; more cannot be taken in at a glance
_DETAILS = ("step_id", "correlation_key", "attempt", "error")


def timeline_of(run: Run) -> JsonObject:
    """Returns the timeline of the most eventful flow, at best one that the killed worker held."""
    flow = _most_interesting(run)
    if flow is None:
        return {"flow": None, "story": None, "events": []}
    stories = {plan.business_key: plan.story for plan in run.scenario.all_flows()}
    workers = {
        effect.step_id: effect.worker for effect in run.evidence.effects if effect.business_key == flow.business_key
    }
    told = run.evidence.history.get(flow.flow_instance_id, ())
    events = [_entry(event, told[0].recorded_at, workers) for event in told]
    if run.kill is not None and flow.business_key in run.kill.flows:
        number = sum(event.recorded_at < run.kill.killed_at for event in told)
        seconds = _seconds(run.kill.killed_at, told[0].recorded_at)
        events.insert(number, {"seconds": seconds, "event_type": "killed", "worker": run.kill.worker})
    return {"flow": flow.business_key, "story": stories.get(flow.business_key or ""), "events": events}


def timeline_lines(timeline: JsonObject) -> list[str]:
    """Returns the timeline as lines for people."""
    heading = f"  {timeline['flow']} ({timeline['story']})"
    return [heading, *table([_row(event) for event in timeline["events"]], right=(0, 1))]


def _most_interesting(run: Run) -> FlowInstance | None:
    held = set() if run.kill is None else run.kill.flows

    def interest(flow: FlowInstance) -> tuple[bool, bool, int, int]:
        events = run.evidence.history.get(flow.flow_instance_id, ())
        kinds = Counter(event.event_type for event in events)
        return 0 < len(events) <= _LONGEST, flow.business_key in held, len(kinds), len(events)

    return max(run.evidence.flows, key=interest, default=None)


def _entry(event: FlowEvent, begun_at: datetime, workers: dict[str, str]) -> JsonObject:
    payload = event.payload or {}
    entry = {
        "sequence": event.sequence,
        "seconds": _seconds(event.recorded_at, begun_at),
        "event_type": event.event_type,
        **{name: payload[name] for name in _DETAILS if payload.get(name) is not None},
    }
    if event.event_type == "step.completed":
        worker = workers.get(payload["step_id"])
        entry |= {"skipped": True} if worker is None else {"worker": worker}
    return entry


def _row(event: JsonObject) -> tuple[str, ...]:
    seconds = f"+{event['seconds']:.3f} s"
    if event["event_type"] == "killed":
        return "", seconds, f"{event['worker']} is killed", "and had this flow in hand"
    details = [event[name] for name in ("step_id", "correlation_key") if name in event]
    if "error" in event:
        details.append(f"attempt {event['attempt']}: {event['error']}")
    if "worker" in event:
        details.append(f"by {event['worker']}")
    if "skipped" in event:
        details.append("(its condition is false)")
    return str(event["sequence"]), seconds, event["event_type"], "  ".join(details)


def _seconds(instant: datetime, begun_at: datetime) -> float:
    return round((instant - begun_at).total_seconds(), 3)
