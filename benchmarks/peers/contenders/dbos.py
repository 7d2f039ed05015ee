"""DBOS Transact: workflows of steps, and a queue of workflows."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from benchmarks.peers.workloads import PAYLOAD, STEPS_A_FLOW, Run, Timing, WakeUps, Workload, seconds_of

_PATIENCE_SECONDS = 60


def _launched(run: Run) -> Any:
    module: Any = import_module("dbos")
    url = run.url.replace("postgresql://", "postgresql+psycopg://", 1)
    module.DBOS(config={"name": "bench", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})
    return module


async def _step(run: Run) -> Timing:
    module = _launched(run)

    @module.DBOS.step()  # type: ignore[untyped-decorator]
    async def step(number: int) -> Any:
        return PAYLOAD

    @module.DBOS.workflow()  # type: ignore[untyped-decorator]
    async def flow() -> None:
        for number in range(STEPS_A_FLOW):
            await step(number)

    module.DBOS.launch()

    async def lane(flows: int) -> None:
        for _ in range(flows):
            handle = await module.DBOS.start_workflow_async(flow)
            await handle.get_result()

    async def all_lanes(flows: int) -> None:
        await asyncio.gather(*(lane(flows) for _ in range(run.tasks)))

    await all_lanes(1)
    flows = max(1, run.each // STEPS_A_FLOW)
    seconds = await seconds_of(all_lanes(flows))
    module.DBOS.destroy()
    return Timing(items=run.tasks * flows * STEPS_A_FLOW, seconds=seconds)


async def _due(run: Run) -> Timing:
    module = _launched(run)
    left = run.count
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()

    @module.DBOS.workflow()  # type: ignore[untyped-decorator]
    async def job(payload: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.call_soon_threadsafe(is_over.set)

    module.DBOS.launch()
    queue = await module.DBOS.register_queue_async("due", polling_interval_sec=0.1)

    async def insert() -> None:
        for _ in range(run.count):
            await queue.enqueue_async(job, PAYLOAD)

    seconds = await seconds_of(asyncio.gather(insert(), is_over.wait()))
    module.DBOS.destroy()
    return Timing(items=run.count, seconds=seconds)


async def _wake_up(run: Run) -> Timing:
    module = _launched(run)
    wake_ups = WakeUps()

    @module.DBOS.workflow()  # type: ignore[untyped-decorator]
    async def wait() -> None:
        while await module.DBOS.recv_async("event", timeout_seconds=_PATIENCE_SECONDS) is not None:
            wake_ups.begin()

    module.DBOS.launch()
    handle = await module.DBOS.start_workflow_async(wait)
    timing = await wake_ups.measure(
        run.count, lambda number: module.DBOS.send_async(handle.workflow_id, PAYLOAD, "event")
    )
    await module.DBOS.send_async(handle.workflow_id, None, "event")
    await handle.get_result()
    module.DBOS.destroy()
    return timing


WORKLOADS = {
    "step": Workload(
        run=_step,
        does="a step of a workflow of ten: asked whether it ran, then its result kept; starting and ending the "
        "workflow is part of it",
        promises="a step whose result is kept is not run again; two that run the same workflow are found out at a step",
    ),
    "due": Workload(
        run=_due,
        does="a queued workflow without steps; queueing it goes on at the same time",
        promises="at least once; what a dead process had is recovered when it starts again",
    ),
    "wake-up": Workload(
        run=_wake_up,
        does="send: a row, and NOTIFY by a trigger; recv in a workflow that waits takes it as a step",
        promises="a message before the wait is kept; taken once",
    ),
}
