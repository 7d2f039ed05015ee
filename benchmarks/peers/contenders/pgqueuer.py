"""PgQueuer: jobs enqueued in a batch, drained by one manager."""

from __future__ import annotations

import asyncio
import json
from importlib import import_module
from typing import Any

from benchmarks.peers.workloads import PAYLOAD, Run, Timing, WakeUps, Workload, seconds_of

_BATCH = 100


async def _due(run: Run) -> Timing:
    asyncpg: Any = import_module("asyncpg")
    module: Any = import_module("pgqueuer")
    driver_class: Any = import_module("pgqueuer.db").AsyncpgDriver
    drain: Any = import_module("pgqueuer.types").QueueExecutionMode.drain
    connection = await asyncpg.connect(run.url)
    driver = driver_class(connection)
    queries = import_module("pgqueuer.queries").Queries(driver)
    await queries.install()
    payload = json.dumps(PAYLOAD).encode()

    async def insert() -> None:
        for begin in range(0, run.count, 1000):
            many = min(1000, run.count - begin)
            await queries.enqueue(["job"] * many, [payload] * many, [0] * many)

    inserted = await seconds_of(insert())
    manager = module.PgQueuer(driver)

    @manager.entrypoint("job")  # type: ignore[untyped-decorator]
    async def job(job: Any) -> None:
        return None

    drained = await seconds_of(manager.run(batch_size=_BATCH, mode=drain))
    await connection.close()
    return Timing(items=run.count, insert_seconds=inserted, seconds=drained)


async def _wake_up(run: Run) -> Timing:
    asyncpg: Any = import_module("asyncpg")
    module: Any = import_module("pgqueuer")
    driver_class: Any = import_module("pgqueuer.db").AsyncpgDriver
    publishing, working = await asyncpg.connect(run.url), await asyncpg.connect(run.url)
    queries = import_module("pgqueuer.queries").Queries(driver_class(publishing))
    await queries.install()
    wake_ups = WakeUps()
    manager = module.PgQueuer(driver_class(working))

    @manager.entrypoint("job")  # type: ignore[untyped-decorator]
    async def job(job: Any) -> None:
        wake_ups.begin()

    running = asyncio.create_task(manager.run())
    payload = json.dumps(PAYLOAD).encode()
    timing = await wake_ups.measure(run.count, lambda number: queries.enqueue("job", payload))
    manager.shutdown.set()
    await running
    await publishing.close()
    await working.close()
    return timing


WORKLOADS = {
    "due": Workload(
        run=_due,
        does=f"a job: fetched {_BATCH} at a time by one statement, ended in sets, each change logged in a row",
        promises="at least once; a job without heartbeat is taken again; its end does not ask who holds it",
    ),
    "wake-up": Workload(
        run=_wake_up,
        does="enqueue: a row, and NOTIFY by a trigger; who hears it fetches, then handles",
        promises="at least once; who was not listening finds the job by polling",
    ),
}
