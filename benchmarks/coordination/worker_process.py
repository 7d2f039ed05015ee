"""A worker in a process of its own: `python -m benchmarks.coordination.worker_process URL`."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from cascade_state import Timer, UnitOfWork, open_store
from cascade_state.coordination import Worker

__all__ = ["REPLICA_SET", "STARTED", "started_worker"]

REPLICA_SET = "bench"
STARTED = "CREATE TABLE bench_started (timer_id uuid PRIMARY KEY, lateness double precision NOT NULL)"

_START_SECONDS = 30


async def started_worker(url: str) -> asyncio.subprocess.Process:
    """Returns a worker process that is at work."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, url, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), _START_SECONDS) == b"ready\n"
    return process


async def _work(url: str) -> None:
    async def on_timer(timer: Timer, uow: UnitOfWork) -> None:
        lateness = (datetime.now(UTC) - timer.due_at).total_seconds()
        await uow.connection.exec_driver_sql(
            "INSERT INTO bench_started (timer_id, lateness) VALUES ($1, $2)", (timer.timer_id, lateness)
        )

    async with open_store(url, pool_size=16) as store:
        worker = Worker(store, replica_set=REPLICA_SET, on_timer=on_timer, concurrency=16)
        running = asyncio.create_task(worker.run())
        print("ready", flush=True)
        await running


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1]))
