"""Members of a replica set, as tasks of one process, on both back ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from cascade_state import Store
from cascade_state.coordination import Member, ReplicaSet

INTERVAL = timedelta(milliseconds=50)
STALE_AFTER = timedelta(seconds=20)  # not while a test runs, unless it says so
PATIENCE = 20.0


def a_set(store: Store, name: str = "shipping", **options: Any) -> ReplicaSet:
    return ReplicaSet(store, name, **{"heartbeat_interval": INTERVAL, "stale_after": STALE_AFTER, **options})


async def until(condition: Callable[[], bool], *members: Member) -> None:
    """Waits for something that members learn; woken by any change of any of them."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            waits = [asyncio.ensure_future(member.changed()) for member in members]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
            finally:
                for wait in waits:
                    wait.cancel()


def are_settled(members: list[Member], partition_count: int) -> Callable[[], bool]:
    def settled() -> bool:
        owned = Counter(partition for member in members for partition in member.partitions)
        sizes = [len(member.partitions) for member in members]
        return owned == Counter(range(partition_count)) and max(sizes) - min(sizes) <= 1

    return settled


async def test_a_member_knows_its_share(store: Store) -> None:
    async with a_set(store).join() as member:
        assert member.partitions == frozenset(range(store.options.partition_count))
        assert member.generations == dict.fromkeys(range(store.options.partition_count), 1)
        assert (member.replica_set, member.generation, member.is_alive, member.releasing) == ("shipping", 1, True, {})
        (worker,) = await store.replica_sets.list_workers("shipping")
        assert worker.worker_id == member.worker_id
        assert set(worker.metadata) == {"host", "pid"}
        async with store.begin() as uow:
            await uow.fence(3, member.generations[3], member.replica_set)
    assert not member.is_alive
    assert member.partitions == frozenset()
    assert await store.replica_sets.list_workers() == []


async def test_twenty_members_that_join_at_once_share_fairly(store: Store) -> None:
    async with AsyncExitStack() as stack:
        joins = [stack.enter_async_context(a_set(store).join()) for _ in range(20)]
        members = await asyncio.gather(*joins)
        await until(are_settled(members, store.options.partition_count), *members)
        assert len({member.worker_id for member in members}) == 20
    assert await store.replica_sets.list_workers() == []
