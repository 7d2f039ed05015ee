"""Oban for Python: jobs enqueued in sets, done by one queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.peers.workloads import PAYLOAD, Run, Timing, WakeUps, Workload, seconds_of

NEEDS_PYTHON = (3, 12)

_LIMIT = 100
_INSERTED_AT_ONCE = 1000
_LOOK_SECONDS = 0.01


async def _installed(run: Run) -> tuple[Any, Any]:
    oban: Any = import_module("oban")
    pool = await oban.Oban.create_pool(run.url)
    await import_module("oban.schema").install(pool)
    return oban, pool


def _worker(oban: Any, handle: Callable[[], None]) -> Any:
    @oban.worker(queue="default")
    class Bench:
        async def process(self, job: Any) -> None:
            handle()

    return Bench


async def _due(run: Run) -> Timing:
    oban, pool = await _installed(run)
    first = asyncio.get_running_loop().create_future()

    def handle() -> None:
        if not first.done():
            first.set_result(time.perf_counter())

    worker = _worker(oban, handle)
    client = oban.Oban(pool=pool)

    async def insert() -> None:
        for begin in range(0, run.count, _INSERTED_AT_ONCE):
            many = min(_INSERTED_AT_ONCE, run.count - begin)
            await client.enqueue_many(worker.new(PAYLOAD) for _ in range(many))

    inserted = await seconds_of(insert())
    async with oban.Oban(pool=pool, queues={"default": _LIMIT}), pool.connection() as connection:
        begun = await first
        while not await _are_completed(connection, run.count):  # noqa: ASYNC110 - it is in the database
            await asyncio.sleep(_LOOK_SECONDS)
        seconds = time.perf_counter() - begun
    await pool.close()
    return Timing(items=run.count, insert_seconds=inserted, seconds=seconds)


async def _are_completed(connection: Any, count: int) -> bool:
    # No job is left to do; counting the completed ones would cost more than the rest.
    query = "SELECT 1 FROM oban_jobs WHERE state IN ('available', 'executing') LIMIT 1"
    found = await (await connection.execute(query)).fetchone()
    await connection.commit()
    if found is None:
        done = await (await connection.execute("SELECT count(*) FROM oban_jobs WHERE state = 'completed'")).fetchone()
        assert done[0] == count, f"{done[0]} of {count} are completed"
    return found is None


async def _wake_up(run: Run) -> Timing:
    oban, pool = await _installed(run)
    wake_ups = WakeUps()
    worker = _worker(oban, wake_ups.begin)
    async with oban.Oban(pool=pool, queues={"default": _LIMIT}) as running:
        timing = await wake_ups.measure(run.count, lambda number: running.enqueue(worker.new(PAYLOAD)))
    await pool.close()
    return timing


WORKLOADS = {
    "due": Workload(
        run=_due,
        does=f"limit={_LIMIT}: claimed by one statement, ended by a statement for each job; its row stays for a day. "
        "Timed from the first job's beginning",
        promises="at least once; the end of a job checks that it is the claim that it ends; who looks dead for a "
        "minute loses its jobs",
    ),
    "wake-up": Workload(
        run=_wake_up,
        does="enqueue: a job inserted, NOTIFY in its transaction; claimed, then handled",
        promises="at least once; who was not listening finds the job when it looks, each second",
    ),
}
