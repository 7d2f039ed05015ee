"""Removing flow instances one by one, or in batches once they have ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from cascade_state.errors import TransactionAborted
from cascade_state.model.flow_status import FlowStatus
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements import removal as statements

__all__ = ["purge", "remove"]

_RACES = 20  # how often a removal gives way to advances of the flow at the same time


async def remove(executor: Executor, flow_instance_id: UUID) -> bool:
    """Removes one flow; returns whether there was one."""
    values = {"partition_id": executor.partition_of(flow_instance_id), "flow_instance_id": flow_instance_id}
    for _ in range(_RACES):
        records = await executor.fetch(statements.REMOVE, values)
        if not records:
            return False
        if records[0]["removed"]:
            return True
    raise TransactionAborted(reason="the flow kept being advanced while it was removed")


async def purge(
    executor: Executor, before: datetime, statuses: Sequence[FlowStatus], limit: int, *, dry_run: bool, force: bool
) -> int:
    """Removes up to `limit` flows whose families have ended; returns how many, or how many it would."""
    names = [status.value for status in statuses]
    values = {"before": before, "statuses": names, "limit": limit, "force": force}
    if dry_run:
        return int((await executor.fetch(statements.COUNT_PURGEABLE, values))[0]["total"])
    return len(await executor.fetch(statements.PURGE, values))
