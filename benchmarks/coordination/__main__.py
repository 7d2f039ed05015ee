"""`make bench`, third part: what workers take, in scenarios of several processes."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.coordination.lateness import measure_lateness
from benchmarks.coordination.sets import HEARTBEAT_INTERVAL, STALE_AFTER, measure_moves, measure_take_over
from benchmarks.empty_database import created
from benchmarks.measuring import quantile
from benchmarks.report import machine
from benchmarks.server import durable_server, server_version

_SETTINGS = {"max_connections": "200", "shared_buffers": "1GB", "max_wal_size": "4GB"}


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coordination", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer timers and rounds; the figures are rougher")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the figures into this file, as JSON")
    arguments = parser.parse_args()
    document = asyncio.run(_run(quick=arguments.quick))
    text = json.dumps(document, indent=1)
    if arguments.output is not None:
        arguments.output.write_text(f"{text}\n")
    print(text if arguments.json else "\n".join(as_markdown(document)))
    return 0


async def _run(*, quick: bool) -> dict[str, Any]:
    timers: dict[str, int] = (
        {"pending": 10_000, "a_second": 200, "seconds": 3, "workers": 2}
        if quick
        else {"pending": 1_000_000, "a_second": 1000, "seconds": 10, "workers": 2}
    )
    with durable_server(_SETTINGS) as (url, _):
        _say("moves")
        moves = await measure_moves(await created(url, "moves"), 4 if quick else 8)
        _say("take-over")
        take_over = await measure_take_over(await created(url, "take_over"), 1 if quick else 5)
        _say("lateness of timers")
        late = await measure_lateness(await created(url, "lateness"), **timers)
        about = machine(await server_version(url))
    return {
        "machine": about,
        "lateness": {**timers, "p50_ms": round(statistics.median(late) * 1e3, 2), "p99_ms": _p99(late)},
        "take_over": {
            "heartbeat_interval": HEARTBEAT_INTERVAL.total_seconds(),
            "stale_after": STALE_AFTER.total_seconds(),
            "seconds": [round(one, 2) for one in take_over],
        },
        "moves": [{"what": what, "moved": moved, "minimum": minimum} for what, moved, minimum in moves],
    }


def _p99(seconds: list[float]) -> float:
    return round(quantile(seconds, 0.99) * 1e3, 2)


def as_markdown(document: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the tables."""
    late = document["lateness"]
    yield "| timers due a second | pending | worker processes | lateness p50 ms | p99 ms |"
    yield "|---|---|---|---|---|"
    yield (
        f"| {late['a_second']:,} for {late['seconds']} s | {late['pending']:,} | {late['workers']} "
        f"| {late['p50_ms']:.1f} | {late['p99_ms']:.1f} |"
    )
    take_over = document["take_over"]
    bound = take_over["stale_after"] + take_over["heartbeat_interval"]
    yield ""
    yield f"| take-over after kill -9 of one of three (at most {bound:.1f} s) | s |"
    yield "|---|---|"
    for number, seconds in enumerate(take_over["seconds"], start=1):
        yield f"| {number} | {seconds:.2f} |"
    yield ""
    yield "| worker | partitions that changed their owner | minimum |"
    yield "|---|---|---|"
    for row in document["moves"]:
        yield f"| {row['what']} | {row['moved']} | {row['minimum']} |"
    yield ""
    yield "Measured on: " + ", ".join(f"{name} {value}" for name, value in document["machine"].items()) + "."


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
