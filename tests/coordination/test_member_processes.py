"""Worker processes that are killed, stopped and continued: what they wrote shows that nobody wrote out of turn."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from cascade_state.postgres.schema import migrate_database
from cascade_state.testing.contracts import rule
from tests.coordination.helping import PATIENCE

# Processes are started one after the other, each as slow as the machine is loaded.
pytestmark = [pytest.mark.postgres, pytest.mark.timeout(180)]

_PROGRAM = Path(__file__).with_name("member_process.py")
_PARTITIONS = 16  # few, so that each is written to often
_TABLE = """
    CREATE TABLE writes (
        number bigserial PRIMARY KEY, replica_set text, partition_id integer, generation bigint, worker_id text
    )
"""
# The order of `number` within a partition is the order of the writers: each took it while it held the fence.
_WRITTEN = """
    SELECT number, replica_set, partition_id, generation, worker_id FROM writes WHERE number > $1 ORDER BY number
"""


class Process:
    """A worker process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.worker_id = ""

    @classmethod
    async def start(cls, url: str, replica_set: str) -> Process:
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, str(_PROGRAM), url, replica_set, stdin=pipe, stdout=pipe
            )
        )

    async def ready(self) -> Process:
        _, self.worker_id = (await self.heard()).split()
        return self

    async def heard(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self._process.stdout.readline()).decode().strip()

    async def tell(self, words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n".encode())
        await self._process.stdin.drain()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def leave(self) -> int:
        await self.tell("leave")
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Set:
    """Worker processes on one database, and what they wrote there."""

    def __init__(self, url: str, connection: asyncpg.Connection) -> None:
        self._url = url
        self._connection = connection
        self.processes: list[Process] = []

    async def start(self, count: int, replica_set: str = "shipping") -> list[Process]:
        started = [await Process.start(self._url, replica_set) for _ in range(count)]
        self.processes += started
        return [await process.ready() for process in started]

    async def written(self, since: int = 0) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._connection.fetch(_WRITTEN, since)
        return rows

    async def so_far(self) -> int:
        """Returns the number of the last write."""
        number: int = await self._connection.fetchval("SELECT coalesce(max(number), 0) FROM writes")
        return number

    async def until(self, condition: Callable[[list[asyncpg.Record]], bool], *, since: int = 0) -> None:
        """Waits until what was written after the write `since` fulfils the condition."""
        async with asyncio.timeout(PATIENCE):
            while not condition(await self.written(since)):  # noqa: ASYNC110 - other processes do not wake us
                await asyncio.sleep(0.1)

    async def until_shared_by(self, *workers: Process) -> None:
        """Waits until these, and nobody else, write in all partitions, each in its share."""
        since = await self.so_far()
        ids = {worker.worker_id for worker in workers}

        def shared(rows: list[asyncpg.Record]) -> bool:
            latest = {row["partition_id"]: row["worker_id"] for row in rows if row["replica_set"] == "shipping"}
            return set(latest.values()) == ids and len(latest) == _PARTITIONS

        await self.until(shared, since=since)

    async def owners(self) -> Counter[str]:
        rows = await self._connection.fetch(
            "SELECT owner FROM partition_assignments WHERE replica_set = 'shipping' AND owner IS NOT NULL"
        )
        return Counter(row["owner"] for row in rows)

    async def check(self) -> None:
        """Nobody wrote out of turn: a generation has one writer, who is silent once there is a newer one."""
        writers: dict[tuple[str, int, int], str] = {}
        newest: dict[tuple[str, int], int] = {}
        for row in await self.written():
            partition = row["replica_set"], row["partition_id"]
            assert writers.setdefault((*partition, row["generation"]), row["worker_id"]) == row["worker_id"]
            assert row["generation"] >= newest.get(partition, 0), "a write of a former owner"
            newest[partition] = row["generation"]


@pytest.fixture
async def workers(empty_database_url: str) -> AsyncIterator[Set]:
    async with _connected(empty_database_url) as connection:
        await migrate_database(empty_database_url, partition_count=_PARTITIONS)
        await connection.execute(_TABLE)
        running = Set(empty_database_url, connection)
        try:
            yield running
        finally:
            for process in running.processes:
                await process.kill()


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@rule("ORC-05", "ORC-13")
async def test_when_one_of_three_is_killed_the_others_own_everything(workers: Set) -> None:
    first, second, third = await workers.start(3)
    await workers.until_shared_by(first, second, third)
    await second.kill()
    await workers.until_shared_by(first, third)
    assert sorted((await workers.owners()).values()) == [_PARTITIONS // 2] * 2
    await workers.check()


@rule("ORC-01", "ORC-02", "ORC-03", "ORC-04", "ORC-08")
async def test_workers_come_and_go_and_each_works(workers: Set) -> None:
    """Who works on what, by joining, leaving and another set."""
    (first,) = await workers.start(1)
    await workers.until_shared_by(first)
    (second,), _ = await asyncio.gather(workers.start(1), workers.start(1, "billing"))
    await workers.until_shared_by(first, second)
    (third,) = await workers.start(1)
    await workers.until_shared_by(first, second, third)
    assert sorted((await workers.owners()).values()) == [5, 5, 6]
    assert await first.leave() == 0
    assert set(await workers.owners()) == {second.worker_id, third.worker_id}
    await workers.until_shared_by(second, third)
    written = await workers.written()
    assert {row["partition_id"] for row in written if row["replica_set"] == "billing"} == set(range(_PARTITIONS))
    assert {row["generation"] for row in written if row["replica_set"] == "billing"} == {1}
    await workers.check()


@pytest.mark.parametrize(("told", "answer"), [("hold", "LeaseLost"), ("hold fenced", "StoreUnavailable")])
@rule("ORC-13")
async def test_a_worker_that_was_stopped_for_too_long_stores_nothing(workers: Set, told: str, answer: str) -> None:
    """SIGSTOP past `stale_after` in the middle of a write, without the fence and with it; then SIGCONT."""
    stopped, other = await workers.start(2)
    await workers.until_shared_by(stopped, other)
    await stopped.tell(told)
    _, partition, generation = (await stopped.heard()).split()
    stopped.signal(signal.SIGSTOP)
    since = await workers.so_far()
    # With the fence held, its partition follows once the server has given up the idle transaction.
    await workers.until(
        lambda rows: (
            {row["partition_id"] for row in rows if row["worker_id"] == other.worker_id} == set(range(_PARTITIONS))
        ),
        since=since,
    )
    before = [row for row in await workers.written() if row["worker_id"] == stopped.worker_id]
    stopped.signal(signal.SIGCONT)
    await stopped.tell("go on")
    assert await stopped.heard() == answer
    written = await workers.written()
    assert [row for row in written if row["worker_id"] == stopped.worker_id] == before
    assert int(generation) < max(row["generation"] for row in written if row["partition_id"] == int(partition))

    def came_back(rows: list[asyncpg.Record]) -> bool:
        return len({row["worker_id"] for row in rows} - {other.worker_id, stopped.worker_id}) == 1

    await workers.until(came_back, since=since)
    await workers.check()
