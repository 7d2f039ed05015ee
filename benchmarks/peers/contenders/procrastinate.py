"""Procrastinate: jobs deferred in a batch, done by one worker."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.peers.workloads import PAYLOAD, Run, Timing, Workload, seconds_of

_CONCURRENCY = 20


async def _due(run: Run) -> Timing:
    module: Any = import_module("procrastinate")
    app = module.App(connector=module.PsycopgConnector(conninfo=run.url))

    @app.task(name="job")  # type: ignore[untyped-decorator]
    async def job(payload: Any) -> None:
        return None

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        inserted = await seconds_of(job.batch_defer_async(*({"payload": PAYLOAD} for _ in range(run.count))))
        drained = await seconds_of(
            app.run_worker_async(wait=False, concurrency=_CONCURRENCY, install_signal_handlers=False)
        )
    return Timing(items=run.count, insert_seconds=inserted, seconds=drained)


WORKLOADS = {
    "due": Workload(run=_due, does=f"a job: fetched by one call, ended by another; concurrency={_CONCURRENCY}")
}
