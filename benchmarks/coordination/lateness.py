"""How late a timer's handler begins, while many are due each second and very many are pending."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import asyncpg

from benchmarks.coordination.worker_process import STARTED, started_worker
from benchmarks.loading import load
from cascade_state import FlowDefinition, FlowInstance, StepDefinition, open_store

__all__ = ["measure_lateness"]

_LEAD = timedelta(seconds=3)  # from the last schedule to the first due time
_PATIENCE_SECONDS = 120


async def measure_lateness(url: str, *, pending: int, a_second: int, seconds: int, workers: int) -> list[float]:
    """Returns the lateness of each timer in seconds: from its due time to the begin of its handler.

    The workers are processes of their own, and their handlers do what a short one does: a write in the transaction that
    acknowledges. Clocks of client and server are those of one machine.
    """
    async with open_store(url) as store:
        await store.migrate()
        steps = (StepDefinition(step_id="s0", component_type="x"), StepDefinition(step_id="s1", component_type="x"))
        definition = await store.flow_definitions.deploy(FlowDefinition(flow_id="bench", steps=steps))
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(STARTED)
            await load(connection, pending)
            processes = [await started_worker(url) for _ in range(workers)]
            try:
                count = a_second * seconds
                first = datetime.now(UTC) + _LEAD + timedelta(seconds=count / 5000)
                for start in range(0, count, 1000):
                    flows = [
                        FlowInstance.create(definition)
                        .start()
                        .suspend_for_timer("s0", due_at=first + timedelta(seconds=number / a_second))
                        for number in range(start, min(start + 1000, count))
                    ]
                    await store.flow_instances.add_many(flows)
                await _until_all_began(connection, count)
                rows = await connection.fetch("SELECT lateness FROM bench_started")
            finally:
                for process in processes:
                    process.terminate()
                    await process.wait()
        finally:
            await connection.close()
    return [row["lateness"] for row in rows]


async def _until_all_began(connection: asyncpg.Connection[asyncpg.Record], count: int) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while await connection.fetchval("SELECT count(*) FROM bench_started") < count:
        if time.monotonic() > end:
            raise TimeoutError(f"not all of {count} timers were handled in {_PATIENCE_SECONDS} s")
        await asyncio.sleep(0.2)
