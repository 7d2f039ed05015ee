"""Workers that join, leave and vanish at random while they write: each partition always has at most one writer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from cascade_state import LeaseLost, Store, open_store
from cascade_state.coordination import Member
from cascade_state.postgres.schema import migrate_database
from cascade_state.testing.contracts import rule
from tests.coordination.helping import PATIENCE, a_set, settled

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(180)]  # many stores are opened

_PARTITIONS = 16
_ROUNDS = 25
_STALE_AFTER = timedelta(milliseconds=600)
_TABLES = """
    CREATE TABLE latest (partition_id integer PRIMARY KEY, generation bigint);
    INSERT INTO latest SELECT partition_id, 0 FROM generate_series(0, 15) AS partition_id;
    CREATE TABLE writes (partition_id integer, generation bigint, worker_id text, generation_before bigint);
"""
# Each write tells what it found: the row of `latest` puts the writes of a partition in the order of their commits.
_WRITE = text("""
    WITH found AS (SELECT generation FROM latest WHERE partition_id = :partition FOR UPDATE),
         changed AS (UPDATE latest SET generation = :generation WHERE partition_id = :partition)
    INSERT INTO writes SELECT :partition, :generation, :worker, found.generation FROM found
""")


class _Worker:
    """A member with a store of its own, as a process has it, that writes in all its partitions."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._exits = AsyncExitStack()
        self._stays = asyncio.Event()
        self.refused = 0
        self.store: Store
        self.member: Member

    async def start(self) -> _Worker:
        self.store = await self._exits.enter_async_context(open_store(self._url, partition_count=_PARTITIONS))
        self._joining = a_set(self.store, stale_after=_STALE_AFTER).join()
        self.member = await self._joining.__aenter__()
        self._writing = asyncio.create_task(self._write())
        return self

    async def leave(self) -> None:
        self._stays.set()
        await self._writing
        await self._joining.__aexit__(None, None, None)
        await self._exits.aclose()

    async def vanish(self) -> None:
        """Loses its connections in the middle of everything; only then the member is told that it is over."""
        await self._exits.aclose()
        self._writing.cancel()
        await asyncio.wait([self._writing])
        await self._joining.__aexit__(None, None, None)

    async def _write(self) -> None:
        while not self._stays.is_set():
            for partition, generation in list(self.member.generations.items()):
                # Without `working_in`, so that hand-overs meet writes under way; half of them fence last.
                late = random.random() < 0.5
                try:
                    async with self.store.begin() as uow:
                        if not late:
                            await uow.fence(partition, generation, "shipping")
                        worker = self.member.worker_id
                        values = {"partition": partition, "generation": generation, "worker": worker}
                        await uow.connection.execute(_WRITE, values)
                        if late:
                            await uow.fence(partition, generation, "shipping")
                except LeaseLost:
                    self.refused += 1
            await asyncio.sleep(0)


@pytest.fixture
async def database(empty_database_url: str) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    await migrate_database(empty_database_url, partition_count=_PARTITIONS)
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute(_TABLES)
    yield empty_database_url, connection
    await connection.close()


@rule("ORC-13")
async def test_whoever_comes_and_goes_nobody_writes_in_what_is_not_its_own(
    database: tuple[str, asyncpg.Connection],
) -> None:
    url, connection = database
    random.seed(4)
    workers = [await _Worker(url).start() for _ in range(2)]
    gone: list[_Worker] = []
    for _ in range(_ROUNDS):
        choice = random.random()
        if len(workers) < 2 or (choice < 0.5 and len(workers) < 6):
            workers.append(await _Worker(url).start())
        else:
            worker = workers.pop(random.randrange(len(workers)))
            gone.append(worker)
            await (worker.leave() if choice < 0.8 else worker.vanish())
        await asyncio.sleep(random.random() * 0.1)
    await settled([worker.member for worker in workers], _PARTITIONS)
    await _until_everybody_writes(connection, workers)
    written = await connection.fetch("SELECT * FROM writes")
    assert [tuple(row) for row in written if row["generation_before"] > row["generation"]] == [], "after another owner"
    writers: dict[tuple[int, int], set[str]] = {}
    for row in written:
        writers.setdefault((row["partition_id"], row["generation"]), set()).add(row["worker_id"])
    assert max(map(len, writers.values())) == 1
    owners = {item.partition_id: item for item in await workers[0].store.replica_sets.list_assignments("shipping")}
    for partition, generation in writers:
        assert generation <= owners[partition].generation
    assert Counter(item.owner for item in owners.values()).keys() == {worker.member.worker_id for worker in workers}
    for worker in workers:
        await worker.leave()
    assert {row["partition_id"] for row in written} == set(range(_PARTITIONS))


async def _until_everybody_writes(connection: asyncpg.Connection, workers: list[_Worker]) -> None:
    """Waits until each of these has written in each of its partitions, under the generation it has now."""

    async def missing(all_of: Callable[[], set[tuple[Any, ...]]]) -> set[tuple[Any, ...]]:
        rows = await connection.fetch("SELECT DISTINCT partition_id, generation, worker_id FROM writes")
        return all_of() - {tuple(row) for row in rows}

    def now() -> set[tuple[Any, ...]]:
        return {
            (partition, generation, worker.member.worker_id)
            for worker in workers
            for partition, generation in worker.member.generations.items()
        }

    async with asyncio.timeout(PATIENCE):
        while await missing(now):  # noqa: ASYNC110 - others write
            await asyncio.sleep(0.05)
