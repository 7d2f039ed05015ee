"""The table that `make bench` prints, and the documents it writes."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measuring import Measurement

__all__ = ["as_json", "as_markdown", "machine"]


def machine(server_version: str) -> dict[str, Any]:
    """Returns what the figures depend on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": server_version,
        "sqlalchemy": version("sqlalchemy"),
        "asyncpg": version("asyncpg"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def as_json(measurements: Sequence[Measurement], about: dict[str, Any]) -> str:
    """Returns the figures for programs."""
    rows = [
        {
            "operation": item.name,
            "tasks": item.tasks,
            "per_second": {name: item.median(name) for name in item.rates},
            "ratio_to_bare_asyncpg": item.ratio("bare"),
            "ratio_to_orm": item.ratio("orm"),
            "rounds": item.rates,
        }
        for item in measurements
    ]
    return json.dumps({"machine": about, "measurements": rows}, indent=2)


def as_markdown(measurements: Sequence[Measurement], about: dict[str, Any]) -> str:
    """Returns the figures as a table, one row for each operation and number of tasks."""
    lines = [
        "| operation | tasks | store, per second | of bare asyncpg | times the ORM |",
        "|---|---|---|---|---|",
    ]
    for item in measurements:
        rate = item.median("store") or 0.0
        bare, orm = item.ratio("bare"), item.ratio("orm")
        lines.append(f"| {item.name} | {item.tasks} | {rate:,.0f} | {_number(bare, 2)} | {_number(orm, 1)} |")
    lines.append("")
    lines.append("Measured on: " + ", ".join(f"{name} {value}" for name, value in about.items()) + ".")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
