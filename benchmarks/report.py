"""The tables that `make bench` prints, and the document that it writes and reads."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.growth import GrowthResult
from benchmarks.measuring import Figures, Result, quantile
from benchmarks.registry import OURS

__all__ = ["as_document", "as_json", "as_markdown", "bloat_sentence", "growth_table", "machine"]


def machine(server_version: str) -> dict[str, Any]:
    """Returns what the figures depend on, in general words."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "postgresql": server_version,
        "sqlalchemy": version("sqlalchemy"),
        "asyncpg": version("asyncpg"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def as_document(
    results: Sequence[Result],
    grown: Sequence[GrowthResult],
    bloat: dict[str, Any] | None,
    about: dict[str, Any],
    *,
    on_disk: bool = False,
) -> dict[str, Any]:
    """Returns the figures as plain values: what is written as JSON, compared and drawn."""
    return {
        "machine": about,
        "results": [_result(result) for result in results],
        "growth": [result.as_document() | {"on_disk": on_disk} for result in grown],
        "bloat": bloat,
    }


def _result(result: Result) -> dict[str, Any]:
    others = [name for name in result.figures if name != OURS]
    return {
        "group": result.group,
        "name": result.name,
        "tasks": result.tasks,
        "round_trips": None if result.round_trips is None else round(result.round_trips, 3),
        "observed": result.observes,
        "ratios": {name: round(result.ratio(name), 3) for name in others},
        "contenders": {name: _figures(figures) for name, figures in result.figures.items()},
    }


def _figures(figures: Figures) -> dict[str, Any]:
    milliseconds = [seconds * 1e3 for seconds in figures.latencies]
    return {
        "per_second": round(figures.rate, 1),
        "per_second_of_rounds": [round(rate, 1) for rate in figures.rates],
        "p50_ms": round(statistics.median(milliseconds), 4),
        "p99_ms": round(quantile(milliseconds, 0.99), 4),
        "quantiles_ms": [round(quantile(milliseconds, part / 20), 4) for part in range(1, 20)],
        "client_us": round(figures.client_microseconds, 1),
        "server_us": round(figures.server_microseconds, 1),
    }


def as_json(document: dict[str, Any]) -> str:
    """Returns the figures for programs."""
    return json.dumps(document, indent=1)


def as_markdown(document: dict[str, Any]) -> str:
    """Returns a table for each group: one row for each benchmark and number of tasks."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in document["results"]:
        groups.setdefault(result["group"], []).append(result)
    lines: list[str] = []
    for group, results in groups.items():
        lines += [f"**{group[0].upper()}{group[1:]}**", "", *_table(results), ""]
    if document["growth"]:
        lines += ["**Growth**", "", *growth_table(document["growth"]), ""]
    if document["bloat"]:
        lines += [bloat_sentence(document["bloat"]), ""]
    about = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    return "\n".join([*lines, f"Measured on: {about}."])


def _table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    others = list(dict.fromkeys(name for result in results for name in result["ratios"]))
    heads = ["operation", "tasks", "a second", "p50 ms", "p99 ms", "round trips", "client µs", "server µs"]
    heads += [f"× {name}" for name in others]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for result in sorted(results, key=lambda one: one["tasks"]):
        ours = result["contenders"][OURS]
        cells = [
            result["name"],
            str(result["tasks"]),
            "–" if result["observed"] else f"{ours['per_second']:,.0f}",
            f"{ours['p50_ms']:.2f}",
            f"{ours['p99_ms']:.2f}",
            _number(result["round_trips"], 2),
            f"{ours['client_us']:.0f}",
            f"{ours['server_us']:.0f}",
            *(_number(result["ratios"].get(name), 2) for name in others),
        ]
        yield f"| {' | '.join(cells)} |"


def growth_table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of the table of growth: medians by size."""
    sizes = list(results[0]["sizes"])
    heads = ["operation", *(f"{int(size):,} flows and timers, p50 ms" for size in sizes), "factor"]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for result in results:
        cells = [result["name"], *(f"{result['sizes'][size]['p50_ms']:.2f}" for size in sizes)]
        yield f"| {' | '.join(cells)} | {result['factor']:.2f} |"


def bloat_sentence(bloat: dict[str, Any]) -> str:
    """Returns what happened to the timers' table."""
    return (
        f"{bloat['cycles']:,} timers scheduled, claimed and completed in a table of {bloat['timers']:,}: the table "
        f"became {bloat['table_factor']:.2f} times as large, its indexes {bloat['indexes_factor']:.2f} times "
        f"(autovacuum ran {bloat['after']['autovacuums']} times)."
    )


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
