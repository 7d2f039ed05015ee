"""The figures of the peers: one table for each workload, with what each contender does for an item."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.peers.workloads import Timing

__all__ = ["FLOOR", "OURS", "Entry", "as_document", "as_markdown"]

FLOOR = "asyncpg"
OURS = "cascade_state"

_PACKAGES = {
    "cascade_state": "cascade-state",
    "langgraph": "langgraph-checkpoint-postgres",
}
_TITLES = {
    "step": "a durable step",
    "due": "due work, claimed and completed",
}


@dataclass(slots=True)
class Entry:
    """One contender in one workload: its timings, or why there are none."""

    workload: str
    tasks: int
    contender: str
    count: int
    does: str = ""
    timings: list[Timing] = field(default_factory=list)
    failure: str | None = None


def as_document(entries: Sequence[Entry], about: dict[str, Any]) -> dict[str, Any]:
    """Returns everything as JSON can hold it."""
    return {"machine": about, "results": [_result(entry) for entry in entries]}


def _result(entry: Entry) -> dict[str, Any]:
    rates = sorted(timing.items / timing.seconds for timing in entry.timings)
    inserts = [timing.items / timing.insert_seconds for timing in entry.timings if timing.insert_seconds]
    return {
        "workload": entry.workload,
        "tasks": entry.tasks,
        "contender": entry.contender,
        "version": _version(entry.contender),
        "does": entry.does,
        "rate": statistics.median(rates) if rates else None,
        "lowest": rates[0] if rates else None,
        "highest": rates[-1] if rates else None,
        "insert_rate": statistics.median(inserts) if inserts else None,
        "failure": entry.failure,
    }


def _version(contender: str) -> str | None:
    try:
        library = contender.partition("/")[0]
        return version(_PACKAGES.get(library, library))
    except PackageNotFoundError:
        return None


def as_markdown(document: dict[str, Any]) -> str:
    """Returns the tables."""
    about = document["machine"]
    results = document["results"]
    lines = [", ".join(f"{name}: {value}" for name, value in about.items()), ""]
    for workload, tasks in dict.fromkeys((result["workload"], result["tasks"]) for result in results):
        chosen = [result for result in results if (result["workload"], result["tasks"]) == (workload, tasks)]
        lines += [f"## {_TITLES[workload]}, {tasks} task(s)", "", *_table(chosen), ""]
    return "\n".join(lines)


def _table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    rates = {result["contender"]: result["rate"] for result in results}
    yield "| contender | a second (from, to) | to bare asyncpg | ours is | inserted a second | for one item |"
    yield "|---|---|---|---|---|---|"
    for result in results:
        name = f"{result['contender']} {result['version'] or ''}".strip()
        if result["rate"] is None:
            yield f"| {name} | {result['failure']} | | | | |"
            continue
        scatter = f"{result['rate']:,.0f} ({result['lowest']:,.0f}, {result['highest']:,.0f})"
        inserted = "" if result["insert_rate"] is None else f"{result['insert_rate']:,.0f}"
        floor, ours = _ratio(result["rate"], rates.get(FLOOR)), _ratio(rates.get(OURS), result["rate"])
        yield f"| {name} | {scatter} | {floor} | {ours} | {inserted} | {result['does']} |"


def _ratio(one: float | None, another: float | None) -> str:
    """Returns how many times as fast one is; empty where the other was not measured."""
    return "" if not one or not another else f"{one / another:.2f} ×"
