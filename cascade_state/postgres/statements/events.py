"""Statements that read the history events, of one flow or of all in feed order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, cast, func, select, tuple_
from sqlalchemy.dialects.postgresql import array

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import BIGINT, INTEGER, TEXT, UUID_VALUE, param, unforeseen
from cascade_state.postgres.tables import flow_events

__all__ = ["IS_SETTLED", "READ_BEHIND", "READ_FIRST", "READ_PARTITION", "event_columns", "partition_feed"]

_event = flow_events.c

# Below the oldest transaction that still runs: nobody can commit an event in front of these any more.
IS_SETTLED: ColumnElement[bool] = _event.recorded_xid < func.pg_snapshot_xmin(func.pg_current_snapshot())
_FEED_ORDER = (_event.recorded_xid, _event.flow_instance_id, _event.sequence)
_PARTITION_ORDER = (_event.partition_id, *_FEED_ORDER)


def event_columns() -> tuple[ColumnElement[Any], ...]:
    """The columns that make a flow event; xid8 travels as text, which every driver can read."""
    return (
        _event.flow_instance_id,
        _event.sequence,
        _event.event_type,
        cast(_event.payload, Text).label("payload"),
        _event.recorded_at,
        cast(_event.recorded_xid, Text).label("recorded_xid"),
    )


def _read(*conditions: ColumnElement[bool]) -> Select[Any]:
    return select(*event_columns()).where(IS_SETTLED, *conditions).order_by(*_FEED_ORDER).limit(param("limit", BIGINT))


def _after() -> tuple[ColumnElement[Any], ...]:
    return (
        cast(param("after_xid", TEXT), _event.recorded_xid.type),
        param("after_id", UUID_VALUE),
        param("after_sequence", BIGINT),
    )


def partition_feed(
    partition_id: ColumnElement[int], after: Sequence[ColumnElement[Any]], *selected: ColumnElement[Any]
) -> Select[Any]:
    """Returns the events of one partition behind a place in the feed, in feed order, settled or not.

    The planner must not take the index of all partitions and pass over those of others. So it is not to know that the
    order of one partition is that of all: the partition is in an array, and the order begins with it. Pass `after`, and
    a limit, as what it cannot know when it plans (`unforeseen`, or a column).
    """
    return (
        select(*selected)
        .where(_event.partition_id == func.any(array([partition_id])), tuple_(*_FEED_ORDER) > tuple_(*after))
        .order_by(*_PARTITION_ORDER)
    )


def _read_partition() -> Select[Any]:
    after = [unforeseen(value) for value in _after()]
    feed = partition_feed(param("partition_id", INTEGER), after, *event_columns())
    return feed.where(IS_SETTLED).limit(unforeseen(param("limit", BIGINT)))


READ_FIRST = Statement("events.read_first", _read)
READ_BEHIND = Statement("events.read_behind", lambda: _read(tuple_(*_FEED_ORDER) > tuple_(*_after())))
READ_PARTITION = Statement("events.read_partition", _read_partition)
