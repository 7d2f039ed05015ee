"""A worker process that writes in its partitions, each write fenced and told in the table `writes`.

Run as `python member_process.py URL SET`. It says `ready` with its worker id, and then does what it is told, line by
line: `hold` begins a transaction in one of its partitions and writes without the fence, `fence` asks for the fence and
commits, `hold fenced` has the fence before it writes. It answers `holding PARTITION GENERATION`, then `stored` or the
name of the error. `leave` ends it.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from datetime import timedelta

from sqlalchemy import text

from cascade_state import CascadeStateError, LeaseLost, Store, StoreUnavailable, UnitOfWork, open_store
from cascade_state.coordination import Member, ReplicaSet

_INTERVAL = timedelta(milliseconds=100)
_STALE_AFTER = timedelta(seconds=1)
_PAUSE_SECONDS = 0.2  # the machine has other things to do
_WRITE = text(
    "INSERT INTO writes (replica_set, partition_id, generation, worker_id) "
    "VALUES (:replica_set, :partition_id, :generation, :worker_id)"
)
# What a stopped process holds is given back after a while.
_LIMIT = text("SET LOCAL idle_in_transaction_session_timeout = '1s'")


async def _write(uow: UnitOfWork, member: Member, partition_id: int, generation: int) -> None:
    values = {"partition_id": partition_id, "generation": generation, "worker_id": member.worker_id}
    await uow.connection.execute(_WRITE, {"replica_set": member.replica_set, **values})


async def _work(store: Store, member: Member) -> None:
    """Writes in each partition in turn, for ever."""
    while True:
        for partition_id in sorted(member.partitions):
            try:
                with member.working_in(partition_id) as generation:
                    async with store.begin() as uow:
                        await uow.connection.execute(_LIMIT)
                        await uow.fence(partition_id, generation, member.replica_set)
                        await _write(uow, member, partition_id, generation)
            except (LeaseLost, StoreUnavailable):
                continue
        await asyncio.sleep(_PAUSE_SECONDS)


async def _hold(stack: AsyncExitStack, store: Store, member: Member, *, fenced: bool) -> tuple[UnitOfWork, int, int]:
    partition_id, generation = min(member.generations.items())
    uow = await stack.enter_async_context(store.begin())
    if fenced:
        await uow.connection.execute(_LIMIT)
        await uow.fence(partition_id, generation, member.replica_set)
    await _write(uow, member, partition_id, generation)
    return uow, partition_id, generation


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def _obey(store: Store, member: Member) -> None:
    while True:
        told = (await asyncio.to_thread(sys.stdin.readline)).strip()
        if told in ("leave", ""):
            return
        try:
            async with AsyncExitStack() as stack:
                uow, partition_id, generation = await _hold(stack, store, member, fenced=told == "hold fenced")
                _say("holding", partition_id, generation)
                await asyncio.to_thread(sys.stdin.readline)
                if told == "hold":
                    await uow.fence(partition_id, generation, member.replica_set)
        except CascadeStateError as error:
            _say(type(error).__name__)
        else:
            _say("stored")


async def main(url: str, replica_set: str) -> None:
    async with open_store(url, partition_count=16) as store:
        joining = ReplicaSet(store, replica_set, heartbeat_interval=_INTERVAL, stale_after=_STALE_AFTER)
        async with joining.join() as member:
            _say("ready", member.worker_id)
            working = asyncio.create_task(_work(store, member))
            try:
                await _obey(store, member)
            finally:
                working.cancel()
                await asyncio.wait([working])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
