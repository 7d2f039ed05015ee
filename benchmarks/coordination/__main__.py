"""`make bench`, third part: what workers take, in scenarios of several processes."""

from __future__ import annotations

import asyncio
import statistics
import sys
from typing import Any

from benchmarks.command_line import options, say, show
from benchmarks.coordination.hand_overs import measure_hand_overs
from benchmarks.coordination.lateness import measure_lateness
from benchmarks.coordination.report import as_markdown
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
    return show(asyncio.run(_run(quick=arguments.quick)), arguments, as_markdown)


async def _run(*, quick: bool) -> dict[str, Any]:
    timers: dict[str, int] = (
        {"pending": 10_000, "a_second": 200, "seconds": 3, "workers": 2}
        if quick
        else {"pending": 1_000_000, "a_second": 1000, "seconds": 10, "workers": 2}
    )
    operations, rounds = (60, 2) if quick else (200, 5)
    with durable_server(_SETTINGS) as (url, postmaster):
        say("moves")
        moves = await measure_moves(await created(url, "moves"), 4 if quick else 8)
        say("take-over")
        take_over = await measure_take_over(await created(url, "take_over"), 1 if quick else 5)
        hand_overs = await measure_hand_overs(await created(url, "hand_overs"), postmaster, operations, rounds, say)
        say("lateness of timers")
        late = await measure_lateness(await created(url, "lateness"), **timers)
        about = machine(await server_version(url))
    return {
        "machine": about,
        "run": {"operations": operations, "rounds": rounds, "quick": quick},
        "lateness": {
            **timers,
            "p50_ms": round(statistics.median(late) * 1e3, 2),
            "p99_ms": round(quantile(late, 0.99) * 1e3, 2),
        },
        "hand_overs": hand_overs,
        "take_over": {
            "heartbeat_interval": HEARTBEAT_INTERVAL.total_seconds(),
            "stale_after": STALE_AFTER.total_seconds(),
            "seconds": [round(one, 2) for one in take_over],
        },
        "moves": [{"what": what, "moved": moved, "minimum": minimum} for what, moved, minimum in moves],
    }


if __name__ == "__main__":
    sys.exit(main())
