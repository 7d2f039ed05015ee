"""This library."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from benchmarks.databases.ways import INITIAL_SIZE, MAX_SIZE, build_template, test_once
from benchmarks.peers.workloads import PAYLOAD, WARM_UPS, Run, Timing, WakeUps, Workload, lanes, seconds_of, timed
from cascade_state import FlowDefinition, FlowInstance, ScheduleTimer, StepDefinition, Store, open_store
from cascade_state.coordination import Worker
from cascade_state.testing import DatabasePool, PostgresServer

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


async def _wake_up(run: Run) -> Timing:
    wake_ups = WakeUps()

    async def on_delivery(delivery: Any, uow: Any) -> None:
        wake_ups.begin()

    async with open_store(run.url) as publisher, open_store(run.url) as store:
        definition = await _opened(publisher)
        worker = Worker(store, on_delivery=on_delivery, handle_signals=False)
        running = asyncio.create_task(worker.run())
        timing = await wake_ups.measure(
            run.count,
            lambda number: publisher.correlations.publish(f"event {number}", PAYLOAD),
            prepare=lambda number: publisher.advance(
                FlowInstance.create(definition).start().suspend_for_event("s0", f"event {number}")
            ),
        )
        await worker.stop()
        await running
    return timing


def _tests(pause: float) -> Workload:
    async def run_tests(run: Run) -> Timing:
        name = urlsplit(run.url).path.removeprefix("/")
        latencies = []
        with PostgresServer.from_url(run.url.replace(f"/{name}?", "/postgres?", 1)) as server:
            await server.ensure_template_exists(f"{name}_template", build_template)
            async with DatabasePool(server, f"{name}_template", initial_size=INITIAL_SIZE, max_size=MAX_SIZE) as pool:
                for _ in range(WARM_UPS + run.count):
                    start = time.perf_counter()
                    async with pool.lease() as database:
                        await test_once(database.url, pause)
                    latencies.append(time.perf_counter() - start - pause)
                await pool.discard()
        return timed(latencies)

    return Workload(
        run=run_tests,
        does="DatabasePool.lease: one statement hands a database over; copies are made and dropped meanwhile",
        promises="a database that nobody had before; processes share the pool; what a killed one held returns",
    )


WORKLOADS = {
    "step": Workload(
        run=_step,
        does="advance, one statement: the version checked, the flow, the step's result and history in one commit; "
        "tasks share statements",
        promises="refused when the version has moved on; all of it or nothing",
    ),
    "due": Workload(
        run=lambda run: _due(run, _claim_and_complete),
        does="timers.claim_due and timers.complete, one statement each for 100",
        promises="at least once, under a lease; refused when another claim came between",
    ),
    "wake-up": Workload(
        run=_wake_up,
        does="correlations.publish matches the flow that waits; a hint after the commit; the worker claims, then "
        "handles in the transaction that acknowledges",
        promises="an event before the wait is kept; handled once in effect; a lost hint costs a poll",
    ),
    "database": _tests(0.0),
    "busy database": _tests(0.03),
}

# As "cascade_state/worker" in the tables: a handler is called for each item, as the peers do.
VARIANTS = {
    "worker": {
        "due": Workload(
            run=lambda run: _due(run, _work),
            does="Worker(concurrency=32): a handler for each timer, which writes nothing; acknowledgements go together",
            promises="handled once in effect: the handler's rows and the end of the timer are one commit",
        )
    }
}
