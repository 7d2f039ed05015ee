"""The page of the figures of other libraries, with its plot, from what was measured last.

`make bench-peers BENCH_ARGS="--output benchmarks/peers/figures.json"` measures anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.report import FLOOR, OUR_WORKER, OURS, ahead, groups, sections
from scripts.bars import ROW, draw_bars
from scripts.drawing import FAINT, Drawing

_FIGURES = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "figures.json"
_HEAD = 34
_ROUGH = "A quick run, one round with a tenth of the items, on a machine that had other work: rough figures."

_PAGE = """\
# Figures of other libraries

The same work done by others and by this library, in one run: on one server with one configuration, durable (a commit
is on disk when it is answered), the same document of 400 bytes, one process for each, in a fresh database. Contenders
take turns in every round. Each is used as its documentation shows, with its own defaults where they matter; what it
does for an item, and what that is worth, stands below its figures, because no two of them do quite the same.

`make bench-peers` measures all of it, in some ten minutes on two quiet cores; with `BENCH_ARGS="--quick"` roughly,
with `--only TEXT` some of it, and with `--output benchmarks/peers/figures.json` for this page. The libraries are
installed into an environment of their own, which may have another Python than the project's: one of them needs 3.12.

![How many times as fast as others](../assets/peers-figures.svg)

**{ahead} comparisons: ahead in {won}, even in {even}, behind in {lost}.**{rough}{behind}{failed}

## How to read them

- **× bare asyncpg**: the floor is the least SQL that does the work at all, sent by hand. For rates more is better,
  for times less.
- **we are**: how many times as fast this library is, by rates or by medians; within 15 % nobody is ahead.
- **transactions** and **rows written** (inserted, updated, deleted; including the making of the item) are what the
  server counted, for one item: the difference of two runs of different length. They do not depend on what else the
  machine had to do. A statement outside a transaction block counts as a transaction.
- Due work is compared twice. `cascade_state` is the claim and the completion as such, of batches, as an engine that
  handles timers in sets would use them. The peers call a handler for each item, as our `Worker` does
  (`cascade_state/worker`); it opens a unit of work for each, so that the handler's rows and the acknowledgement are one
  commit, and the peers acknowledge afterwards.
- A test's database: the time from asking for it until it is given back, with the test's own connection and three
  statements in between. The pool works meanwhile; who asks for the next database at once, waits for a copy.

{sections}

## The machine

{about}. {run}
"""


def generate() -> dict[str, str]:
    """Return the page and the plot."""
    document = json.loads(_FIGURES.read_text(encoding="utf-8"))
    return {"docs/explanation/peers-figures.md": _page(document), "docs/assets/peers-figures.svg": _plot(document)}


def _page(document: Mapping[str, Any]) -> str:
    factors = [factor for _, factors in _factors(document) for factor in factors.items()]
    even = [name for name, factor in factors if 1 / 1.15 <= factor <= 1.15]
    behind = [
        f"{name} ({title[0].lower()}{title[1:]}, {factor:.2f} ×)"
        for title, factors in _factors(document)
        for name, factor in factors.items()
        if factor < 1 / 1.15
    ]
    failures = [
        f"{one['contender']} ({one['workload']}): {one['failure']}" for one in document["results"] if one["failure"]
    ]
    run = document["run"]
    return _PAGE.format(
        ahead=len(factors),
        won=len(factors) - len(even) - len(behind),
        even=len(even),
        lost=len(behind),
        rough=f" {_ROUGH}" if run["quick"] else "",
        behind=f"\n\nBehind: {'; '.join(behind)}." if behind else "",
        failed=f"\n\nWithout figures: {'; '.join(failures)}." if failures else "",
        sections="\n".join(sections(document)).rstrip(),
        about="Measured on: " + ", ".join(f"{name} {value}" for name, value in document["machine"].items()),
        run=_run(run),
    )


def _run(run: Mapping[str, Any]) -> str:
    if run["quick"]:
        return _ROUGH
    rounds, minutes = run["rounds"], run["minutes"]
    return f"Medians of {rounds} rounds, measured in {minutes:.0f} minutes. Client and server share the cores."


def _factors(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields for each table, and each way of ours in it, how many times as fast as each peer we are."""
    for title, results in groups(document):
        for way, name in ((OURS, title), (OUR_WORKER, f"{title}, by our Worker")):
            factors = {
                result["contender"]: factor
                for result in results
                if result["contender"] != FLOOR and (factor := ahead(results, result, way)) is not None
            }
            if factors:
                yield name, factors


def _plot(document: Mapping[str, Any]) -> str:
    panels = [(title, {OURS: 1.0} | factors) for title, factors in _factors(document)]
    left, width = 180, 440
    height = 50 + sum(_HEAD + ROW * len(factors) for _, factors in panels)
    drawing = Drawing(left + width + 90, height, "How many times as fast as others")
    drawing.text(16, 28, "How many times as long each takes (logarithmic)", size=16, weight="bold")
    top = 50.0
    for title, factors in panels:
        drawing.text(16, top + 14, title, colour=FAINT, weight="bold")
        top += _HEAD
        draw_bars(
            drawing,
            factors,
            top=top - 8,
            left=left,
            width=width,
            highlighted={OURS},
            text=lambda value: f"{value:.1f} ×",
            logarithmic=True,
        )
        top += ROW * len(factors)
    return drawing.svg()
