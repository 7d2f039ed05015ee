"""Statements about published events and about waits; `matching` pairs them, `deliveries` are what comes of it."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Select, and_, cast, delete, func, literal_column, null, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    BOOLEAN,
    INSTANT,
    INTEGER,
    INTERVAL,
    JSON_DOCUMENT,
    NOW,
    TEXT,
    UUID_VALUE,
    param,
)
from cascade_state.postgres.statements.waits import event, is_waiting, wait

__all__ = ["CANCEL", "PUBLISH", "list_waiting_statement"]


def _publish() -> Select[Any]:
    """Stores an event under its key's lock, unless its id is remembered."""
    lock = select(func.pg_advisory_xact_lock(param("lock_key", BIGINT)).label("locked")).cte("lock")
    rows = select(
        param("partition_id", INTEGER).label("partition_id"),
        param("correlation_key", TEXT).label("correlation_key"),
        param("event_id", TEXT).label("event_id"),
        param("payload", JSON_DOCUMENT).label("payload"),
        param("mode", TEXT).label("mode"),
        literal_column("'NEW'", TEXT).label("status"),
        NOW.label("published_at"),
        param("ordinal", BIGINT).label("ordinal"),
        func.coalesce(param("expires_at", INSTANT), NOW + param("lifetime", INTERVAL)).label("expires_at"),
        cast(null(), TEXT).label("reason"),
    ).select_from(lock)
    statement = insert(event).from_select([column.name for column in rows.selected_columns], rows)
    new = statement.excluded
    published = (
        statement.on_conflict_do_update(
            index_elements=["partition_id", "correlation_key", "event_id"],
            set_={
                name: new[name]
                for name in ("payload", "mode", "status", "published_at", "ordinal", "expires_at", "reason")
            },
            where=or_(
                event.c.expires_at <= new.published_at,
                and_(param("replaces", BOOLEAN), event.c.status == literal_column("'DEAD'")),
            ),
        )
        .returning(event.c.event_id)
        .cte("published")
    )
    return select(published.c.event_id)


PUBLISH = Statement("correlations.publish", _publish)


CANCEL = Statement(
    "correlations.cancel",
    lambda: (
        delete(wait)
        .where(
            wait.c.flow_partition_id == param("flow_partition_id", INTEGER),
            wait.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
            wait.c.step_id == param("step_id", TEXT),
        )
        .returning(wait.c.correlation_key)
    ),
)


@cache
def list_waiting_statement(*, continued: bool) -> Statement:
    """Returns the statement that lists the waits of a key, oldest first."""
    return Statement("correlations.list_waiting", lambda: _list_waiting(continued))


def _list_waiting(continued: bool) -> Select[Any]:
    order = (wait.c.created_at, wait.c.flow_instance_id, wait.c.step_id)
    query = select(
        wait.c.correlation_key, wait.c.flow_instance_id, wait.c.step_id, wait.c.created_at, wait.c.expires_at
    ).where(
        wait.c.partition_id == param("partition_id", INTEGER),
        wait.c.correlation_key == param("correlation_key", TEXT),
        is_waiting(),
        or_(wait.c.expires_at.is_(None), wait.c.expires_at > NOW),
    )
    if continued:
        query = query.where(
            tuple_(*order)
            > tuple_(param("after_at", INSTANT), param("after_id", UUID_VALUE), param("after_step", TEXT))
        )
    return query.order_by(*order).limit(param("limit", BIGINT))
