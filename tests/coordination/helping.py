"""Short intervals, and waiting for what members learn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from cascade_state import Store
from cascade_state.coordination import Member, ReplicaSet

__all__ = ["INTERVAL", "PATIENCE", "STALE_AFTER", "a_set", "settled", "until"]

INTERVAL = timedelta(milliseconds=50)
STALE_AFTER = timedelta(seconds=20)  # not while a test runs, unless it says so
PATIENCE = 30.0


def a_set(store: Store, name: str = "shipping", **options: Any) -> ReplicaSet:
    return ReplicaSet(store, name, **{"heartbeat_interval": INTERVAL, "stale_after": STALE_AFTER, **options})


async def until(condition: Callable[[], bool], members: Sequence[Member]) -> None:
    """Waits for something that members learn: looks again whenever one of them learns anything."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            waits = [asyncio.ensure_future(member.changed()) for member in members]
            try:
                # What a member knows can end by time alone, which wakes nobody while the loop is busy.
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=0.1)
            finally:
                for wait in waits:
                    wait.cancel()


async def settled(members: Sequence[Member], partition_count: int) -> None:
    """Waits until every partition belongs to exactly one of the members, and all have a fair share."""

    def are_settled() -> bool:
        owned = Counter(partition for member in members for partition in member.partitions)
        sizes = [len(member.partitions) for member in members]
        return owned == Counter(range(partition_count)) and max(sizes) - min(sizes) <= 1

    await until(are_settled, members)
