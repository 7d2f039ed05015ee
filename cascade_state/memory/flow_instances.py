"""Flow instances in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from uuid import UUID

from cascade_state.abc.flow_instances import AddResult, FlowInstances, InstancePosition
from cascade_state.abc.guards import Guard
from cascade_state.errors import CascadeStateError, LeaseLost, SerializationError, TransactionAborted
from cascade_state.memory import removal, selection, transfer
from cascade_state.memory.decoding import event_of, instance_of, lease_of
from cascade_state.memory.indexes import FREE
from cascade_state.memory.rows import FlowRow
from cascade_state.memory.runners import Runner
from cascade_state.memory.transaction import View
from cascade_state.memory.writing import write_plan
from cascade_state.model.advance import AdvancePlan, Limits
from cascade_state.model.events import FlowEvent
from cascade_state.model.export import ExportDocument
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.types import JsonObject

__all__ = ["MemoryFlowInstances"]

_log = logging.getLogger("cascade_state.flow_instances")


class MemoryFlowInstances(FlowInstances):
    """See `FlowInstances`."""

    def __init__(self, runner: Runner, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._runner = runner

    async def _write(self, plan: AdvancePlan) -> FlowInstance:
        return await self._runner.run(write_plan, plan)

    async def _add_many(self, plans: Sequence[AdvancePlan]) -> list[AddResult]:
        return await self._runner.run(_add_many, plans)

    async def _find(self, flow_instance_id: UUID) -> FlowInstance | None:
        return await self._runner.run(_find, flow_instance_id)

    async def _find_by_business_key(self, flow_id: str, business_key: str) -> FlowInstance | None:
        return await self._runner.run(_find_by_business_key, flow_id, business_key)

    async def _remove(self, flow_instance_id: UUID) -> bool:
        return await self._runner.run(removal.remove, flow_instance_id)

    async def _list_page(
        self,
        filter: FlowInstanceFilter,
        limit: int,
        after: InstancePosition | None,
    ) -> tuple[list[FlowInstance], InstancePosition | None, list[SerializationError]]:
        return await self._runner.run(_list_page, filter, limit, after)

    async def _count(self, filter: FlowInstanceFilter) -> int:
        return await self._runner.run(selection.count, filter)

    async def _find_by_correlation(
        self, correlation_key: str, limit: int, after: InstancePosition | None
    ) -> list[FlowInstance]:
        return await self._runner.run(_find_by_correlation, correlation_key, limit, after)

    async def _history(self, flow_instance_id: UUID, limit: int, after: int) -> list[FlowEvent]:
        return await self._runner.run(_history, flow_instance_id, limit, after)

    async def _claim(
        self,
        holder: str,
        filter: FlowInstanceFilter,
        limit: int,
        lease_duration: timedelta,
        partitions: frozenset[int] | None,
        orphans: bool,
    ) -> list[FlowInstance]:
        return await self._runner.run(_claim, holder, filter, limit, lease_duration, partitions, orphans)

    async def _renew(
        self, instances: Sequence[FlowInstance], lease_duration: timedelta, skip_locked: bool
    ) -> list[FlowInstance]:
        return await self._runner.run(_renew, instances, lease_duration, skip_locked)

    async def _release(self, instances: Sequence[FlowInstance]) -> None:
        await self._runner.run(_release, instances)

    async def _purge(
        self, before: datetime, statuses: Sequence[FlowStatus], limit: int, dry_run: bool, force: bool
    ) -> int:
        return await self._runner.run(removal.purge, before, statuses, limit, dry_run, force)

    async def _export(self, flow_instance_id: UUID) -> JsonObject:
        return await self._runner.run(transfer.export, flow_instance_id)

    async def _import(self, document: ExportDocument) -> FlowInstance:
        return await self._runner.run(transfer.import_, document)


def _add_many(view: View, plans: Sequence[AdvancePlan]) -> list[AddResult]:
    results = []
    for plan in plans:
        try:
            results.append(AddResult(instance=write_plan(view, plan)))
        except TransactionAborted:
            raise
        except CascadeStateError as error:  # raised before anything of this item was written
            results.append(AddResult(error=error))
    return results


def _find(view: View, flow_instance_id: UUID) -> FlowInstance | None:
    row = view.flow_instances.get(flow_instance_id.int)
    return None if row is None else instance_of(view, row)


def _find_by_business_key(view: View, flow_id: str, business_key: str) -> FlowInstance | None:
    holder = view.business_keys.get((flow_id, business_key))
    return None if holder is None else _find(view, holder.flow_instance_id)


def _list_page(
    view: View, chosen: FlowInstanceFilter, limit: int, after: InstancePosition | None
) -> tuple[list[FlowInstance], InstancePosition | None, list[SerializationError]]:
    rows = list(islice(selection.select(view, chosen, after), limit + 1))
    items: list[FlowInstance] = []
    undecodable: list[SerializationError] = []
    for row in rows[:limit]:
        try:
            items.append(instance_of(view, row))
        except SerializationError as error:
            undecodable.append(error)
    if len(rows) <= limit:
        return items, None, undecodable
    last = rows[limit - 1]
    return items, (last.created_at, last.flow_instance_id), undecodable


def _find_by_correlation(
    view: View, correlation_key: str, limit: int, after: InstancePosition | None
) -> list[FlowInstance]:
    waiting = {row.flow_instance_id.int for row in view.correlations.select("key", correlation_key)}
    behind = None if after is None else (after[0], after[1].int)
    found = []
    for flow_key in waiting:
        row = view.flow_instances.get(flow_key)
        if row is not None and (behind is None or (row.created_at, flow_key) > behind):
            found.append(row)
    found.sort(key=lambda row: (row.created_at, row.flow_instance_id.int))
    return [instance_of(view, row) for row in found[:limit]]


def _history(view: View, flow_instance_id: UUID, limit: int, after: int) -> list[FlowEvent]:
    flow = view.flow_instances.get(flow_instance_id.int)
    if flow is None:
        return []
    rows = (
        view.flow_events.get((flow_instance_id.int, sequence))
        for sequence in range(after + 1, min(after + limit, flow.event_count) + 1)
    )
    return [event_of(row) for row in rows if row is not None]


def _claim(
    view: View,
    holder: str,
    chosen: FlowInstanceFilter,
    limit: int,
    lease_duration: timedelta,
    partitions: frozenset[int] | None,
    orphans: bool,
) -> list[FlowInstance]:
    now = view.now()
    free: list[FlowRow] = []
    for row in view.flow_instances.select("claimable", FREE, now=now):
        is_held = row.lease_expires_at is not None and row.lease_expires_at > now
        if is_held or (orphans and row.lease_holder is None):
            continue
        if not (view.is_in(row.flow_instance_id.int, partitions) and selection.matches(chosen, row)):
            continue
        if view.is_free("flow_instances", row.flow_instance_id.int):
            free.append(row)
            if len(free) == limit:
                break
    claimed = (_claimed(view, row, holder, now + lease_duration) for row in free)
    return [instance for instance in claimed if instance is not None]


def _claimed(view: View, row: FlowRow, holder: str, expires_at: datetime) -> FlowInstance | None:
    """Puts a flow under a lease. One that cannot be decoded is left claimed, out of the way of the others."""
    flow_key = row.flow_instance_id.int
    view.lock("flow_instances", flow_key)
    row = row._replace(lease_holder=holder, lease_token=row.lease_token + 1, lease_expires_at=expires_at)
    view.flow_instances.put(flow_key, row)
    try:
        return instance_of(view, row)
    except SerializationError as error:
        _log.warning("skipping a claimed flow: %s", error)
        return None


def _renew(
    view: View, instances: Sequence[FlowInstance], lease_duration: timedelta, skip_locked: bool
) -> list[FlowInstance]:
    expires_at = view.now() + lease_duration
    renewed = []
    for instance in instances:
        row = _held_row(view, instance, lock=False)
        if row is not None and skip_locked and not view.is_free("flow_instances", row.flow_instance_id.int):
            renewed.append(instance)
        elif row is not None:
            view.lock("flow_instances", row.flow_instance_id.int)
            row = row._replace(lease_expires_at=expires_at)
            view.flow_instances.put(row.flow_instance_id.int, row)
            renewed.append(replace(instance, lease=lease_of(row)))
    return renewed


def _release(view: View, instances: Sequence[FlowInstance]) -> None:
    rows = []
    for instance in instances:
        row = _held_row(view, instance)
        if row is None:
            lease = instance.lease
            raise LeaseLost(
                entity="flow instance",
                key=instance.flow_instance_id,
                token=None if lease is None else lease.token,
                holder=None if lease is None else lease.holder,
            )
        rows.append(row)
    for row in rows:
        view.flow_instances.put(row.flow_instance_id.int, row._replace(lease_holder=None, lease_expires_at=None))


def _held_row(view: View, instance: FlowInstance, *, lock: bool = True) -> FlowRow | None:
    """Returns the flow's row if the instance's lease is current."""
    flow_key = instance.flow_instance_id.int
    row = view.flow_instances.get(flow_key)
    lease = instance.lease
    if row is None or lease is None or row.lease_token != lease.token or row.lease_holder is None:
        return None
    if lock:
        view.lock("flow_instances", flow_key)
    return row
