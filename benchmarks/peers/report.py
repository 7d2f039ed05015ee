"""The figures of the peers: for each workload who is how fast, and what each does for an item."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.measuring import quantile
from benchmarks.peers.contests import NOT_MADE_FOR, TITLES
from benchmarks.peers.running import Work
from benchmarks.peers.workloads import Timing

__all__ = ["FLOOR", "OURS", "OUR_WORKER", "Entry", "ahead", "as_document", "as_markdown", "groups", "sections"]

FLOOR = "asyncpg"
OURS = "cascade_state"
# Peers that run a handler for each item are compared with what does the same here, too.
OUR_WORKER = "cascade_state/worker"

_PACKAGES = {
    "absurd": "absurd-sdk",
    "cascade_state": "cascade-state",
    "langgraph": "langgraph-checkpoint-postgres",
}
_EVEN = 0.15  # of a ratio, within which nobody is ahead


@dataclass(slots=True)
class Entry:
    """One contender in one workload: its timings, or why there are none."""

    workload: str
    tasks: int
    contender: str
    count: int
    does: str = ""
    promises: str = ""
    timings: list[Timing] = field(default_factory=list)
    work: Work | None = None
    failure: str | None = None


def as_document(entries: Sequence[Entry], about: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Returns everything as JSON can hold it."""
    return {"machine": about, "run": run, "results": [_result(entry) for entry in entries]}


def _result(entry: Entry) -> dict[str, Any]:
    rates = sorted(timing.items / timing.seconds for timing in entry.timings)
    inserts = [timing.items / timing.insert_seconds for timing in entry.timings if timing.insert_seconds]
    latencies = [[1e3 * one for one in timing.latencies] for timing in entry.timings if timing.latencies]
    medians = sorted(statistics.median(one) for one in latencies)
    every = [one for several in latencies for one in several]
    return {
        "workload": entry.workload,
        "tasks": entry.tasks,
        "contender": entry.contender,
        "version": _version(entry.contender),
        "items": entry.count,
        "does": entry.does,
        "promises": entry.promises,
        "rate": _rounded(statistics.median(rates)) if rates else None,
        "rates": [_rounded(rate) for rate in rates],
        "insert_rate": _rounded(statistics.median(inserts)) if inserts else None,
        "p50_ms": _rounded(statistics.median(every)) if every else None,
        "p99_ms": _rounded(quantile(every, 0.99)) if every else None,
        "medians_ms": [_rounded(median) for median in medians],
        "transactions": _rounded(entry.work.transactions) if entry.work else None,
        "rows": _rounded(entry.work.rows) if entry.work else None,
        "failure": entry.failure,
    }


def _rounded(value: float) -> float:
    return round(value, 3 if value < 100 else 0)


def _version(contender: str) -> str | None:
    try:
        library = contender.partition("/")[0]
        return version(_PACKAGES.get(library, library))
    except PackageNotFoundError:
        return None


def groups(document: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields the results of each workload and number of tasks, under their title."""
    results = document["results"]
    for workload, tasks in dict.fromkeys((result["workload"], result["tasks"]) for result in results):
        chosen = [result for result in results if (result["workload"], result["tasks"]) == (workload, tasks)]
        many = f", {tasks} tasks" if tasks > 1 else ", one task" if workload == "step" else ""
        title = TITLES[workload]
        yield f"{title[0].upper()}{title[1:]}{many}", chosen


def as_markdown(document: dict[str, Any]) -> str:
    """Returns the tables."""
    about = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    return "\n".join([*sections(document), f"Measured on: {about}."])


def sections(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of all tables, a section for each workload."""
    seen: set[str] = set()
    for title, results in groups(document):
        workload = results[0]["workload"]
        yield from [f"## {title}", ""]
        yield from _latencies(results) if any(result["p50_ms"] for result in results) else _rates(results)
        yield ""
        yield from _works(results)
        yield ""
        if workload not in seen:
            seen.add(workload)
            absent = "; ".join(f"{name} {reason}" for name, reason in NOT_MADE_FOR[workload].items())
            yield from [f"Not in this table: {absent}.", ""]


def _name(result: dict[str, Any]) -> str:
    return f"{result['contender']} {result['version'] or ''}".strip()


def _rates(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    with_worker = any(result["contender"] == OUR_WORKER for result in results)
    with_inserts = any(result["insert_rate"] for result in results)
    heads = ["contender", "a second (rounds from, to)", "× bare asyncpg", "we are"]
    heads += ["our `Worker` is"] * with_worker + ["made a second"] * with_inserts
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for result in results:
        if result["rate"] is None:
            yield f"| {_name(result)} | {result['failure']} |{' |' * (len(heads) - 2)}"
            continue
        rates = result["rates"]
        cells = [
            _name(result),
            f"{result['rate']:,.0f} ({rates[0]:,.0f}, {rates[-1]:,.0f})",
            *_comparisons(results, result, "rate"),
        ]
        if with_worker:
            cells.append(_verdict(ahead(results, result, OUR_WORKER)))
        if with_inserts:
            cells.append(f"{result['insert_rate']:,.0f}" if result["insert_rate"] else "meanwhile")
        yield f"| {' | '.join(cells)} |"


def _latencies(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| contender | p50 ms (rounds from, to) | p99 ms | × bare asyncpg | we are |"
    yield "|---|---|---|---|---|"
    for result in results:
        if result["p50_ms"] is None:
            yield f"| {_name(result)} | {result['failure']} | | | |"
            continue
        medians = result["medians_ms"]
        cells = [
            _name(result),
            f"{result['p50_ms']:.2f} ({medians[0]:.2f}, {medians[-1]:.2f})",
            f"{result['p99_ms']:.2f}",
            *_comparisons(results, result, "p50_ms"),
        ]
        yield f"| {' | '.join(cells)} |"


def _comparisons(results: Sequence[dict[str, Any]], result: dict[str, Any], kind: str) -> tuple[str, str]:
    floor = next((one[kind] for one in results if one["contender"] == FLOOR), None)
    return (f"{result[kind] / floor:.2f}" if floor else "–"), _verdict(ahead(results, result))


def ahead(results: Sequence[dict[str, Any]], result: dict[str, Any], way: str = OURS) -> float | None:
    """Returns how many times as fast as this one we are, in this way of ours; None without anything to compare."""
    ours = next((one for one in results if one["contender"] == way), None)
    if ours is None or result["contender"].partition("/")[0] == OURS:
        return None
    if ours["p50_ms"] and result["p50_ms"]:
        return float(result["p50_ms"] / ours["p50_ms"])
    if ours["rate"] and result["rate"]:
        return float(ours["rate"] / result["rate"])
    return None


def _verdict(factor: float | None) -> str:
    if factor is None:
        return "–"
    if factor > 1 + _EVEN:
        return f"ahead, {factor:.1f} ×"
    if factor < 1 / (1 + _EVEN):
        return f"**behind**, {factor:.2f} ×"
    return f"even, {factor:.2f} ×"


def _works(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    counted = any(result["transactions"] is not None for result in results)
    yield f"| contender | for one item |{' transactions | rows written |' * counted} what that is worth |"
    yield "|" + "---|" * (3 + 2 * counted)
    for result in results:
        cells = [result["contender"], result["does"]]
        if counted:
            cells += [_count(result["transactions"]), _count(result["rows"])]
        yield f"| {' | '.join([*cells, result['promises']])} |"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
