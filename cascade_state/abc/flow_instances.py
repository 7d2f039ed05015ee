"""The repository of flow instances."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from cascade_state.abc.repository import DEFAULT_LIMIT, Repository, check_limit, cut, decode_position
from cascade_state.errors import (
    CascadeStateError,
    FlowInstanceNotFound,
    InvalidArgument,
    LeaseLost,
    SerializationError,
)
from cascade_state.model.advance import AdvancePlan, plan_advance
from cascade_state.model.arguments import (
    check_duration,
    check_instant,
    check_items,
    check_key,
    check_kind,
    check_partitions,
    check_uuid,
)
from cascade_state.model.events import FlowEvent
from cascade_state.model.export import ExportDocument, check_export
from cascade_state.model.filters import FlowInstanceFilter, check_statuses, checked_filter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import TERMINAL_STATUSES, FlowStatus
from cascade_state.model.lists import CursorList, Page, encode_cursor
from cascade_state.types import JsonObject

__all__ = ["AddResult", "FlowInstances", "InstancePosition"]

_log = logging.getLogger("cascade_state.flow_instances")

InstancePosition = tuple[datetime, UUID]  # the sort key of lists of flow instances


@dataclass(frozen=True, slots=True, kw_only=True)
class AddResult:
    """What became of one item of `add_many`; exactly one of the two is None."""

    instance: FlowInstance | None = None
    error: CascadeStateError | None = None


class FlowInstances(Repository, ABC):
    """Flow instances. Lists are ordered by `created_at`, then id (C-26)."""

    async def add(self, instance: FlowInstance) -> FlowInstance:
        """Stores a new flow instance with all its pending changes, and returns it at version 1.

        The id makes a repeated call harmless: it raises `AlreadyExists` instead of storing twice.

        Raises:
            AlreadyExists: The id is taken, or the business key is taken among the flows of this flow id
                (C-25); `existing_id` tells by whom.
            FlowDefinitionNotFound: The definition's version is not deployed, or is undeployed.
            InvalidArgument: The instance was stored before, or a value cannot be stored.
        """
        return await self.write(self._plan_new(instance))

    async def add_many(self, instances: Iterable[FlowInstance]) -> list[AddResult]:
        """Stores new flow instances and returns a result for each, in order; one round trip per thousand.

        An item that conflicts, with a stored flow or with an earlier item, has its error in its result and
        the others are stored. One unusable value raises before anything is sent.

        Raises:
            InvalidArgument: See `add`.
        """
        plans = [self._plan_new(instance) for instance in check_items(instances, "instances")]
        with self._guard.call(writes=True):
            return await self._add_many(plans)

    async def get(self, flow_instance_id: UUID) -> FlowInstance:
        """Returns the flow instance.

        Raises:
            FlowInstanceNotFound: There is none.
            SerializationError: It is stored, but cannot be decoded.
        """
        found = await self.find(flow_instance_id)
        if found is None:
            raise FlowInstanceNotFound(key=flow_instance_id)
        return found

    async def find(self, flow_instance_id: UUID) -> FlowInstance | None:
        """Returns the flow instance, or None.

        Raises:
            SerializationError: It is stored, but cannot be decoded.
        """
        check_uuid(flow_instance_id, "flow_instance_id")
        with self._guard.call(writes=False):
            return await self._find(flow_instance_id)

    async def find_by_business_key(self, flow_id: str, business_key: str) -> FlowInstance | None:
        """Returns the flow of this flow id with this business key, or None."""
        check_key(flow_id, "flow_id")
        check_key(business_key, "business_key")
        with self._guard.call(writes=False):
            return await self._find_by_business_key(flow_id, business_key)

    async def save(self, instance: FlowInstance) -> FlowInstance:
        """Stores the pending changes of a flow instance: `advance` without extras."""
        return await self.write(plan_advance(instance, limits=self._limits))

    async def write(self, plan: AdvancePlan) -> FlowInstance:
        """Writes an advance plan; `Store.advance` and `UnitOfWork.advance` say what that promises."""
        with self._guard.call(writes=True):
            return await self._write(plan)

    async def remove(self, flow_instance_id: UUID) -> bool:
        """Removes a flow; returns whether there was one.

        Its results, states, timers, waits, deliveries and history go with it. Its children stay.
        """
        check_uuid(flow_instance_id, "flow_instance_id")
        with self._guard.call(writes=True):
            return await self._remove(flow_instance_id)

    async def list_page(
        self,
        filter: FlowInstanceFilter | None = None,
        *,
        limit: int = DEFAULT_LIMIT,
        cursor: str | None = None,
    ) -> Page[FlowInstance]:
        """Returns one page of flow instances; those that cannot be decoded are reported in `undecodable`, not fatal.

        Raises:
            InvalidArgument: The cursor belongs to another filter, or a field of the filter is unusable.
        """
        chosen = checked_filter(filter)
        subject = ("flow_instances.list_page", chosen)
        after = decode_position(cursor, subject, datetime, UUID)
        with self._guard.call(writes=False):
            items, last, undecodable = await self._list_page(chosen, check_limit(limit), after)
        next_cursor = None if last is None else encode_cursor(subject, (last[0].isoformat(), str(last[1])))
        return Page(items=tuple(items), next_cursor=next_cursor, undecodable=tuple(undecodable))

    async def iterate(
        self,
        filter: FlowInstanceFilter | None = None,
        *,
        page_size: int = 500,
    ) -> AsyncIterator[FlowInstance]:
        """Yields all flow instances of a filter, page by page, each page by its own read.

        One that cannot be decoded is logged as a warning with its id, and passed over.
        """
        cursor: str | None = None
        while True:
            page = await self.list_page(filter, limit=page_size, cursor=cursor)
            for error in page.undecodable:
                _log.warning("undecodable flow_instance_id=%s reason=%s", error.key, error.reason)
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def count(
        self,
        filter: FlowInstanceFilter | None = None,
    ) -> int:
        """Returns how many flow instances a filter chooses."""
        chosen = checked_filter(filter)
        with self._guard.call(writes=False):
            return await self._count(chosen)

    async def find_by_correlation(
        self, correlation_key: str, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> CursorList[FlowInstance]:
        """Returns the flows with a step that waits for the key, or has a delivery for it that is not resumed yet."""
        subject = ("flow_instances.find_by_correlation", check_key(correlation_key, "correlation_key"))
        after = decode_position(cursor, subject, datetime, UUID)
        with self._guard.call(writes=False):
            rows = await self._find_by_correlation(correlation_key, check_limit(limit) + 1, after)
        return cut(rows, limit, subject, _sort_key)

    async def history(
        self, flow_instance_id: UUID, *, limit: int = 1000, cursor: str | None = None
    ) -> CursorList[FlowEvent]:
        """Returns what happened to a flow, in the order of `sequence`: 1, 2, 3 and so on."""
        subject = ("flow_instances.history", check_uuid(flow_instance_id, "flow_instance_id"))
        after = decode_position(cursor, subject, int)
        with self._guard.call(writes=False):
            rows = await self._history(flow_instance_id, check_limit(limit) + 1, 0 if after is None else after[0])
        return cut(rows, limit, subject, lambda row: (row.sequence,))

    async def claim(
        self,
        holder: str,
        *,
        filter: FlowInstanceFilter | None = None,
        limit: int = DEFAULT_LIMIT,
        lease_duration: timedelta,
        partitions: Collection[int] | None = None,
        orphans: bool = False,
    ) -> list[FlowInstance]:
        """Claims flows that have not ended and are held by nobody (no lease, or an expired one), oldest first.

        Each returned instance has its `lease`; pass it to `advance(…, lease=flow.lease)`. Neither sees nor
        waits for rows of another open unit of work. Does not change `version`.

        Args:
            partitions: Claims flows in these partitions only. Where there are more than `limit`, the oldest of all is
                claimed, then the oldest of its partition and status, then those of another. None: all.
            orphans: Claims only flows whose lease has expired: their holder vanished in the middle of its work.
        """
        check_key(holder, "holder")
        check_duration(lease_duration, "lease_duration")
        places = check_partitions(partitions, "partitions", self._limits.partition_count)
        chosen = checked_filter(filter)
        with self._guard.call(writes=True):
            if places is not None and not places:
                return []
            return await self._claim(holder, chosen, check_limit(limit), lease_duration, places, orphans)

    async def renew(
        self, instances: Iterable[FlowInstance], lease_duration: timedelta, *, skip_locked: bool = False
    ) -> list[FlowInstance]:
        """Extends leases to now + `lease_duration`; returns the instances that it renewed. What is missing was lost.

        Args:
            skip_locked: Does not wait for instances that another transaction holds, but returns them as they are:
                while it is open nobody can take them.
        """
        items = _held(instances)
        check_duration(lease_duration, "lease_duration")
        with self._guard.call(writes=True):
            return await self._renew(items, lease_duration, skip_locked)

    async def release(self, instances: Iterable[FlowInstance]) -> None:
        """Gives claimed flows back, all or nothing.

        Raises:
            LeaseLost: Naming the first whose lease is not current; nothing is released.
        """
        items = _held(instances)
        with self._guard.call(writes=True):
            await self._release(items)

    async def purge(
        self,
        before: datetime,
        *,
        statuses: Iterable[FlowStatus] = TERMINAL_STATUSES,
        limit: int = 1000,
        dry_run: bool = False,
        force: bool = False,
    ) -> int:
        """Removes up to `limit` flows that ended before an instant; returns how many (would be, with `dry_run`).

        A flow goes only together with its whole family: as long as one flow with the same root has not ended
        before the instant in one of the statuses, none of them is removed. Oldest first; repeat until it
        returns 0. Skips rows that another transaction holds, so it never blocks a worker.

        Their history goes with them. So a flow also waits until every consumer of the feed has handled its
        events, paused consumers included.

        Args:
            force: Whether to remove flows whose events some consumer has not handled, too. It will never see
                them.
        """
        before = check_instant(before, "before")
        chosen = check_statuses(statuses)
        if not TERMINAL_STATUSES.issuperset(chosen):
            raise InvalidArgument(argument="statuses", reason="may name only statuses of flows that have ended")
        with self._guard.call(writes=not dry_run):
            return await self._purge(before, chosen, check_limit(limit), bool(dry_run), bool(force))

    async def export(self, flow_instance_id: UUID) -> JsonObject:
        """Returns a flow with all that belongs to it as a JSON document with a `format_version`.

        Its definition, results, states, timers, waits, deliveries and history are included, and so are its
        children and theirs. Leases are not: nobody holds an imported flow.

        Raises:
            FlowInstanceNotFound: There is no such flow.
        """
        check_uuid(flow_instance_id, "flow_instance_id")
        with self._guard.call(writes=False):
            return await self._export(flow_instance_id)

    async def import_(self, document: JsonObject) -> FlowInstance:
        """Stores what `export` gave, all or nothing, and returns the flow; ids, versions and times are kept.

        Raises:
            AlreadyExists: One of the flows, or its business key, or another definition under the same
                version, is there.
            InvalidArgument: It is no export, or one of a format that this version of the library does not
                know.
        """
        checked = check_export(document, self._limits)
        with self._guard.call(writes=True):
            return await self._import(checked)

    def _plan_new(self, instance: FlowInstance) -> AdvancePlan:
        if check_kind(instance, FlowInstance, "instance").version != 0:
            raise InvalidArgument(argument="instance", reason="was stored before; save or advance it")
        return plan_advance(instance, limits=self._limits)

    @abstractmethod
    async def _write(self, plan: AdvancePlan) -> FlowInstance: ...

    @abstractmethod
    async def _add_many(self, plans: Sequence[AdvancePlan]) -> list[AddResult]: ...

    @abstractmethod
    async def _find(self, flow_instance_id: UUID) -> FlowInstance | None: ...

    @abstractmethod
    async def _find_by_business_key(self, flow_id: str, business_key: str) -> FlowInstance | None: ...

    @abstractmethod
    async def _remove(self, flow_instance_id: UUID) -> bool: ...

    @abstractmethod
    async def _list_page(
        self,
        filter: FlowInstanceFilter,
        limit: int,
        after: InstancePosition | None,
    ) -> tuple[list[FlowInstance], InstancePosition | None, list[SerializationError]]:
        """Returns the items, the position of the last row if more rows follow, and the rows that cannot be decoded."""

    @abstractmethod
    async def _count(self, filter: FlowInstanceFilter) -> int: ...

    @abstractmethod
    async def _find_by_correlation(
        self, correlation_key: str, limit: int, after: InstancePosition | None
    ) -> list[FlowInstance]: ...

    @abstractmethod
    async def _history(self, flow_instance_id: UUID, limit: int, after: int) -> list[FlowEvent]: ...

    @abstractmethod
    async def _claim(
        self,
        holder: str,
        filter: FlowInstanceFilter,
        limit: int,
        lease_duration: timedelta,
        partitions: frozenset[int] | None,
        orphans: bool,
    ) -> list[FlowInstance]: ...

    @abstractmethod
    async def _renew(
        self, instances: Sequence[FlowInstance], lease_duration: timedelta, skip_locked: bool
    ) -> list[FlowInstance]: ...

    @abstractmethod
    async def _release(self, instances: Sequence[FlowInstance]) -> None: ...

    @abstractmethod
    async def _purge(
        self, before: datetime, statuses: Sequence[FlowStatus], limit: int, dry_run: bool, force: bool
    ) -> int: ...

    @abstractmethod
    async def _export(self, flow_instance_id: UUID) -> JsonObject: ...

    @abstractmethod
    async def _import(self, document: ExportDocument) -> FlowInstance: ...


def _sort_key(instance: FlowInstance) -> tuple[str, str]:
    assert instance.created_at is not None  # noqa: S101 - stored rows have it
    return instance.created_at.isoformat(), str(instance.flow_instance_id)


def _held(instances: Iterable[FlowInstance]) -> tuple[FlowInstance, ...]:
    items = check_items(instances, "instances")
    for item in items:
        if check_kind(item, FlowInstance, "instances").lease is None:
            raise LeaseLost(entity="flow instance", key=item.flow_instance_id)
    return items
