"""Removing flow instances with all that belongs to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from cascade_state.memory.feeds import is_unhandled
from cascade_state.memory.rows import FlowKey, FlowRow
from cascade_state.memory.tables import Rows
from cascade_state.memory.transaction import View
from cascade_state.memory.writing import drop_timer, drop_wait
from cascade_state.model.flow_status import FlowStatus

__all__ = ["purge", "remove", "remove_flow"]


def remove(view: View, flow_instance_id: UUID) -> bool:
    """Removes one flow; returns whether there was one."""
    row = view.flow_instances.get(flow_instance_id.int)
    if row is None:
        return False
    remove_flow(view, row)
    return True


def remove_flow(view: View, row: FlowRow) -> None:
    """Removes a flow; waits for whoever works on it."""
    flow_key = row.flow_instance_id.int
    view.lock("flow_instances", flow_key)
    view.lock("existence", flow_key)
    if row.business_key is not None:
        key = (row.flow_id, row.business_key)
        view.lock("business_keys", key)
        view.business_keys.remove(key)
    for timer_key in _keys(view.timers, flow_key):
        drop_timer(view, timer_key)
    for wait_key in _keys(view.correlations, flow_key):
        drop_wait(view, wait_key)
    for state_key in _keys(view.component_states, flow_key):
        view.lock("component_states", state_key)
        view.component_states.remove(state_key)
    for result_key in _keys(view.step_results, flow_key):
        view.step_results.remove(result_key)
    for sequence in range(1, row.event_count + 1):
        view.flow_events.remove((flow_key, sequence))
    view.flow_instances.remove(flow_key)


def _keys(rows: Rows[Any, Any], flow_key: FlowKey) -> list[Any]:
    return [entry[-1] for entry in rows.entries("flow", flow_key)]


def purge(view: View, before: datetime, statuses: Sequence[FlowStatus], limit: int, dry_run: bool, force: bool) -> int:
    """Removes up to `limit` flows, oldest end first, whose whole families have ended; returns how many, or would."""
    chosen: list[FlowRow] = []
    families: dict[FlowKey, bool] = {}
    unhandled = is_unhandled(view)

    def may_go(row: FlowRow) -> bool:
        if row.completed_at is None or row.completed_at >= before or row.status not in statuses:
            return False
        last = view.flow_events.get((row.flow_instance_id.int, row.event_count))
        return force or last is None or not unhandled(last)

    for row in view.flow_instances.select("ended"):
        if len(chosen) == limit or row.completed_at is None or row.completed_at >= before:
            break
        root = row.root_id.int
        if root not in families:
            families[root] = all(map(may_go, _family(view, root)))
        if families[root] and (dry_run or _is_free(view, row.flow_instance_id.int)):
            chosen.append(row)
    if not dry_run:
        for row in chosen:
            remove_flow(view, row)
    return len(chosen)


def _family(view: View, root: FlowKey) -> Iterator[FlowRow]:
    """Yields the flows with this root, itself included if it is still there."""
    row = view.flow_instances.get(root)
    if row is not None:
        yield row
    yield from view.flow_instances.select("descendants", root)


def _is_free(view: View, flow_key: FlowKey) -> bool:
    return view.is_free("flow_instances", flow_key) and view.is_free("existence", flow_key)
