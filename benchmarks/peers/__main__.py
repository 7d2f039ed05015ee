"""`make bench-peers`: the same work done by other libraries, on the same server, in the same run."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.empty_database import created
from benchmarks.peers.child import NOT_INSTALLED, workloads_of
from benchmarks.peers.report import Entry, as_document, as_markdown
from benchmarks.peers.workloads import Timing
from benchmarks.report import machine
from benchmarks.server import durable_server, server_version

# Durable, and the same for everybody: a commit is on disk when it is answered.
_SETTINGS = {"max_connections": "200", "shared_buffers": "1GB", "max_wal_size": "4GB"}

# (workload, tasks) -> who takes part, and with how many items: about a second for each of them.
_CONTESTS: dict[tuple[str, int], dict[str, int]] = {
    ("step", 1): {"asyncpg": 3000, "cascade_state": 3000, "langgraph": 1500, "eventsourcing": 1000, "dbos": 300},
    ("step", 16): {"asyncpg": 8000, "cascade_state": 8000, "langgraph": 1500, "eventsourcing": 1000, "dbos": 300},
    ("due", 1): {
        "asyncpg": 20000,
        "cascade_state": 20000,
        "cascade_state/worker": 3000,
        "pgqueuer": 10000,
        "procrastinate": 1000,
        "dbos": 300,
    },
}
_PATIENCE_SECONDS = 180


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round with a tenth of the items: rough figures")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only contenders or workloads with this in their name"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the figures into this file, as JSON")
    arguments = parser.parse_args()
    document = measure_peers(quick=arguments.quick, only=arguments.only)
    text = json.dumps(document, indent=1)
    if arguments.output is not None:
        arguments.output.write_text(f"{text}\n")
    print(text if arguments.json else as_markdown(document))
    return 0


def measure_peers(*, quick: bool, only: str) -> dict[str, Any]:
    """Returns the figures of all contenders; each round times each contender once, in a fresh process and database."""
    entries = [
        Entry(workload=workload, tasks=tasks, contender=contender, count=count // 10 if quick else count)
        for (workload, tasks), contenders in _CONTESTS.items()
        for contender, count in contenders.items()
        if only in workload or only in contender
    ]
    rounds = 1 if quick else 5
    with durable_server(_SETTINGS) as (url, _):
        for number in range(rounds):
            for entry in entries:
                if entry.failure is None:
                    _say(f"round {number + 1} of {rounds}: {entry.contender}, {entry.workload}, {entry.tasks} task(s)")
                    _time(entry, url, number)
        about = machine(asyncio.run(server_version(url)))
    return as_document(entries, about)


def _time(entry: Entry, url: str, number: int) -> None:
    name = f"{entry.contender}_{entry.workload}_{entry.tasks}_{number}".replace("/", "_")
    database = asyncio.run(created(url, name))
    words = (entry.contender, entry.workload, database, str(entry.tasks), str(entry.count))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers.child", *words],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        entry.failure = f"was not done after {_PATIENCE_SECONDS} s"
        return
    if done.returncode == NOT_INSTALLED:
        entry.failure = f"is not installed ({done.stderr.strip().splitlines()[-1]})"
    elif done.returncode:
        entry.failure = (done.stderr.strip().splitlines() or ["ended without a word"])[-1]
    else:
        entry.timings.append(Timing(**json.loads(done.stdout.splitlines()[-1])))
        entry.does = workloads_of(entry.contender)[entry.workload].does


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
