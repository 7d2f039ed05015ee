"""`make bench-peers`: the same work done by other libraries, on the same server, in the same run."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.command_line import options, say, show
from benchmarks.peers.child import workloads_of
from benchmarks.peers.contests import CONTESTS
from benchmarks.peers.report import Entry, as_document, as_markdown
from benchmarks.peers.running import Failure, run_once, work_of_an_item
from benchmarks.report import machine
from benchmarks.server import durable_server, server_version

# Durable, and the same for everybody: a commit is on disk when it is answered.
_SETTINGS = {"max_connections": "200", "shared_buffers": "1GB", "max_wal_size": "4GB"}

_ROUNDS = 3
_LEAST_ITEMS = 5
# What one item takes is counted where it happens in the database of the run, and autovacuum adds nothing.
_COUNTED = ("step", "due", "wake-up")
_COUNTING_SETTINGS = {**_SETTINGS, "autovacuum": "off"}


def main() -> int:
    """Parses the command line and measures."""
    parser = options("benchmarks.peers", __doc__, quick="one round with a tenth of the items: rough figures")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only contenders or workloads with this in their name"
    )
    arguments = parser.parse_args()
    return show(measure_peers(quick=arguments.quick, only=arguments.only), arguments, as_markdown)


def measure_peers(*, quick: bool, only: str) -> dict[str, Any]:
    """Returns the figures of all contenders; each round times each contender once, in a fresh process and database."""
    entries = list(_entries(only, quick=quick))
    rounds = 1 if quick else _ROUNDS
    begun = time.monotonic()
    counted = [entry for entry in entries if entry.workload in _COUNTED]
    total = len(entries) * rounds + len(counted)
    with durable_server(_SETTINGS) as (url, _):
        for number in range(rounds):
            for place, entry in enumerate(entries, start=number * len(entries) + 1):
                _tell(f"round {number + 1} of {rounds}", entry, place, total, begun)
                _time(entry, url)
        about = machine(asyncio.run(server_version(url)))
    with durable_server(_COUNTING_SETTINGS) as (url, _):
        for place, entry in enumerate(counted, start=rounds * len(entries) + 1):
            _tell("what it takes", entry, place, total, begun)
            _count(entry, url)
    run = {"rounds": rounds, "quick": quick, "minutes": round((time.monotonic() - begun) / 60, 1)}
    return as_document(entries, about, run)


def _entries(only: str, *, quick: bool) -> Iterator[Entry]:
    for (workload, tasks), contenders in CONTESTS.items():
        for contender, count in contenders.items():
            if only in workload or only in contender:
                ways = workloads_of(contender)[workload]
                yield Entry(
                    workload=workload,
                    tasks=tasks,
                    contender=contender,
                    count=max(_LEAST_ITEMS, count // 10) if quick else count,
                    does=ways.does,
                    promises=ways.promises,
                )


def _time(entry: Entry, url: str) -> None:
    if entry.failure is None:
        try:
            timing, _ = run_once(url, entry.contender, entry.workload, entry.tasks, entry.count)
            entry.timings.append(timing)
        except Failure as failure:
            entry.failure = str(failure)


def _count(entry: Entry, url: str) -> None:
    if entry.failure is not None:
        return
    items = CONTESTS[entry.workload, entry.tasks][entry.contender]
    counts = (max(10 * entry.tasks, items // 20), max(30 * entry.tasks, items // 4))
    try:
        fewer, more = (run_once(url, entry.contender, entry.workload, entry.tasks, count) for count in counts)
        entry.work = work_of_an_item(fewer, more)
    except Failure as failure:
        say(f"not counted: {failure}")


def _tell(what: str, entry: Entry, place: int, total: int, begun: float) -> None:
    tasks = f", {entry.tasks} tasks" if entry.tasks > 1 else ""
    passed = time.monotonic() - begun
    say(f"{place}/{total} after {passed:.0f} s, {what}: {entry.contender}, {entry.workload}{tasks}")


if __name__ == "__main__":
    sys.exit(main())
