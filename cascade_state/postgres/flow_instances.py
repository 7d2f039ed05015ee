"""Flow instances on PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from cascade_state.abc.flow_instances import AddResult, FlowInstances, InstancePosition
from cascade_state.abc.guards import Guard
from cascade_state.errors import Conflict, LeaseLost, NotFound, SerializationError, StoreError, TransactionAborted
from cascade_state.model.advance import AdvancePlan, Limits
from cascade_state.model.events import FlowEvent
from cascade_state.model.export import ExportDocument
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.leases import Lease
from cascade_state.postgres import diagnosis, removal, transfer
from cascade_state.postgres.advance_values import ADD, ADD_WAITING, ADVANCE, ADVANCE_WAITING
from cascade_state.postgres.direct import Record, Statement
from cascade_state.postgres.event_rows import event_from_record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.instance_rows import instance_from_record, lease_from_record
from cascade_state.postgres.matching import match_keys
from cascade_state.postgres.operations import Operation
from cascade_state.postgres.statements import flow_instances as statements
from cascade_state.postgres.statements.parameters import columns
from cascade_state.types import JsonObject

__all__ = ["FIND", "PostgresFlowInstances"]

_log = logging.getLogger("cascade_state.flow_instances")

_ADD_BATCH = 1000  # flows in one statement of add_many
_RACES = 20  # how often a terminal advance gives way to timers that are scheduled at the same time


class _Find(Operation[UUID]):
    """Reads flow instances by id."""

    def keys(self, item: UUID) -> Collection[Hashable]:
        return ()  # readers of one flow may share a batch

    def prepare(self, items: Sequence[UUID], executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        if len(items) == 1:
            identity = items[0]
            return statements.FIND_ONE, {
                "wanted_partition_id": executor.partition_of(identity),
                "wanted_flow_instance_id": identity,
            }
        rows = [(position, executor.partition_of(item), item) for position, item in enumerate(items)]
        return statements.FIND_MANY, columns("wanted", ("item", *statements.IDENTITY_COLUMNS), rows)


FIND = _Find()


class PostgresFlowInstances(FlowInstances):
    """See `FlowInstances`."""

    def __init__(self, executor: Executor, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._executor = executor

    # Writing

    async def _write(self, plan: AdvancePlan) -> FlowInstance:
        if plan.is_new:
            return await self._add(plan)
        for _ in range(_RACES):
            record = await self._written(plan)
            if record is not None:
                self._hint(plan)
                return plan.stored(record["written_at"])
            await diagnosis.raise_why_not_advanced(self._executor, plan)
        raise StoreError("timers of the flow kept being scheduled while it ended")

    async def _add(self, plan: AdvancePlan) -> FlowInstance:
        for _ in range(_RACES):
            record = await self._written(plan)
            if record is not None:
                self._hint(plan)
                return plan.stored(record["written_at"])
            error = await diagnosis.why_not_added(self._executor, plan)
            if error is not None:
                raise error
        raise TransactionAborted(reason="what the new flow conflicted with kept coming and going")

    async def _written(self, plan: AdvancePlan) -> Record | None:
        """Runs the plan's statement; and, when it adds waits, the second one that matches them with early events."""
        if not plan.add_waits:
            return await self._executor.one(ADD if plan.is_new else ADVANCE, plan)
        # In lines of their own: they take their keys' locks, and other steps must not wait for these.
        record = await self._executor.one(ADD_WAITING if plan.is_new else ADVANCE_WAITING, plan)
        if record is not None:
            await match_keys(self._executor, [wait.correlation_key for wait in plan.add_waits])
        return record

    def _hint(self, plan: AdvancePlan) -> None:
        """Tells others where a timer or a wait may have become claimable, and what was recorded."""
        partition_id = self._executor.partition_of(plan.instance.flow_instance_id)
        if plan.schedule or plan.add_waits:
            self._executor.hint(partition_id)
        if plan.events:
            self._executor.hint(partition_id, "events")

    async def _add_many(self, plans: Sequence[AdvancePlan]) -> list[AddResult]:
        results: list[AddResult] = []
        for start in range(0, len(plans), _ADD_BATCH):
            results += await self._add_batch(plans[start : start + _ADD_BATCH])
        return results

    async def _add_batch(self, plans: Sequence[AdvancePlan]) -> list[AddResult]:
        unique, repeated = _first_of_each_id(plans)
        statement, values = ADD.prepare([plans[position] for position in unique], self._executor)
        records = await self._executor.fetch(statement, values)
        written = {unique[record["item"]]: record["written_at"] for record in records}
        keys = [wait.correlation_key for position in written for wait in plans[position].add_waits]
        if keys:
            await match_keys(self._executor, keys)
        results = []
        for position, plan in enumerate(plans):
            if position in written:
                self._hint(plan)
                results.append(AddResult(instance=plan.stored(written[position])))
            elif position in repeated:
                results.append(AddResult(error=diagnosis.id_exists(plan)))
            else:
                results.append(await self._add_rest(plan))
        return results

    async def _add_rest(self, plan: AdvancePlan) -> AddResult:
        """Returns why a flow of a batch was not inserted, or inserts it by itself if the reason is gone."""
        error = await diagnosis.why_not_added(self._executor, plan)
        if error is not None:
            return AddResult(error=error)
        try:
            return AddResult(instance=await self._add(plan))
        except (Conflict, NotFound) as reason:
            return AddResult(error=reason)

    async def _remove(self, flow_instance_id: UUID) -> bool:
        return await removal.remove(self._executor, flow_instance_id)

    async def _purge(
        self, before: datetime, statuses: Sequence[FlowStatus], limit: int, dry_run: bool, force: bool
    ) -> int:
        return await removal.purge(self._executor, before, statuses, limit, dry_run=dry_run, force=force)

    # Reading

    async def _find(self, flow_instance_id: UUID) -> FlowInstance | None:
        record = await self._executor.one(FIND, flow_instance_id)
        return None if record is None else instance_from_record(record)

    async def _find_by_business_key(self, flow_id: str, business_key: str) -> FlowInstance | None:
        records = await self._executor.fetch(
            statements.FIND_BY_BUSINESS_KEY, {"flow_id": flow_id, "business_key": business_key}
        )
        return instance_from_record(records[0]) if records else None

    async def _list_page(
        self,
        filter: FlowInstanceFilter,
        limit: int,
        after: InstancePosition | None,
    ) -> tuple[list[FlowInstance], InstancePosition | None, list[SerializationError]]:
        statement = statements.list_statement(statements.filter_shape(filter), continued=after is not None)
        values = {**statements.filter_values(filter), **_continuation(after), "limit": limit + 1}
        records = await self._executor.fetch(statement, values)
        items, undecodable = _decoded(records[:limit])
        if len(records) <= limit:
            return items, None, undecodable
        last = records[limit - 1]
        return items, (last["created_at"], last["flow_instance_id"]), undecodable

    async def _count(self, filter: FlowInstanceFilter) -> int:
        statement = statements.count_statement(statements.filter_shape(filter))
        records = await self._executor.fetch(statement, statements.filter_values(filter))
        return int(records[0]["total"])

    async def _find_by_correlation(
        self, correlation_key: str, limit: int, after: InstancePosition | None
    ) -> list[FlowInstance]:
        values = {
            "partition_id": self._executor.partition_of_key(correlation_key),
            "correlation_key": correlation_key,
            "limit": limit,
            **_continuation(after),
        }
        statement = statements.find_by_correlation_statement(continued=after is not None)
        return [instance_from_record(record) for record in await self._executor.fetch(statement, values)]

    async def _history(self, flow_instance_id: UUID, limit: int, after: int) -> list[FlowEvent]:
        values = {
            "partition_id": self._executor.partition_of(flow_instance_id),
            "flow_instance_id": flow_instance_id,
            "limit": limit,
            "after": after,
        }
        return [event_from_record(record) for record in await self._executor.fetch(statements.HISTORY, values)]

    # Leases

    async def _claim(
        self,
        holder: str,
        filter: FlowInstanceFilter,
        limit: int,
        lease_duration: timedelta,
        partitions: frozenset[int] | None,
        orphans: bool,
    ) -> list[FlowInstance]:
        shape = statements.filter_shape(filter)
        if partitions is None and not orphans:
            statement = statements.claim_statement(shape)
            values = statements.filter_values(filter)
        else:
            # Orphans are few among many, so even in all partitions it looks only where they can be.
            everywhere = range(self._executor.options.partition_count)
            statement = statements.claim_in_statement(shape, orphans=orphans)
            values = statements.claim_in_values(filter, everywhere if partitions is None else partitions)
        values |= {
            "now": self._executor.now(),
            "holder": holder,
            "limit": limit,
            "lease_duration": lease_duration,
        }
        records = await self._executor.fetch(statement, values)
        items, undecodable = _decoded(records)
        for error in undecodable:  # left claimed, out of the way of the others
            _log.warning("skipping a claimed flow instance: %s", error)
        return items

    async def _renew(
        self, instances: Sequence[FlowInstance], lease_duration: timedelta, skip_locked: bool
    ) -> list[FlowInstance]:
        statement = statements.RENEW_FREE if skip_locked else statements.RENEW
        values = {**self._held(instances), "now": self._executor.now(), "lease_duration": lease_duration}
        records = await self._executor.fetch(statement, values)
        leases = {record["flow_instance_id"]: lease_from_record(record) for record in records}
        return [
            replace(instance, lease=leases[instance.flow_instance_id])
            for instance in instances
            if instance.flow_instance_id in leases and _same_token(instance, leases[instance.flow_instance_id])
        ]

    async def _release(self, instances: Sequence[FlowInstance]) -> None:
        wanted = {(instance.flow_instance_id, _token(instance)): instance for instance in instances}
        values = {**self._held(list(wanted.values())), "held_count": len(wanted)}
        records = await self._executor.fetch(statements.RELEASE, values)
        held = {(record["flow_instance_id"], record["lease_token"]) for record in records}
        for (identity, token), instance in wanted.items():
            if (identity, token) not in held:
                holder = None if instance.lease is None else instance.lease.holder
                raise LeaseLost(entity="flow instance", key=identity, token=token, holder=holder)

    def _held(self, instances: Sequence[FlowInstance]) -> dict[str, Any]:
        rows = [
            (
                self._executor.partition_of(instance.flow_instance_id),
                instance.flow_instance_id,
                _token(instance),
            )
            for instance in instances
        ]
        return dict(columns("held", (*statements.IDENTITY_COLUMNS, "token"), rows))

    # Moving

    async def _export(self, flow_instance_id: UUID) -> JsonObject:
        return await transfer.export(self._executor, flow_instance_id)

    async def _import(self, document: ExportDocument) -> FlowInstance:
        instance = await transfer.import_(self._executor, document)
        for flow in document.flows:
            if flow.history:
                self._executor.hint(self._executor.partition_of(flow.instance.flow_instance_id), "events")
        return instance


def _first_of_each_id(plans: Sequence[AdvancePlan]) -> tuple[list[int], set[int]]:
    """Returns the positions of the first plan of each id, and those of the plans that repeat one."""
    seen: set[UUID] = set()
    unique: list[int] = []
    repeated: set[int] = set()
    for position, plan in enumerate(plans):
        identity = plan.instance.flow_instance_id
        if identity in seen:
            repeated.add(position)
        else:
            seen.add(identity)
            unique.append(position)
    return unique, repeated


def _continuation(after: InstancePosition | None) -> dict[str, Any]:
    return {} if after is None else {"after_at": after[0], "after_id": after[1]}


def _decoded(records: Sequence[Record]) -> tuple[list[FlowInstance], list[SerializationError]]:
    items: list[FlowInstance] = []
    undecodable: list[SerializationError] = []
    for record in records:
        try:
            items.append(instance_from_record(record))
        except SerializationError as error:
            undecodable.append(error)
    return items, undecodable


def _token(instance: FlowInstance) -> int | None:
    return None if instance.lease is None else instance.lease.token


def _same_token(instance: FlowInstance, lease: Lease | None) -> bool:
    return instance.lease is not None and lease is not None and instance.lease.token == lease.token
