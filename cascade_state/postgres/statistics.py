"""Figures of a store on PostgreSQL."""

from __future__ import annotations

import json

from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.statistics import Statistics
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements.statistics import STATISTICS

__all__ = ["read_statistics"]


async def read_statistics(executor: Executor) -> Statistics:
    """Returns the figures of one instant, in one statement."""
    record = (await executor.fetch(STATISTICS, {"now": executor.now()}))[0]
    by_status = json.loads(record["instances_by_status"] or "{}")
    return Statistics(
        instances_by_status={FlowStatus(status): total for status, total in by_status.items()},
        timers_pending=record["timers_pending"],
        timers_overdue=record["timers_overdue"],
        oldest_overdue_at=record["oldest_overdue_at"],
        timers_dead=record["timers_dead"],
        deliveries_pending=record["deliveries_pending"],
        dead_letters=record["dead_letters"],
        workers_alive=record["workers_alive"],
        consumer_lags=json.loads(record["consumer_lags"] or "{}"),
        consumer_failures=json.loads(record["consumer_failures"] or "{}"),
    )
