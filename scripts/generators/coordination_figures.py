"""The page of the figures of coordination, with its plot, from what was measured last.

`python -m benchmarks.coordination --output benchmarks/coordination/figures.json` measures anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.coordination.hand_overs import CLAIMS
from benchmarks.coordination.report import (
    claims_table,
    lateness_table,
    machine_line,
    moves_table,
    take_over_bound,
    take_over_table,
    wake_up_ways,
    wake_ups_table,
)
from benchmarks.registry import OURS
from scripts.bars import ROW, draw_bars
from scripts.drawing import FAINT, Drawing

_FIGURES = Path(__file__).resolve().parents[2] / "benchmarks" / "coordination" / "figures.json"

_PAGE = """\
# Figures of coordination

What it takes to share work between workers: how late timers are, what a claim costs, how soon an event is handled, how
fast a dead worker's share is taken over, and how much moves when workers come and go. `make bench` prints these tables
as its third part; `python -m benchmarks.coordination --output benchmarks/coordination/figures.json` measures what
stands here anew, in a few minutes, or with `--quick` in one.

![Timers claimed, ways from a commit to its handler, and take-overs](../assets/coordination-figures.svg)

## Timers

{lateness}

From the due time to the beginning of the handler, which writes a row in the transaction that acknowledges the timer.
The workers are processes of their own; they share the cores with the server.

## Claims

{claims}

One task claims so many due timers with one statement and completes them with another. The ratio is to the same two
statements sent by hand on a held connection of asyncpg.

## From the commit to the handler

{wake_ups}

A delivery: a flow waits for an event, which is published. A timer: it is scheduled for now. An event of the feed: a
step completes. Then a worker or a feed consumer of the same process begins to handle it. With hints whoever committed
notifies after the commit; without them the other one finds it when it looks, as often as is said. The bare way is
`LISTEN`, `NOTIFY` and a claim, by hand.

## Take-over

{take_over}

From `kill -9` until the two others own every partition, with a heartbeat each {heartbeat:g} s and a worker that is
taken for dead after {stale:g} s. The bound is the sum of both.

## Moves

{moves}

Partitions that change their owner when a worker joins or leaves, of 256. The minimum is what any fair division needs;
a test asserts that it is never exceeded.

## The machine

{machine}{rough}
"""


def generate() -> dict[str, str]:
    """Return the page and the plot."""
    document = json.loads(_FIGURES.read_text(encoding="utf-8"))
    take_over = document["take_over"]
    page = _PAGE.format(
        lateness="\n".join(lateness_table(document)),
        claims="\n".join(claims_table(document)),
        wake_ups="\n".join(wake_ups_table(document)),
        take_over="\n".join(take_over_table(document)),
        moves="\n".join(moves_table(document)),
        heartbeat=take_over["heartbeat_interval"],
        stale=take_over["stale_after"],
        machine=machine_line(document),
        rough=" A quick run, beside other work: rough figures." if document["run"]["quick"] else "",
    )
    return {"docs/explanation/coordination-figures.md": page, "docs/assets/coordination-figures.svg": _plot(document)}


def _plot(document: Mapping[str, Any]) -> str:
    claims = {
        f"batches of {one['name'].rpartition('(')[2].rstrip(')')}": one["contenders"][OURS]["per_second"] / 1000
        for one in document["hand_overs"]
        if one["name"].startswith(CLAIMS)
    }
    ways = {
        f"{what}: {way}": figures["p50_ms"]
        for what, by_way in wake_up_ways(document).items()
        for way, figures in by_way.items()
    }
    rounds = {f"round {number}": one for number, one in enumerate(document["take_over"]["seconds"], start=1)}
    panels = [
        ("Timers claimed and completed, thousands a second", claims),
        ("From the commit to the handler, median in ms", ways),
        ("Take-over in seconds", rounds | {"at most": take_over_bound(document)}),
    ]
    left, width, head = 320, 360, 44
    height = 20 + sum(head + ROW * len(values) for _, values in panels)
    drawing = Drawing(left + width + 90, height, "Timers claimed, ways from a commit to its handler, and take-overs")
    top = 10.0
    for title, values in panels:
        drawing.text(16, top + 20, title, colour=FAINT, weight="bold")
        draw_bars(
            drawing,
            values,
            top=top + head - 8,
            left=left,
            width=width,
            highlighted={f"{what}: hints" for what in wake_up_ways(document)},
        )
        top += head + ROW * len(values)
    return drawing.svg()
