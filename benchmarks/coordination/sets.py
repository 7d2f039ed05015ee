"""Replica sets: how fast a killed worker's share is taken over, and how many partitions move against the minimum."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta

from cascade_state import Store, open_store
from cascade_state.coordination import ReplicaSet

__all__ = ["HEARTBEAT_INTERVAL", "STALE_AFTER", "measure_moves", "measure_take_over"]

HEARTBEAT_INTERVAL = timedelta(seconds=0.5)
STALE_AFTER = timedelta(seconds=2)

_SET = "bench"
_POLL_SECONDS = 0.01
_PATIENCE_SECONDS = 60
_MEMBER = f"""
import asyncio, sys
from datetime import timedelta
from cascade_state import open_store
from cascade_state.coordination import ReplicaSet

async def main():
    async with open_store(sys.argv[1]) as store:
        workers = ReplicaSet(
            store, {_SET!r},
            heartbeat_interval=timedelta(seconds={HEARTBEAT_INTERVAL.total_seconds()}),
            stale_after=timedelta(seconds={STALE_AFTER.total_seconds()}),
        )
        async with workers.join():
            print("ready", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


async def measure_take_over(url: str, rounds: int) -> list[float]:
    """Returns the seconds from the kill of one of three workers until the other two own everything, for each round."""
    seconds = []
    async with open_store(url) as store:
        await store.migrate()
        workers = ReplicaSet(store, _SET, heartbeat_interval=HEARTBEAT_INTERVAL, stale_after=STALE_AFTER)
        async with workers.join() as first, workers.join() as second:
            survivors = {first.worker_id, second.worker_id}
            for _ in range(rounds):
                victim = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", _MEMBER, url, stdout=asyncio.subprocess.PIPE
                )
                assert victim.stdout is not None
                await victim.stdout.readline()
                await _until_owned_by(store, 3)
                victim.kill()
                killed = time.monotonic()
                await victim.wait()
                await _until_owned_by(store, 2, survivors)
                seconds.append(time.monotonic() - killed)
    return seconds


async def _until_owned_by(store: Store, count: int, owners: set[str] | None = None) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            found = {item.owner for item in await store.replica_sets.list_assignments(_SET)}
            if None not in found and len(found) == count and owners in (None, found):
                return
            await asyncio.sleep(_POLL_SECONDS)


async def measure_moves(url: str, most: int) -> list[tuple[str, int, int]]:
    """Returns for each joining and leaving what it was, how many partitions changed their owner, and the minimum."""
    moves = []
    async with open_store(url) as store:
        await store.migrate()
        partitions = store.options.partition_count
        names = [f"worker-{number}" for number in range(1, most + 1)]
        for number, name in enumerate(names, start=1):
            before = await _generations(store)
            await store.replica_sets.join(_SET, name, stale_after=timedelta(hours=1))
            await _settle(store, names[:number])
            moves.append((f"{number} join", await _moved(store, before), partitions // number))
        for number in range(most, 1, -1):
            before = await _generations(store)
            share = sum(item.owner == names[number - 1] for item in await store.replica_sets.list_assignments(_SET))
            await store.replica_sets.leave(_SET, names[number - 1])
            await _settle(store, names[: number - 1])
            moves.append((f"{number} leave", await _moved(store, before), share))
    return moves


async def _settle(store: Store, names: list[str]) -> None:
    """Lets every worker send two heartbeats, which is what the design gives a set to be fair again."""
    for _ in range(2):
        for name in names:
            await store.replica_sets.beat(_SET, name, stale_after=timedelta(hours=1))


async def _generations(store: Store) -> dict[int, int]:
    return {item.partition_id: item.generation for item in await store.replica_sets.list_assignments(_SET)}


async def _moved(store: Store, before: dict[int, int]) -> int:
    after = await _generations(store)
    return sum(generation - before.get(partition, 0) for partition, generation in after.items())
