"""Statements that read the history events, of one flow or of all in feed order."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Text, cast, func, select, tuple_

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import BIGINT, TEXT, UUID_VALUE, param
from cascade_state.postgres.tables import flow_events

__all__ = ["READ_BEHIND", "READ_FIRST", "event_columns"]

_event = flow_events.c

# Below the oldest transaction that still runs: nobody can commit an event in front of these any more.
_SETTLED = _event.recorded_xid < func.pg_snapshot_xmin(func.pg_current_snapshot())
_FEED_ORDER = (_event.recorded_xid, _event.flow_instance_id, _event.sequence)


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


def _read(*conditions: ColumnElement[bool]) -> Any:
    return select(*event_columns()).where(_SETTLED, *conditions).order_by(*_FEED_ORDER).limit(param("limit", BIGINT))


READ_FIRST = Statement("events.read_first", _read)
READ_BEHIND = Statement(
    "events.read_behind",
    lambda: _read(
        tuple_(*_FEED_ORDER)
        > tuple_(
            cast(param("after_xid", TEXT), _event.recorded_xid.type),
            param("after_id", UUID_VALUE),
            param("after_sequence", BIGINT),
        )
    ),
)
