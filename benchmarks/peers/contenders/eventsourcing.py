"""eventsourcing: an aggregate saved after each event, in threads, because it is synchronous."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.peers.workloads import PAYLOAD, Run, Timing, Workload, lanes


async def _step(run: Run) -> Timing:
    domain: Any = import_module("eventsourcing.domain")
    application_class: Any = import_module("eventsourcing.application").Application

    class Flow(domain.Aggregate):  # type: ignore[misc]
        @domain.event("StepCompleted")  # type: ignore[untyped-decorator]
        def complete_step(self, outputs: str) -> None:
            self.outputs = outputs

    parts = urlsplit(run.url)
    query = parse_qs(parts.query)
    application = application_class(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": parts.path.removeprefix("/"),
            "POSTGRES_HOST": query["host"][0],
            "POSTGRES_PORT": query["port"][0],
            "POSTGRES_USER": parts.username or "postgres",
            "POSTGRES_PASSWORD": parts.password or "",
            "POSTGRES_POOL_SIZE": str(run.tasks),
        }
    )
    flows = [Flow() for _ in range(run.tasks)]
    loop = asyncio.get_running_loop()

    def save(lane: int) -> None:
        flows[lane].complete_step(json.dumps(PAYLOAD))
        application.save(flows[lane])

    with ThreadPoolExecutor(run.tasks) as threads:
        timing = await lanes(run, lambda lane, index: loop.run_in_executor(threads, save, lane))
    application.close()
    return timing


WORKLOADS = {
    "step": Workload(
        run=_step,
        does="an event of an aggregate, saved in a transaction of its own, under a lock of the table; in threads",
        promises="refused when another event has the version; events are read without gaps",
    )
}
