"""LangGraph's checkpointer for PostgreSQL, used as its documentation does: `AsyncPostgresSaver`."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from uuid import uuid4

from benchmarks.peers.workloads import PAYLOAD, Run, Timing, Workload, lanes


async def _step(run: Run) -> Timing:
    saver_class: Any = import_module("langgraph.checkpoint.postgres.aio").AsyncPostgresSaver
    base: Any = import_module("langgraph.checkpoint.base")
    async with saver_class.from_conn_string(run.url) as saver:
        await saver.setup()
        configs: list[Any] = [
            {"configurable": {"thread_id": str(uuid4()), "checkpoint_ns": ""}} for _ in range(run.tasks)
        ]

        async def operation(lane: int, index: int) -> None:
            checkpoint = base.empty_checkpoint()
            versions = {"state": f"{index + 1:032}.0"}
            checkpoint["channel_values"] = {"state": PAYLOAD}
            checkpoint["channel_versions"] = versions
            configs[lane] = await saver.aput(configs[lane], checkpoint, {"source": "loop", "step": index}, versions)

        return await lanes(run, operation)


WORKLOADS = {
    "step": Workload(
        run=_step,
        does="aput: a checkpoint and its changed channel, two upserts in a pipeline, without the writes of its tasks; "
        "one at a time, for a saver has one lock",
        promises="the last one wins: nobody asks who may write",
    )
}
