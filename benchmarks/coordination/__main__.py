"""`make bench`, third part: what workers take, in scenarios of several processes."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.command_line import options, say, show
from benchmarks.coordination.lateness import measure_lateness
from benchmarks.coordination.sets import HEARTBEAT_INTERVAL, STALE_AFTER, measure_moves, measure_take_over
from benchmarks.empty_database import created
from benchmarks.measuring import quantile
from benchmarks.report import machine
from benchmarks.server import durable_server, server_version

_SETTINGS = {"max_connections": "200", "shared_buffers": "1GB", "max_wal_size": "4GB"}


def main() -> int:
    """Parses the command line and measures."""
    parser = options("benchmarks.coordination", __doc__, quick="fewer timers and rounds; the figures are rougher")
    arguments = parser.parse_args()
    return show(asyncio.run(_run(quick=arguments.quick)), arguments, lambda document: "\n".join(as_markdown(document)))


async def _run(*, quick: bool) -> dict[str, Any]:
    timers: dict[str, int] = (
        {"pending": 10_000, "a_second": 200, "seconds": 3, "workers": 2}
        if quick
        else {"pending": 1_000_000, "a_second": 1000, "seconds": 10, "workers": 2}
    )
    with durable_server(_SETTINGS) as (url, _):
        say("moves")
        moves = await measure_moves(await created(url, "moves"), 4 if quick else 8)
        say("take-over")
        take_over = await measure_take_over(await created(url, "take_over"), 1 if quick else 5)
        say("lateness of timers")
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


if __name__ == "__main__":
    sys.exit(main())
