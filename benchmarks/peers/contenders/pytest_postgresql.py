"""pytest-postgresql: the schema loaded into a template once, and copied for each test."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from benchmarks.databases.pytest_postgresql import PytestPostgresql
from benchmarks.peers.workloads import WARM_UPS, Run, Timing, Workload, timed


def _tests(pause: float) -> Workload:
    async def run_tests(run: Run) -> Timing:
        with tempfile.TemporaryDirectory() as directory:
            tests = PytestPostgresql(run.url, Path(directory), python=Path(sys.executable), name="template_of_it")
            seconds = await asyncio.to_thread(tests.run, WARM_UPS + run.count, pause)
        return timed([one - pause for one in seconds])

    return Workload(
        run=run_tests,
        does="its fixtures on a running server, the schema loaded from a file: CREATE DATABASE from the template, two "
        "more connections, pg_terminate_backend, DROP DATABASE; the work of pytest between tests is part of it",
        promises="a database that nobody had before; the template is loaded anew for each session",
    )


WORKLOADS = {"database": _tests(0.0), "busy database": _tests(0.03)}
