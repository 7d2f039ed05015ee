"""The page of figures and its pictures, made of the results that a run of the benchmarks left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import growth_picture, latency_picture, throughput_picture
from benchmarks.registry import BARE
from benchmarks.report import as_markdown

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "figures.json"

HEAD = """\
# Figures

What the store's operations cost, as ratios to two floors measured in the same run: the very statements that the store
sends, on held asyncpg connections with arguments prepared beforehand (one connection for each task); and a plain
SQLAlchemy ORM unit of work that does the same job. Rounds of the three take turns, so that a busy moment hits all of
them; each figure is a median of rounds. Where the time goes, and what was done about it, stands
[on its own page](where-the-time-goes.md).

`make bench` measures all of it, in half an hour; `make bench BENCH_ARGS="--quick"` in a few minutes. `--output` keeps
the results, and `python -m benchmarks --compare BEFORE AFTER` tells what got slower between two of them.
`--only "growth: " --sizes 10000,1000000,10000000 --cycles 0 --directory DIRECTORY` measures the growth alone, as far as
ten million, on a disk with 30 GB free; `--merge FILE` puts the figures of such a run among the others.

"""

READING = """\
## How to read them

- **× bare asyncpg** is the store's rate over that of its own statements sent by hand. Above 1 the store is faster,
  because operations of several tasks share a statement and a commit (`round trips` below 1).
- **client µs** and **server µs** are processor time for one operation, ours and the server's. They mean the same on a
  busy machine; rates do not.
- Client and server share two cores. The store is one process and one or two of the server; the floor with 16 tasks is
  17 processes, and gets the larger part of a machine that is busy. By processor time a step with 16 tasks costs
  {step_share}.
- Growth: each plan and the number of pages it touches stay the same, which a test asserts, but for one more level in
  an index. What grows is memory: the tables outgrow the processor's caches, then the server's. `statistics` counts each
  figure as far as 10,000, and estimates beyond; the smallest store has less to count.{disk}

"""

DISK = """ The data was on a
  disk: a commit waits for it, on a store of any size. Every round works on the same flows, which the first one read."""


def generate() -> dict[str, str]:
    """Return the page and its pictures."""
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    results = document["results"]
    steps = [one for one in results if one["group"] in ("steps", "single statements")]
    few = [one for one in steps if one["tasks"] in (1, 16)]
    pictures = {
        "latency": latency_picture(few, "Latency: 5th to 95th percentile, the middle half, the median"),
        "throughput": throughput_picture(steps, "Throughput by the number of concurrent tasks"),
        "growth": growth_picture(document["growth"], "Median latency by the size of the store"),
    }
    files = {f"docs/assets/figures-{name}.svg": picture for name, picture in pictures.items()}
    files["docs/explanation/figures.md"] = _page(document)
    return files


def _page(document: dict[str, Any]) -> str:
    step = _found(document["results"], "advance: step (two states)", 16)
    ours, bare = step["contenders"]["store"], step["contenders"][BARE]
    share = (
        f"{ours['client_us'] + ours['server_us']:.0f} µs in the store ({ours['client_us']:.0f} of them here) and "
        f"{bare['client_us'] + bare['server_us']:.0f} µs by hand"
    )
    aims = "\n".join(f"| {aim} | {reached} |" for aim, reached in _aims(document))
    parts = [
        HEAD,
        "![Throughput](../assets/figures-throughput.svg)\n\n![Latency](../assets/figures-latency.svg)\n\n",
        "![Growth](../assets/figures-growth.svg)\n\n",
        READING.format(step_share=share, disk=DISK if any(one.get("on_disk") for one in document["growth"]) else ""),
        "## Where it stands\n\n| aim | reached |\n|---|---|\n",
        aims,
        "\n\n## The tables\n\n",
        as_markdown(document),
        "\n",
    ]
    return "".join(parts)


def _found(results: Sequence[dict[str, Any]], name: str, tasks: int) -> dict[str, Any]:
    return next(one for one in results if one["name"] == name and one["tasks"] == tasks)


def _aims(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    results = document["results"]
    singles = [one for one in results if BARE in one["ratios"] and one["group"] in ("steps", "single statements")]
    for tasks, aim in ((1, 0.8), (16, 1.5)):
        ratios = {one["name"]: one["ratios"][BARE] for one in singles if one["tasks"] == tasks}
        text = f"one-statement operations, {tasks} task{'s' * (tasks > 1)}: at least {aim} of bare asyncpg"
        yield text, _span(ratios, aim)
    for tasks, aim in ((1, 8.0), (16, 15.0)):
        step = _found(results, "advance: step (two states, a timer, a wait)", tasks)
        text = (
            f"a step with two states, a timer and a wait, {tasks} task{'s' * (tasks > 1)}: at least {aim:g} × the ORM"
        )
        yield text, _reached(step["ratios"]["ORM"], aim)
    claim = _found(results, "claim and complete (100)", 1)["ratios"][BARE]
    yield "claim and complete in batches of 100: at least 0.5 of bare asyncpg", _reached(claim, 0.5)
    rate = _found(results, "operations: get, put, advance, claim, complete", 1)["contenders"]["store"]["per_second"]
    yield "memory: at least 20,000 operations a second", f"{rate:,.0f}" + ("" if rate >= 20_000 else ": not there")
    wake_up = 1 / _found(results, "commit to handler", 1)["ratios"]["bare LISTEN, NOTIFY and claim"]
    text = "from the commit to the handler, with hints: at most 1.5 × a bare LISTEN, NOTIFY and claim"
    yield text, _reached(wake_up, 1.5, within=lambda value, aim: value <= aim)
    kept = _found(results, "advance, hints on", 16)["ratios"]["without hints"]
    yield "16 committers with hints on: at least 0.9 of their rate without", _reached(kept, 0.9)
    flat = {one["name"]: one["factor"] for one in document["growth"]}
    largest = max(int(size) for size in document["growth"][0]["sizes"])
    yield (
        f"median at {largest:,} flows and timers at most 1.3 × that at 10,000",
        _span(flat, 1.3, within=lambda value, aim: value <= aim),
    )
    bloat = document["bloat"]
    worst = max(bloat["table_factor"], bloat["indexes_factor"])
    yield (
        f"{bloat['cycles']:,} timers scheduled, claimed and completed: sizes within 1.5 ×",
        _reached(worst, 1.5, within=lambda value, aim: value <= aim),
    )


def _at_least(value: float, aim: float) -> bool:
    return value >= aim


def _reached(value: float, aim: float, *, within: Callable[[float, float], bool] = _at_least) -> str:
    return f"{value:.2f}" + ("" if within(value, aim) else ": not there")


def _span(values: dict[str, float], aim: float, *, within: Callable[[float, float], bool] = _at_least) -> str:
    """The range of several figures, and which of them fall short."""
    short = [f"{name} ({value:.2f})" for name, value in values.items() if not within(value, aim)]
    span = f"{min(values.values()):.2f} to {max(values.values()):.2f}"
    return span + (f"; not there: {', '.join(short)}" if short else "")
