"""Procrastinate: jobs deferred in a batch, done by one worker."""

from __future__ import annotations

import asyncio
import contextlib
from importlib import import_module
from typing import Any

from benchmarks.peers.workloads import PAYLOAD, Run, Timing, WakeUps, Workload, seconds_of

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


async def _wake_up(run: Run) -> Timing:
    module: Any = import_module("procrastinate")
    app = module.App(connector=module.PsycopgConnector(conninfo=run.url))
    wake_ups = WakeUps()

    @app.task(name="job")  # type: ignore[untyped-decorator]
    async def job(payload: Any) -> None:
        wake_ups.begin()

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        worker = asyncio.create_task(app.run_worker_async(concurrency=_CONCURRENCY, install_signal_handlers=False))
        timing = await wake_ups.measure(run.count, lambda number: job.defer_async(payload=PAYLOAD))
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
    return timing


WORKLOADS = {
    "due": Workload(
        run=_due,
        does=f"a job: fetched by one call, ended by another, events of both kept by triggers; "
        f"concurrency={_CONCURRENCY}",
        promises="at least once, when the application retries stalled jobs; the end of a job does not ask who holds it",
    ),
    "wake-up": Workload(
        run=_wake_up,
        does="defer: a row, its event, and NOTIFY by a trigger; who hears it fetches, then handles",
        promises="at least once, as above; who was not listening finds the job by polling, each 5 s",
    ),
}
