"""PgQueuer: jobs enqueued in a batch, drained by one manager."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from benchmarks.peers.workloads import PAYLOAD, Run, Timing, Workload, seconds_of

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


WORKLOADS = {"due": Workload(run=_due, does=f"a job: fetched {_BATCH} at a time, ended in sets, logged by the way")}
