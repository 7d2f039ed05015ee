"""Statements about dead letters: deliveries that nobody can handle, and their list."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import CTE, Select, cast, delete, func, literal_column, not_, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import BIGINT, INSTANT, INTEGER, NOW, TEXT, param
from cascade_state.postgres.statements.waits import (
    SWEEP,
    event,
    given_deliveries,
    is_held,
    key,
    same_wait,
    wait,
)

__all__ = ["BURY_HELD", "BURY_WORN", "list_dead_letters_statement"]

_EVENT_COLUMNS = ("event_id", "payload", "mode", "published_at", "ordinal", "timed_out", "last_error")


def _bury(buried: CTE) -> Select[Any]:
    """Makes dead letters of deliveries; their waits wait again, those of worn-out time-outs go."""
    # A broadcast may be buried for several waiters at once; it is one dead letter.
    same_event = (buried.c.partition_id, buried.c.correlation_key, buried.c.event_id)
    first = func.row_number().over(partition_by=same_event, order_by=(buried.c.flow_instance_id, buried.c.step_id))
    one_each = select(buried, first.label("nth")).where(not_(buried.c.timed_out)).subquery("one_each")
    letters = select(
        one_each.c.partition_id,
        one_each.c.correlation_key,
        one_each.c.event_id,
        one_each.c.payload,
        # An imported delivery does not bring how and when its event was published.
        func.coalesce(one_each.c.mode, literal_column("'fifo'", TEXT)).label("mode"),
        literal_column("'DEAD'", TEXT).label("status"),
        func.coalesce(one_each.c.published_at, NOW).label("published_at"),
        func.coalesce(one_each.c.ordinal, literal_column("0", BIGINT)).label("ordinal"),
        NOW.label("expires_at"),
        func.coalesce(param("reason", TEXT), one_each.c.last_error, literal_column("'worn out'")).label("reason"),
    ).where(one_each.c.nth == literal_column("1"))
    statement = insert(event).from_select([column.name for column in letters.selected_columns], letters)
    dead = statement.on_conflict_do_update(
        index_elements=["partition_id", "correlation_key", "event_id"],
        set_={
            name: statement.excluded[name]
            for name in ("payload", "mode", "status", "published_at", "ordinal", "reason")
        },
    ).cte("dead")
    waiting_again = (
        update(wait)
        .where(same_wait(wait, buried), not_(buried.c.timed_out))
        .values(
            status="NEW",
            lease_holder=None,
            lease_expires_at=None,
            delivered_at=None,
            available_at=None,
            attempts=0,
            last_error=None,
            **dict.fromkeys(("event_id", "payload", "mode", "published_at", "ordinal")),
        )
        .cte("waiting_again")
    )
    removed = delete(wait).where(same_wait(wait, buried), buried.c.timed_out).cte("removed")
    return select(buried.c.correlation_key).distinct().add_cte(dead, waiting_again, removed)


def _lock() -> CTE:
    return select(func.pg_advisory_xact_lock(param("lock_key", BIGINT)).label("locked")).cte("lock")


def _bury_held() -> Select[Any]:
    given = given_deliveries()
    lock = _lock()
    held = (
        select(*key(*_EVENT_COLUMNS))
        .select_from(lock.join(given, literal_column("true")).join(wait, is_held(given)))
        .with_for_update(of=wait)
        .cte("buried")
    )
    return _bury(held)


def _bury_worn() -> Select[Any]:
    worn = (
        select(*key(*_EVENT_COLUMNS))
        .where(
            wait.c.status == literal_column("'DELIVERED'"),
            wait.c.available_at <= NOW,
            or_(wait.c.lease_holder.is_(None), wait.c.lease_expires_at <= NOW),
            wait.c.attempts >= param("max_attempts", INTEGER),
        )
        .limit(SWEEP)
        .with_for_update(skip_locked=True)
        .cte("buried")
    )
    return _bury(worn)


BURY_HELD = Statement("correlations.bury_held", _bury_held)
BURY_WORN = Statement("correlations.bury_worn", _bury_worn)


@cache
def list_dead_letters_statement(*, continued: bool) -> Statement:
    """Returns the statement that lists dead letters in the order of their publication."""
    return Statement("correlations.list_dead_letters", lambda: _list_dead_letters(continued))


def _list_dead_letters(continued: bool) -> Select[Any]:
    order = (event.c.published_at, event.c.correlation_key, event.c.event_id)
    query = select(
        event.c.correlation_key,
        event.c.event_id,
        cast(event.c.payload, TEXT).label("payload"),
        event.c.published_at,
        event.c.reason,
    ).where(event.c.status == literal_column("'DEAD'"))
    if continued:
        query = query.where(
            tuple_(*order) > tuple_(param("after_at", INSTANT), param("after_key", TEXT), param("after_event", TEXT))
        )
    return query.order_by(*order).limit(param("limit", BIGINT))
