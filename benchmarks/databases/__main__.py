"""`make bench`, second part: what a database of its own costs a test."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.command_line import options, say, show
from benchmarks.databases.copies import measure_copies, measure_hand_out
from benchmarks.databases.processor import Processor
from benchmarks.databases.pytest_postgresql import PytestPostgresql
from benchmarks.databases.report import as_markdown
from benchmarks.databases.session_start import measure_session_starts
from benchmarks.databases.ways import TEMPLATE, build_template, opened_ways
from benchmarks.report import machine
from benchmarks.server import server_version
from cascade_state.testing import PostgresServer

_PAUSES = (0.0, 0.03)  # seconds that a test works besides


def main() -> int:
    """Parses the command line and measures."""
    parser = options("benchmarks.databases", __doc__, quick="a twentieth of the tests; the figures are rougher")
    arguments = parser.parse_args()
    return show(asyncio.run(_run(quick=arguments.quick)), arguments, as_markdown)


async def _run(*, quick: bool) -> dict[str, Any]:
    tests, rounds = (50, 1) if quick else (1000, 5)
    with PostgresServer.embedded() as server:
        await server.ensure_template_exists(TEMPLATE, build_template)
        say("copies")
        copies = await measure_copies(server, 5 if quick else 40)
        say("hand-out")
        hand_out = await measure_hand_out(server, tests // 2, _PAUSES[-1])
        say("session starts")
        starts = await asyncio.to_thread(measure_session_starts, server, 1 if quick else 5)
        suites, missing = await _suites(server, tests, rounds)
        about = machine(await server_version(server.url))
    return {
        "machine": about,
        "tests": tests,
        "copies": {name: _milliseconds(seconds) for name, seconds in copies.items()},
        "hand_out": {name: _milliseconds(seconds) for name, seconds in hand_out.items()},
        "session_starts": {name: _milliseconds(seconds) for name, seconds in starts.items()},
        "suites": suites,
        "missing": missing,
    }


async def _suites(server: PostgresServer, tests: int, rounds: int) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Returns what a test costs in milliseconds, its own work taken off, by way and by how long it works.

    Under `processor`: the processor time of this process and the server, whatever else the machine has to do.
    """
    costs: dict[str, dict[str, list[float]]] = {}
    processor = Processor(await _postmaster(server))
    with tempfile.TemporaryDirectory() as directory:
        other = PytestPostgresql(server.url, Path(directory))
        async with opened_ways(server) as ways:
            for pause in _PAUSES:
                for number in range(rounds):
                    for way in ways:
                        say(f"tests of {pause * 1e3:.0f} ms, round {number + 1} of {rounds}: {way.name}")
                        count = max(2, round(tests * way.share / rounds))
                        start, used = time.perf_counter(), processor.seconds()
                        for _ in range(count):
                            await way.run(pause)
                        taken = (time.perf_counter() - start) / count - pause
                        _note(costs, way.name, f"{pause * 1e3:.0f}", taken)
                        if pause:
                            _note(costs, way.name, "processor", (processor.seconds() - used) / count)
                    if other.problem is None:
                        seconds = await asyncio.to_thread(other.run, max(2, round(tests * 0.2 / rounds)), pause)
                        _note(costs, "pytest-postgresql", f"{pause * 1e3:.0f}", statistics.mean(seconds) - pause)
    missing = {"pytest-postgresql": other.problem} if other.problem is not None else {}
    return {
        name: {kind: round(statistics.median(values), 3) for kind, values in by_kind.items()}
        for name, by_kind in costs.items()
    }, missing


def _note(costs: dict[str, dict[str, list[float]]], name: str, kind: str, seconds: float) -> None:
    costs.setdefault(name, {}).setdefault(kind, []).append(seconds * 1e3)


async def _postmaster(server: PostgresServer) -> int:
    connection = await asyncpg.connect(server.url)
    try:
        lines: str = await connection.fetchval("SELECT pg_read_file('postmaster.pid')")
        return int(lines.splitlines()[0])
    finally:
        await connection.close()


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(one * 1e3 for one in seconds)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 3),
        "min": round(ordered[0], 3),
        "max": round(ordered[-1], 3),
        "count": len(ordered),
    }


if __name__ == "__main__":
    sys.exit(main())
