"""The state machine of flow instances, drawn and listed: each transition is tried in each status."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from cascade_state.errors import InvalidTransition
from cascade_state.model.flow_definitions import FlowDefinition, StepDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import TERMINAL_STATUSES, TRANSITIONS, FlowStatus
from scripts.drawing import ACCENT, FAINT, FILL, GROUND, INK, LINE, Drawing

TRIED: dict[str, Callable[[FlowInstance], FlowInstance]] = {
    "start": lambda flow: flow.start(),
    "complete_step": lambda flow: flow.complete_step("step"),
    "fail_step": lambda flow: flow.fail_step("step", "error"),
    "suspend_for_timer": lambda flow: flow.suspend_for_timer("step", after=timedelta(1)),
    "suspend_for_event": lambda flow: flow.suspend_for_event("step", "key"),
    "resume": lambda flow: flow.resume(),
    "complete": lambda flow: flow.complete(),
    "fail": lambda flow: flow.fail("error"),
    "cancel": lambda flow: flow.cancel(),
}

WIDTH, HEIGHT = 960, 470
PLACES = {
    FlowStatus.INITIALIZING: (120, 180),
    FlowStatus.RUNNING: (390, 180),
    FlowStatus.WAITING_FOR_EVENT: (780, 70),
    FlowStatus.WAITING_FOR_TIMER: (780, 280),
    FlowStatus.COMPLETED: (390, 420),
    FlowStatus.FAILED: (690, 420),
    FlowStatus.CANCELLED: (870, 420),
}
BOX_HEIGHT = 52
WIDE = {FlowStatus.RUNNING: 210, FlowStatus.WAITING_FOR_EVENT: 270, FlowStatus.WAITING_FOR_TIMER: 270}
APART = 13  # half the distance between the ways there and back

Point = tuple[float, float]
Moves = dict[tuple[FlowStatus, FlowStatus], list[str]]


def _moves() -> Moves:
    """Return the transitions from each status to each, found by trying."""
    if set(TRIED) != set(TRANSITIONS):
        raise AssertionError("a transition is not tried here")
    definition = FlowDefinition(flow_id="flow", steps=(StepDefinition(step_id="step", component_type="type"),))
    fresh = FlowInstance.create(replace(definition, version=1))
    moves: Moves = defaultdict(list)
    for status in FlowStatus:
        flow = replace(fresh, status=status)
        if status is FlowStatus.WAITING_FOR_EVENT:
            flow = replace(flow, waits={"other": "key"})
        for name, transition in TRIED.items():
            try:
                moves[status, transition(flow).status].append(name)
            except InvalidTransition:
                continue
    return moves


def _size(status: FlowStatus) -> Point:
    return WIDE.get(status, 150), BOX_HEIGHT


def _border(inside: Point, status: FlowStatus, towards: Point) -> Point:
    """Return where the way from a point inside a status's box leaves the box."""
    (x, y), (centre_x, centre_y), (width, height) = inside, PLACES[status], _size(status)
    dx, dy = towards[0] - x, towards[1] - y
    to_side = math.inf if dx == 0 else (centre_x + math.copysign(width / 2, dx) - x) / dx
    to_edge = math.inf if dy == 0 else (centre_y + math.copysign(height / 2, dy) - y) / dy
    part = min(to_side, to_edge)
    return x + part * dx, y + part * dy


def _edge(drawing: Drawing, source: FlowStatus, target: FlowStatus, names: list[str], *, both_ways: bool) -> None:
    (x1, y1), (x2, y2) = PLACES[source], PLACES[target]
    length = math.hypot(x2 - x1, y2 - y1)
    apart = APART if both_ways else 0
    dx, dy = (y2 - y1) / length * apart, -(x2 - x1) / length * apart
    first, last = (x1 + dx, y1 + dy), (x2 + dx, y2 + dy)
    start, end = _border(first, source, last), _border(last, target, first)
    drawing.path(f"M{start[0]:.1f},{start[1]:.1f} L{end[0]:.1f},{end[1]:.1f}", colour=FAINT, arrow=True)
    # The labels of the ways there and back stand one after the other, not one over the other.
    part = 0.36 if both_ways else 0.5
    x, y = start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])
    lift = -8 if y1 == y2 else 4
    drawing.text(x, y + lift, ", ".join(names), size=12, anchor="middle", halo=True)


def _picture(moves: Moves) -> str:
    drawing = Drawing(WIDTH, HEIGHT, "States of a flow instance")
    to_end = (FlowStatus.FAILED, FlowStatus.CANCELLED)
    for (source, target), names in moves.items():
        if target not in to_end and source is not target:
            _edge(drawing, source, target, names, both_ways=(target, source) in moves)
    for target in to_end:
        _from_anywhere(drawing, target, {source: names for (source, end), names in moves.items() if end is target})
    for status, (x, y) in PLACES.items():
        (width, height), ended, staying = _size(status), status in TERMINAL_STATUSES, moves.get((status, status))
        fill, stroke = (GROUND, INK) if ended else (FILL, LINE)
        drawing.box(x - width / 2, y - height / 2, width, height, fill=fill, stroke=stroke)
        colour = INK if ended else ACCENT
        drawing.text(x, y if staying else y + 5, status.value, anchor="middle", weight="600", colour=colour)
        if staying:
            drawing.text(x, y + 17, "↻ " + ", ".join(staying), size=11, anchor="middle")
    return drawing.svg()


def _from_anywhere(drawing: Drawing, target: FlowStatus, sources: dict[FlowStatus, list[str]]) -> None:
    """Draw the way that leads to `target` from every status that has not ended."""
    (names,) = {", ".join(names) for names in sources.values()}
    if set(sources) != set(FlowStatus) - TERMINAL_STATUSES:
        raise AssertionError(f"{names} is not possible from every status that has not ended")
    x, y = PLACES[target]
    drawing.path(f"M{x},{y - 66} L{x},{y - BOX_HEIGHT / 2}", colour=FAINT, arrow=True)
    drawing.text(x + 8, y - 44, names, size=12)
    left, right = PLACES[FlowStatus.FAILED][0], PLACES[FlowStatus.CANCELLED][0]
    drawing.line([(left, y - 66), (right, y - 66)], colour=FAINT)
    drawing.text(
        (left + right) / 2, y - 74, "from every status that has not ended", size=12, anchor="middle", colour=FAINT
    )


def _table(moves: Moves) -> str:
    live = [status for status in FlowStatus if status not in TERMINAL_STATUSES]
    if any(source not in live for source, _ in moves):
        raise AssertionError("a flow that has ended is not final")
    lines = ["| | " + " | ".join(f"from {status.value}" for status in live) + " |", "|---" * (len(live) + 1) + "|"]
    for name in TRIED:
        found = {source: target for (source, target), names in moves.items() if name in names}
        cells = (found[source].value if source in found else "–" for source in live)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGE = """\
# States of a flow

![The states of a flow instance and the transitions between them](../assets/states.svg)

Picture and table are made by trying each transition in each status. A dash means `InvalidTransition`, and nothing has
changed.

{table}

- Several steps may wait at once. The status is WAITING_FOR_EVENT if any of them waits for an event, else
  WAITING_FOR_TIMER.
- `resume(step_id)` clears what this step waited for, `resume()` what any step waited for. While other steps still wait
  the flow is RUNNING, and their `resume` is allowed in RUNNING too.
- COMPLETED, FAILED and CANCELLED are final. In the commit that ends a flow, its timers and waits go.
- A transition changes a value; `store.advance` stores it. What each transition records in the history stands in
  [values](values.md).
"""


def generate() -> dict[str, str]:
    """Return the picture and the page around it."""
    moves = _moves()
    return {
        "docs/assets/states.svg": _picture(moves),
        "docs/reference/states.md": PAGE.format(table=_table(moves)),
    }
