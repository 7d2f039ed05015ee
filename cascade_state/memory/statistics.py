"""Figures of a memory store."""

from __future__ import annotations

from cascade_state.memory.feeds import failures, lags
from cascade_state.memory.indexes import BUSY, FREE
from cascade_state.memory.transaction import View
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.statistics import Statistics

__all__ = ["statistics_of"]


def statistics_of(view: View) -> Statistics:
    """Returns the figures, read from indexes; only overdue timers are looked at one by one."""
    now = view.now()
    overdue = []
    for row in view.timers.select("claimable", FREE, now=now):
        if row.due_at > now:
            break
        if row.lease_expires_at is None or row.lease_expires_at <= now:
            overdue.append(row.due_at)
    flows, timers, waits = view.flow_instances, view.timers, view.correlations
    by_status = {status: flows.size("status", status) for status in FlowStatus}
    return Statistics(
        instances_by_status={status: total for status, total in by_status.items() if total},
        timers_pending=timers.size("claimable", FREE) + timers.size("claimable", BUSY),
        timers_overdue=len(overdue),
        oldest_overdue_at=overdue[0] if overdue else None,
        timers_dead=timers.size("dead"),
        deliveries_pending=waits.size("claimable", FREE) + waits.size("claimable", BUSY),
        dead_letters=view.early_events.size("dead"),
        workers_alive=sum(row.heartbeat_at + row.stale_after > now for row in view.workers.select("all")),
        consumer_lags=lags(view),
        consumer_failures=failures(view),
    )
