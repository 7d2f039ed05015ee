"""`make bench`: the store's operations against bare asyncpg and a plain ORM unit of work, in one run."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.bench import opened_bench
from benchmarks.comparing import compare
from benchmarks.effort import Effort
from benchmarks.growth import Growth, GrowthResult, measure_growth, registered_growth
from benchmarks.measuring import Result, measure
from benchmarks.merging import merged
from benchmarks.registry import TASKS, Benchmark, registered
from benchmarks.report import as_document, as_json, as_markdown, machine
from benchmarks.server import durable_server, server_version

_QUICK = Effort(operations=60, rounds=2, tasks=TASKS[:2], sizes=(10_000, 100_000), cycles=20_000)
_THOROUGH = Effort(operations=120, rounds=4, tasks=TASKS, sizes=(10_000, 1_000_000), cycles=1_000_000)

# Durable, as the server of a store should be, with the sizes of one that does real work. Autovacuum looks more often
# than by default; see `bloat`.
_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "autovacuum_naptime": "15s",
}


def main() -> int:
    """Parses the command line and does what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: about a minute, rough ratios")
    parser.add_argument("--only", default="", metavar="TEXT", help="only benchmarks with this in their name or group")
    parser.add_argument(
        "--tasks", default=None, metavar="N,N", help="only these numbers of tasks (default: 1,16,64; 1,16 when quick)"
    )
    parser.add_argument(
        "--sizes",
        default=None,
        metavar="N,N",
        help="numbers of flows and timers for the growth (default: 10000,1000000; 10000,100000 when quick)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIRECTORY",
        help="keep the server's data there meanwhile, not in memory: 10,000,000 flows and timers take 30 GB",
    )
    parser.add_argument(
        "--cycles", type=int, help="timers for the bloat (default: 1000000; 20000 when quick; 0 leaves it out)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the figures into this file, as JSON")
    parser.add_argument(
        "--merge",
        type=Path,
        metavar="FILE",
        help="put the figures into this file of figures, in the place of those of the same name",
    )
    parser.add_argument("--list", action="store_true", help="only list the benchmarks")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="only tell what differs between two files"
    )
    arguments = parser.parse_args()
    if arguments.compare:
        before, after = (json.loads(path.read_text()) for path in arguments.compare)
        text, slower = compare(before, after)
        print(text)
        return int(slower)
    chosen = [one for one in registered() if arguments.only in f"{one.group}: {one.name}"]
    growing = [one for one in registered_growth() if arguments.only in f"growth: {one.name}"]
    if arguments.list:
        print("\n".join(f"{one.group}: {one.name} ({', '.join(one.contenders)})" for one in chosen))
        print("\n".join(f"growth: {one.name}" for one in growing) + "\ngrowth: bloat")
        return 0
    effort = _effort(arguments)
    bloat = arguments.only in "growth: bloat" and effort.cycles > 0
    document = asyncio.run(_run(chosen, growing, effort, bloat=bloat, directory=arguments.directory))
    if arguments.output is not None:
        arguments.output.write_text(as_json(document) + "\n")
    if arguments.merge is not None:
        together = merged(json.loads(arguments.merge.read_text()), document)
        arguments.merge.write_text(as_json(together) + "\n")
    print(as_json(document) if arguments.json else as_markdown(document))
    return 0


def _effort(arguments: argparse.Namespace) -> Effort:
    effort = _QUICK if arguments.quick else _THOROUGH
    if arguments.tasks:
        effort = replace(effort, tasks=_numbers(arguments.tasks))
    if arguments.sizes:
        effort = replace(effort, sizes=_numbers(arguments.sizes))
    if arguments.cycles is not None:
        effort = replace(effort, cycles=arguments.cycles)
    return effort


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


async def _run(
    chosen: Sequence[Benchmark],
    growing: Sequence[Growth],
    effort: Effort,
    *,
    bloat: bool,
    directory: Path | None,
) -> dict[str, Any]:
    results: list[Result] = []
    grown: list[GrowthResult] = []
    swollen = None
    with durable_server(_SETTINGS, directory) as (url, postmaster):
        if chosen:
            async with opened_bench(url, postmaster, max(effort.tasks)) as bench:
                for number in effort.tasks:
                    results += await measure(bench, chosen, number, effort, _progress)
        if growing or bloat:
            grown, swollen = await measure_growth(url, growing, effort, _progress, bloat=bloat)
        about = machine(await server_version(url))
    _progress("")
    return as_document(results, grown, swollen, about, on_disk=directory is not None)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
