"""Statements that heal and expire: rows whose process died half-way, waits that time out, events that are too old.

A claim of deliveries tells whether there is something to sweep, and sweeps before it claims again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, cast, delete, exists, literal_column, or_, select, union_all, update

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import JSON_DOCUMENT, NOW
from cascade_state.postgres.statements.waits import SWEEP, event, is_waiting, key, same_event, same_wait, wait

__all__ = ["EXPIRE", "UNMATCHED_KEYS", "is_anything_expired", "is_anything_unmatched"]

# A row that is NEW for longer than this lost its process between the two statements that make and match it.
_HEALING_AGE = timedelta(seconds=1)


def is_anything_unmatched() -> ColumnElement[bool]:
    """Whether some event or wait has not been looked at by a match for too long."""
    return or_(
        exists().where(wait.c.status == literal_column("'NEW'"), wait.c.created_at <= NOW - _HEALING_AGE),
        exists().where(event.c.status == literal_column("'NEW'"), event.c.published_at <= NOW - _HEALING_AGE),
    )


def is_anything_expired() -> ColumnElement[bool]:
    """Whether some wait or event is past its time."""
    return or_(
        exists().where(is_waiting(), wait.c.expires_at <= NOW),
        exists().where(event.c.status != literal_column("'DEAD'"), event.c.expires_at <= NOW),
    )


def _unmatched_keys() -> Select[Any]:
    waits = select(wait.c.correlation_key).where(
        wait.c.status == literal_column("'NEW'"), wait.c.created_at <= NOW - _HEALING_AGE
    )
    events = select(event.c.correlation_key).where(
        event.c.status == literal_column("'NEW'"), event.c.published_at <= NOW - _HEALING_AGE
    )
    keys = union_all(waits, events).subquery("keys")
    return select(keys.c.correlation_key).distinct().limit(SWEEP)


UNMATCHED_KEYS = Statement("correlations.unmatched_keys", _unmatched_keys)


def _expire() -> Select[Any]:
    """Turns expired waits into time-outs and expired events into dead letters, and forgets expired ids."""
    late = (
        select(*key())
        .where(is_waiting(), wait.c.expires_at <= NOW)
        .limit(SWEEP)
        .with_for_update(skip_locked=True)
        .cte("late")
    )
    timed_out = (
        update(wait)
        .where(same_wait(wait, late))
        .values(
            status="DELIVERED",
            timed_out=True,
            delivered_at=NOW,
            available_at=NOW,
            payload=cast(literal_column("'null'"), JSON_DOCUMENT),
        )
        .returning(wait.c.flow_partition_id)
        .cte("timed_out")
    )
    old = (
        select(event.c.partition_id, event.c.correlation_key, event.c.event_id, event.c.status)
        .where(event.c.status != literal_column("'DEAD'"), event.c.expires_at <= NOW)
        .limit(SWEEP)
        .with_for_update(skip_locked=True)
        .cte("old")
    )
    buried = (
        update(event)
        .where(same_event(event, old), old.c.status != literal_column("'SEEN'"))
        .values(status="DEAD", reason="expired")
        .cte("buried")
    )
    forgotten = delete(event).where(same_event(event, old), old.c.status == literal_column("'SEEN'")).cte("forgotten")
    return select(timed_out.c.flow_partition_id).distinct().add_cte(buried, forgotten)


EXPIRE = Statement("correlations.expire", _expire)
