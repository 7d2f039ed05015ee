"""Bloat: what many cycles of schedule, claim and complete leave of the timers' table and indexes.

Every cycle makes dead rows and index entries. Whether their room is used again is up to the fillfactor, to pruning
within pages and to autovacuum, which looks here every fifteen seconds: by default it looks once a minute, and a queue
that moves thousands of rows a second makes more garbage than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from benchmarks.bench import Bench
from cascade_state import ScheduleTimer

__all__ = ["measure_bloat"]

_BATCH = 100
_TASKS = 4
_LEASE = timedelta(minutes=5)
_DUE = tuple(ScheduleTimer("s2", after=timedelta(0)) for _ in range(_BATCH))
_SIZES = """
    SELECT pg_table_size('timers') AS "table", pg_indexes_size('timers') AS indexes,
        n_dead_tup AS dead_rows, autovacuum_count AS autovacuums, n_tup_ins, n_tup_upd, n_tup_del, n_tup_hot_upd
    FROM pg_stat_user_tables WHERE relname = 'timers'
"""


async def measure_bloat(bench: Bench, cycles: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Returns the sizes before and after that many timers went through the table of a loaded database."""
    connection = bench.bare.connections[0]
    await connection.execute("VACUUM timers")
    before = dict(await connection.fetchrow(_SIZES))
    done = 0

    async def task(number: int) -> None:
        nonlocal done
        (flow,) = await bench.stored_flows(1)
        while done < cycles:
            flow = await bench.store.advance(flow, schedule=_DUE)
            completed = await _cycle(bench, f"worker-{number}")
            done += completed
            progress(f"growth: bloat, {done:,} of {cycles:,} timers")

    await asyncio.gather(*(task(number) for number in range(_TASKS)))
    after = dict(await connection.fetchrow(_SIZES))
    return {
        "timers": bench.loaded_flows,
        "cycles": done,
        "before": before,
        "after": after,
        "table_factor": round(after["table"] / before["table"], 3),
        "indexes_factor": round(after["indexes"] / before["indexes"], 3),
    }


async def _cycle(bench: Bench, holder: str) -> int:
    timers = await bench.store.timers.claim_due(holder, limit=_BATCH, lease_duration=_LEASE)
    await bench.store.timers.complete(timers)
    return len(timers)
