"""Replica sets: what a heartbeat and a fence cost, and how long a share is without a living owner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from secrets import token_hex
from typing import Any

from benchmarks.bench import Bench
from benchmarks.registry import BARE, TASKS, Latency, Operation, benchmark
from cascade_state.coordination import ReplicaSet

_GROUP = "replica sets"
_WAITS = "replica sets: waiting for a share"
_LONG = timedelta(days=1)
_INTERVAL = timedelta(milliseconds=300)
_STALE_AFTER = timedelta(milliseconds=1500)


async def _workers(bench: Bench, count: int) -> str:
    """Makes a set with so many workers, whose shares are settled; returns its name."""
    name = token_hex(4)
    for number in range(count):
        await bench.store.replica_sets.join(name, f"w{number}", stale_after=_LONG)
    for _ in range(2):
        for number in range(count):
            await bench.store.replica_sets.beat(name, f"w{number}", stale_after=_LONG)
    return name


def _beat(name: str, lane: int) -> Callable[[Any], Awaitable[Any]]:
    return lambda store: store.replica_sets.beat(name, f"w{lane}", stale_after=_LONG)


@benchmark(_GROUP, "heartbeat", tasks=TASKS[:2])
async def heartbeat(bench: Bench, tasks: int) -> Operation:
    """Sends heartbeats, each lane those of its worker, when nothing changes."""
    name = await _workers(bench, tasks)

    async def operation(lane: int, index: int) -> None:
        await _beat(name, lane)(bench.store)

    return operation


@heartbeat.against(BARE)
async def _bare_heartbeat(bench: Bench, tasks: int) -> Operation:
    name = await _workers(bench, tasks)
    return bench.bare.sending([await bench.bare.sends(_beat(name, lane)) * bench.operations for lane in range(tasks)])


@benchmark(
    _WAITS,
    "take-over after a kill (stale_after 1.5 s, interval 0.3 s)",
    tasks=TASKS[:1],
    counts_round_trips=False,
    share=0.04,
)
async def take_over(bench: Bench, tasks: int) -> Operation:
    """Measures from the last heartbeat of a worker that is killed until the survivor owns everything."""

    async def operation(lane: int, index: int) -> Latency:
        name = token_hex(4)
        replica_set = ReplicaSet(bench.store, name, heartbeat_interval=_INTERVAL, stale_after=_STALE_AFTER)
        async with replica_set.join() as survivor:
            killed_at = time.perf_counter()
            await bench.store.replica_sets.join(name, "killed", stale_after=_STALE_AFTER)
            await _until_it_owns(survivor, bench.store.options.partition_count // 2)
            await _until_it_owns(survivor, bench.store.options.partition_count)
            return Latency(time.perf_counter() - killed_at)

    return operation


@benchmark(_WAITS, "share of whoever joins (interval 0.3 s)", tasks=TASKS[:1], counts_round_trips=False, share=0.04)
async def joining(bench: Bench, tasks: int) -> Operation:
    """Measures from joining until the new worker owns its half, which the other one hands over."""

    async def operation(lane: int, index: int) -> Latency:
        replica_set = ReplicaSet(bench.store, token_hex(4), heartbeat_interval=_INTERVAL, stale_after=_STALE_AFTER)
        async with replica_set.join():
            joined_at = time.perf_counter()
            async with replica_set.join() as member:
                await _until_it_owns(member, bench.store.options.partition_count // 2)
                return Latency(time.perf_counter() - joined_at)

    return operation


async def _until_it_owns(member: Any, count: int) -> None:
    async with asyncio.timeout(60):
        while len(member.partitions) != count:
            await member.changed()
