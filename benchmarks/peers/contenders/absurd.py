"""Absurd: tasks of steps, kept by functions in the database; its asynchronous client."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from benchmarks.peers.workloads import PAYLOAD, STEPS_A_FLOW, Run, Timing, WakeUps, Workload, seconds_of

_QUEUE = "default"
_CONCURRENCY = 20
_POLL_SECONDS = 0.25  # its default


async def _opened(run: Run) -> tuple[Any, Any]:
    """Returns a client that publishes and one that works, each with a connection of its own, as it has it."""
    client_class: Any = import_module("absurd_sdk").AsyncAbsurd
    # What `absurdctl init` sends.
    schema: str = import_module("absurdctl").BUNDLED_SCHEMA_SQL
    connection = await import_module("psycopg").AsyncConnection.connect(run.url, autocommit=True)
    await connection.execute(schema)
    await connection.close()
    client, worker = client_class(run.url, queue_name=_QUEUE), client_class(run.url, queue_name=_QUEUE)
    await client.create_queue()
    return client, worker


async def _drain(worker: Any, is_over: asyncio.Event, concurrency: int) -> None:
    running = asyncio.create_task(worker.start_worker(concurrency=concurrency))
    await is_over.wait()
    worker.stop_worker()
    await running


async def _closed(*clients: Any) -> None:
    for client in clients:
        await client.close()


async def _step(run: Run) -> Timing:
    client, worker = await _opened(run)
    flows = max(1, run.each // STEPS_A_FLOW) * run.tasks
    left = flows
    is_over = asyncio.Event()

    async def step() -> Any:
        return PAYLOAD

    @worker.register_task("flow")  # type: ignore[untyped-decorator]
    async def flow(parameters: Any, context: Any) -> None:
        nonlocal left
        for number in range(STEPS_A_FLOW):
            await context.step(f"s{number}", step)
        left -= 1
        if not left:
            is_over.set()

    for _ in range(flows):
        await client.spawn("flow", {}, queue=_QUEUE)
    seconds = await seconds_of(_drain(worker, is_over, run.tasks))
    await _closed(client, worker)
    return Timing(items=flows * STEPS_A_FLOW, seconds=seconds)


async def _due(run: Run) -> Timing:
    client, worker = await _opened(run)
    left = run.count
    is_over = asyncio.Event()

    @worker.register_task("job")  # type: ignore[untyped-decorator]
    async def job(parameters: Any, context: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            is_over.set()

    async def insert() -> None:
        for _ in range(run.count):
            await client.spawn("job", PAYLOAD, queue=_QUEUE)

    inserted = await seconds_of(insert())
    seconds = await seconds_of(_drain(worker, is_over, _CONCURRENCY))
    await _closed(client, worker)
    return Timing(items=run.count, insert_seconds=inserted, seconds=seconds)


async def _wake_up(run: Run) -> Timing:
    client, worker = await _opened(run)
    wake_ups = WakeUps()
    waits = asyncio.Event()

    @worker.register_task("wait")  # type: ignore[untyped-decorator]
    async def wait(parameters: Any, context: Any) -> None:
        waits.set()
        await context.await_event(parameters["key"])  # the first time it ends here, and the task is begun anew later
        wake_ups.begin()

    async def prepare(number: int) -> None:
        waits.clear()
        await client.spawn("wait", {"key": f"event {number}"}, queue=_QUEUE)
        await waits.wait()

    running = asyncio.create_task(worker.start_worker(concurrency=_CONCURRENCY))
    timing = await wake_ups.measure(
        run.count,
        lambda number: client.emit_event(f"event {number}", PAYLOAD),
        prepare=prepare,
        spread_seconds=_POLL_SECONDS,
    )
    worker.stop_worker()
    await running
    await _closed(client, worker)
    return timing


WORKLOADS = {
    "step": Workload(
        run=_step,
        does="context.step in a task of ten: one call looks for the step, one keeps its result; claiming and ending "
        "the task is part of it, spawning it is not",
        promises="a step whose result is kept is not run again; refused when another run has taken the task over",
    ),
    "due": Workload(
        run=_due,
        does=f"a task without steps, concurrency={_CONCURRENCY}: claimed {_CONCURRENCY} at a time by one call, ended "
        "by one call each, on one connection; its rows stay",
        promises="at least once; refused when another run has taken the task over",
    ),
    "wake-up": Workload(
        run=_wake_up,
        does="emit_event, and the task that waits is found by polling each 250 ms, its default, and begun anew",
        promises="an event before the wait is kept; the first of a name counts",
    ),
}
