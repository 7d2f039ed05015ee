"""The page of the figures of test databases, with its plot, from what was measured last.

`python -m benchmarks.databases --output benchmarks/databases/figures.json` measures anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.databases.report import copies_table, hand_out_table, machine_line, starts_table, suites_table
from scripts.bars import ROW, draw_bars
from scripts.drawing import Drawing

_FIGURES = Path(__file__).resolve().parents[2] / "benchmarks" / "databases" / "figures.json"
_OURS = "a database from the pool"

_PAGE = """\
# Figures of test databases

What isolation costs a test. The test is the same in all ways: connect, write a row, read it, leave; the schema is that
of the store. All ways take turns in every round, on one server in memory that does not wait for disks, so that a busy
moment hits each of them; a figure is a median of rounds. `make bench` prints these tables; with `BENCH_ARGS=--quick`
in a minute.

![What isolation costs a test, by the way it is isolated](../assets/database-figures.svg)

## {tests} tests, one after the other

{suites}

The second column is a test that does nothing else: the pool cannot keep ahead of it, and a test waits for copies that
are made side by side. In the third the test works for 30 ms besides, which are taken off again: meanwhile the next
databases are made. Processor time is that of client and server together, for such a test; it hardly depends on what
else the machine has to do. "No isolation" is what the test itself costs; the first connection to a new database costs
PostgreSQL a few milliseconds more than one to a database that has been connected to.

## Handed out and copied

{hand_out}

A hand-out is one statement on a connection that is kept, and does not connect to the database.

{copies}

The lease from an empty pool is the whole way: planned, claimed, copied, entered into the books, handed over. On a
server that the toolkit starts itself, copies are made of files; on others PostgreSQL chooses (as it stands).

## Session start

{starts}

From the first import to the first database. Whoever finds the hash of the migrations known makes no template.

## The machine

{machine} Client and server share the cores: read the
ratios, not the milliseconds.
"""


def generate() -> dict[str, str]:
    """Return the page and the plot."""
    document = json.loads(_FIGURES.read_text(encoding="utf-8"))
    page = _PAGE.format(
        tests=f"{document['tests']:,}",
        suites="\n".join(suites_table(document)),
        hand_out="\n".join(hand_out_table(document)),
        copies="\n".join(copies_table(document)),
        starts="\n".join(starts_table(document)),
        machine=machine_line(document),
    )
    return {"docs/explanation/database-figures.md": page, "docs/assets/database-figures.svg": _plot(document)}


def _plot(document: Mapping[str, Any]) -> str:
    costs = {name: by_pause["30"] for name, by_pause in document["suites"].items()}
    left, width = 300, 360
    drawing = Drawing(left + width + 90, 60 + ROW * len(costs), "What isolation costs a test")
    drawing.text(16, 28, "Milliseconds a test that works for 30 ms besides", weight="bold")
    draw_bars(drawing, costs, top=48, left=left, width=width, highlighted={_OURS})
    return drawing.svg()
