"""This library."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from benchmarks.peers.workloads import PAYLOAD, Run, Timing, Workload, lanes, seconds_of
from cascade_state import FlowDefinition, FlowInstance, ScheduleTimer, StepDefinition, Store, open_store
from cascade_state.coordination import Worker

_BATCH = 100
_LEASE = timedelta(minutes=5)
_STEPS = ("s0", "s1", "s2")


async def _opened(store: Store) -> FlowDefinition:
    await store.migrate()
    steps = tuple(StepDefinition(step_id=step_id, component_type="x") for step_id in _STEPS)
    return await store.flow_definitions.deploy(FlowDefinition(flow_id="bench", steps=steps))


async def _step(run: Run) -> Timing:
    async with open_store(run.url) as store:
        definition = await _opened(store)
        flows = [await store.advance(FlowInstance.create(definition).start()) for _ in range(run.tasks)]

        async def operation(lane: int, index: int) -> None:
            step_id = _STEPS[index % len(_STEPS)]
            flows[lane] = await store.advance(flows[lane].complete_step(step_id, PAYLOAD))

        return await lanes(run, operation)


async def _due(run: Run, drained: Callable[[Store, int], Awaitable[object]]) -> Timing:
    async with open_store(run.url) as store:
        definition = await _opened(store)
        flow = await store.advance(FlowInstance.create(definition).start())

        async def insert() -> None:
            nonlocal flow
            for begin in range(0, run.count, _BATCH):
                many = range(min(_BATCH, run.count - begin))
                timers = [ScheduleTimer("s0", after=timedelta(0), payload=PAYLOAD) for _ in many]
                flow = await store.advance(flow, schedule=timers)

        inserted = await seconds_of(insert())
        return Timing(items=run.count, insert_seconds=inserted, seconds=await seconds_of(drained(store, run.count)))


async def _claim_and_complete(store: Store, count: int) -> None:
    while count:
        timers = await store.timers.claim_due("worker", limit=_BATCH, lease_duration=_LEASE)
        await store.timers.complete(timers)
        count -= len(timers)


async def _work(store: Store, count: int) -> None:
    left = count
    is_over = asyncio.Event()

    async def handler(timer: Any, uow: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            is_over.set()

    worker = Worker(store, on_timer=handler, concurrency=32, batch_size=_BATCH)
    running = asyncio.create_task(worker.run())
    await is_over.wait()
    await worker.stop()
    await running


WORKLOADS = {
    "step": Workload(
        run=_step, does="advance: the version checked, the flow, the step's result and history in one commit"
    ),
    "due": Workload(
        run=lambda run: _due(run, _claim_and_complete), does="timers.claim_due and timers.complete, 100 at a time"
    ),
}

# As "cascade_state/worker" in the tables: it does more for an item than the peers do, and takes its time for it.
VARIANTS = {
    "worker": {
        "due": Workload(
            run=lambda run: _due(run, _work),
            does="Worker(concurrency=32): a unit of work for each timer, acknowledged in the commit of its effect",
        )
    }
}
