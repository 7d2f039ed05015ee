"""The tables of the memory store and their indexes; the counterpart of the tables on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from operator import attrgetter
from typing import Any, TypeAlias

from cascade_state.ids import MAXIMUM_PARTITION_COUNT
from cascade_state.memory.indexes import ClaimIndex, Index
from cascade_state.memory.rows import (
    DefinitionRow,
    EventRow,
    FeedConsumerRow,
    FlowRow,
    HistoryRow,
    ResultRow,
    StateRow,
    TimerRow,
    WaitKey,
    WaitRow,
    WorkerRow,
)
from cascade_state.memory.sorted_keys import Entry
from cascade_state.memory.tables import Table, Undo
from cascade_state.model.timers import TimerStatus

__all__ = ["FEED_BUCKETS", "TABLES", "new_table", "wait_key"]

_Indexes: TypeAlias = dict[str, Index]

# The feed is indexed by the most partitions there can be: a partition of a smaller count is several of these.
FEED_BUCKETS = MAXIMUM_PARTITION_COUNT


def new_table(name: str, undo: Undo) -> Table[Any, Any]:
    """Returns an empty table."""
    return Table(TABLES[name](), undo, _INDEXED.get(name))


def wait_key(row: WaitRow) -> WaitKey:
    """Returns the key of a wait's row."""
    return row.correlation_key, row.flow_instance_id.int, row.step_id


def _definition_indexes() -> _Indexes:
    def visible(row: DefinitionRow) -> tuple[None, Entry] | None:
        return None if row.undeployed_at is not None else (None, ((row.flow_id, row.version),))

    return {
        "versions": Index(lambda row: (row.flow_id, ((row.flow_id, row.version),))),
        "visible": Index(visible),
    }


def _flow_indexes() -> _Indexes:
    def created(row: FlowRow) -> Entry:
        return row.created_at, row.flow_instance_id.int

    def descendant(row: FlowRow) -> tuple[int, Entry] | None:
        # Most flows have no family: a root has no entry of its own.
        return None if row.root_id == row.flow_instance_id else (row.root_id.int, created(row))

    def ended(row: FlowRow) -> tuple[None, Entry] | None:
        return None if row.completed_at is None else (None, (row.completed_at, row.flow_instance_id.int))

    def claimable(row: FlowRow) -> tuple[Entry, datetime | None] | None:
        return None if row.completed_at is not None else (created(row), row.lease_expires_at)

    return {
        "status": Index(lambda row: (row.status, created(row))),
        "flow": Index(lambda row: (row.flow_id, created(row))),
        "descendants": Index(descendant),
        "parent": Index(lambda row: None if row.parent_id is None else (row.parent_id.int, created(row))),
        "ended": Index(ended),
        "claimable": ClaimIndex(claimable),
    }


# Storing a step mostly changes none of these: the flow goes on running. A test holds it against the indexes.
_INDEXED: dict[str, Callable[[Any], Any]] = {
    "flow_instances": attrgetter(
        "flow_instance_id",
        "root_id",
        "parent_id",
        "flow_id",
        "status",
        "created_at",
        "completed_at",
        "lease_expires_at",
    )
}


def _result_indexes() -> _Indexes:
    def ended(row: ResultRow) -> tuple[int, Entry]:
        return row.flow_key, (row.completed_at, (row.flow_key, row.step_id))

    return {"flow": Index(ended)}


def _state_indexes() -> _Indexes:
    def by_step(row: StateRow) -> tuple[int, Entry]:
        flow_key = row.flow_instance_id.int
        return flow_key, ((flow_key, row.step_id),)

    return {"flow": Index(by_step)}


def _timer_indexes() -> _Indexes:
    def due(row: TimerRow) -> Entry:
        return row.due_at, row.timer_id.int

    def claimable(row: TimerRow) -> tuple[Entry, datetime | None] | None:
        return None if row.status is TimerStatus.DEAD else (due(row), row.lease_expires_at)

    return {
        "flow": Index(lambda row: (row.flow_instance_id.int, due(row))),
        "dead": Index(lambda row: (None, due(row)) if row.status is TimerStatus.DEAD else None),
        "claimable": ClaimIndex(claimable),
    }


def _wait_indexes() -> _Indexes:
    def by_key(row: WaitRow) -> tuple[str, Entry]:
        return row.correlation_key, (row.created_at, wait_key(row))

    def expiring(row: WaitRow) -> tuple[None, Entry] | None:
        if row.delivered_at is not None or row.expires_at is None:
            return None
        return None, (row.expires_at, wait_key(row))

    def claimable(row: WaitRow) -> tuple[Entry, datetime | None] | None:
        if row.delivered_at is None:
            return None
        return (row.available_at or row.delivered_at, wait_key(row)), row.lease_expires_at or row.available_at

    return {
        "key": Index(by_key),
        "waiting": Index(lambda row: None if row.delivered_at is not None else by_key(row)),
        "flow": Index(lambda row: (row.flow_instance_id.int, (wait_key(row),))),
        "expiring": Index(expiring),
        "claimable": ClaimIndex(claimable),
    }


def _event_indexes() -> _Indexes:
    def kept(row: EventRow) -> tuple[str, Entry] | None:
        if row.status != "KEPT":
            return None
        return row.correlation_key, (row.published_at, row.ordinal, (row.correlation_key, row.event_id))

    def expiring(row: EventRow) -> tuple[None, Entry] | None:
        return None if row.status == "DEAD" else (None, (row.expires_at, (row.correlation_key, row.event_id)))

    def dead(row: EventRow) -> tuple[None, Entry] | None:
        return None if row.status != "DEAD" else (None, (row.published_at, (row.correlation_key, row.event_id)))

    return {"kept": Index(kept), "expiring": Index(expiring), "dead": Index(dead)}


def _history_indexes() -> _Indexes:
    def feed(row: HistoryRow) -> tuple[None, Entry] | None:
        # Without a position it is not committed yet, and nobody's feed has it.
        if row.position is None:
            return None
        return None, (row.position, (row.flow_instance_id.int, row.sequence))

    def partition_feed(row: HistoryRow) -> tuple[int, Entry] | None:
        placed = feed(row)
        return None if placed is None else (row.flow_instance_id.int % FEED_BUCKETS, placed[1])

    return {"feed": Index(feed), "partition feed": Index(partition_feed)}


def _worker_indexes() -> _Indexes:
    def by_id(row: WorkerRow) -> Entry:
        return ((row.replica_set, row.worker_id),)

    return {
        "set": Index(lambda row: (row.replica_set, by_id(row))),
        "all": Index(lambda row: (None, by_id(row))),
    }


def _consumer_indexes() -> _Indexes:
    def by_name(row: FeedConsumerRow) -> tuple[None, Entry]:
        return None, (row.consumer,)

    return {"all": Index(by_name)}


TABLES: dict[str, Callable[[], _Indexes]] = {
    "flow_definitions": _definition_indexes,
    "flow_instances": _flow_indexes,
    "business_keys": dict,
    "step_results": _result_indexes,
    "component_states": _state_indexes,
    "timers": _timer_indexes,
    "correlations": _wait_indexes,
    "early_events": _event_indexes,
    "flow_events": _history_indexes,
    "replica_sets": dict,
    "workers": _worker_indexes,
    "partition_assignments": dict,
    "partition_targets": dict,
    "feed_consumers": _consumer_indexes,
    "feed_checkpoints": dict,
}
