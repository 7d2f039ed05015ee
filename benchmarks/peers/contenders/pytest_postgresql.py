"""pytest-postgresql: the schema loaded into a template once, and copied for each test."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from benchmarks.databases.pytest_postgresql import PytestPostgresql
from benchmarks.peers.workloads import Run, Timing, Workload

_WARM_UP = 2


def _tests(pause: float) -> Workload:
    async def run_tests(run: Run) -> Timing:
        with tempfile.TemporaryDirectory() as directory:
            tests = PytestPostgresql(run.url, Path(directory), python=Path(sys.executable), name="template_of_it")
            seconds = await asyncio.to_thread(tests.run, _WARM_UP + run.count, pause)
        latencies = [one - pause for one in seconds[_WARM_UP:]]
        return Timing(items=len(latencies), seconds=sum(latencies), latencies=latencies)

    return Workload(
        run=run_tests,
        does="its fixtures on a running server, the schema loaded from a file: CREATE DATABASE from the template, two "
        "more connections, pg_terminate_backend, DROP DATABASE; the work of pytest between tests is part of it",
        promises="a database that nobody had before; the template is loaded anew for each session",
    )


WORKLOADS = {"database": _tests(0.0), "busy database": _tests(0.03)}
