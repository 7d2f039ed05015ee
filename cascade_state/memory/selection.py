"""Which flow instances a filter chooses, in the order of their creation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from heapq import merge
from typing import Any
from uuid import UUID

from cascade_state.memory.containment import contains
from cascade_state.memory.rows import FlowRow
from cascade_state.memory.sorted_keys import Entry
from cascade_state.memory.transaction import View
from cascade_state.model.documents import load
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_status import FlowStatus

__all__ = ["count", "matches", "select"]


def select(view: View, chosen: FlowInstanceFilter, after: tuple[datetime, UUID] | None = None) -> Iterator[FlowRow]:
    """Yields the rows that a filter chooses, by (created_at, id), those behind `after` only."""
    for entry in _entries(view, chosen, _start(chosen, after)):
        if chosen.created_to is not None and entry[0] >= chosen.created_to:
            return
        row = view.flow_instances.get(entry[-1])
        if row is not None and matches(chosen, row):
            yield row


def count(view: View, chosen: FlowInstanceFilter) -> int:
    """Returns how many rows a filter chooses."""
    if chosen == FlowInstanceFilter(statuses=chosen.statuses):
        statuses = tuple(FlowStatus) if chosen.statuses is None else chosen.statuses
        return sum(view.flow_instances.size("status", status) for status in statuses)
    return sum(1 for _ in select(view, chosen))


def _start(chosen: FlowInstanceFilter, after: tuple[datetime, UUID] | None) -> Entry | None:
    """Returns what to begin behind: the position given, or the beginning of the range of creation."""
    behind: Entry | None = None if after is None else (after[0], after[1].int)
    if chosen.created_from is None:
        return behind
    start = (chosen.created_from,)  # before all entries of this instant
    return start if behind is None or behind < start else behind


def _entries(view: View, chosen: FlowInstanceFilter, after: Entry | None) -> Iterable[Entry]:
    """Returns the entries of the smallest index that has all that is wanted."""
    flows = view.flow_instances
    if chosen.parent_id is not None:
        return flows.entries("parent", chosen.parent_id.int, after=after)
    if chosen.flow_id is not None:
        return flows.entries("flow", chosen.flow_id, after=after)
    statuses = tuple(FlowStatus) if chosen.statuses is None else chosen.statuses
    return merge(*(flows.entries("status", status, after=after) for status in statuses))


def matches(chosen: FlowInstanceFilter, row: FlowRow) -> bool:
    """Tells whether a filter chooses a row."""
    return (
        (chosen.flow_id is None or row.flow_id == chosen.flow_id)
        and (chosen.flow_version is None or row.flow_version == chosen.flow_version)
        and (chosen.statuses is None or row.status in chosen.statuses)
        and (chosen.parent_id is None or row.parent_id == chosen.parent_id)
        and _has_prefix(row.business_key, chosen.business_key_prefix)
        and _is_within(row.created_at, chosen.created_from, chosen.created_to)
        and _is_within(row.updated_at, chosen.updated_from, chosen.updated_to)
        and _is_within(row.completed_at, chosen.completed_from, chosen.completed_to)
        and (chosen.search_attributes is None or _has_attributes(row, chosen.search_attributes))
    )


def _has_prefix(business_key: str | None, prefix: str | None) -> bool:
    return prefix is None or (business_key is not None and business_key.startswith(prefix))


def _is_within(instant: datetime | None, start: datetime | None, end: datetime | None) -> bool:
    if instant is None:
        return start is None and end is None
    return (start is None or instant >= start) and (end is None or instant < end)


def _has_attributes(row: FlowRow, wanted: Any) -> bool:
    return row.search_attributes != "{}" and contains(load(row.search_attributes), wanted)
