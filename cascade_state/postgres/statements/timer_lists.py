"""Statements that list timers, or tell when the next one is due."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, literal_column, select, tuple_

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    INSTANT,
    INTEGER,
    UUID_VALUE,
    WANTED_PARTITIONS,
    param,
    relation,
)
from cascade_state.postgres.statements.timers import CLAIMED, ONE, PENDING, timer_columns
from cascade_state.postgres.tables import timers

__all__ = [
    "LIST_DEAD",
    "LIST_DEAD_BEHIND",
    "LIST_FOR_INSTANCE",
    "LIST_FOR_INSTANCE_BEHIND",
    "NEXT_DUE_AT",
    "NEXT_DUE_AT_IN",
]


def _next_due_at() -> Select[Any]:
    """The first pending timer, or the first lease to end among the claimed timers before it.

    A claimed timer that is due later than the first pending one cannot come before it, so only the few
    claimed entries at the start of the index are read. Mostly the first living timer is pending: then it is read, and
    nothing else. Each reading passes the entries of timers that are done and were not vacuumed yet.
    """
    living = (
        select(timers.c.due_at, timers.c.status)
        .where(timers.c.died_at.is_(None))
        .order_by(timers.c.due_at, timers.c.timer_id)
        .limit(ONE)
        .cte("living")
    )
    pending = select(_first_pending().cte("pending").c.due_at).scalar_subquery()
    lease_ends = select(_first_lease_to_end(_front(pending).subquery("front"))).scalar_subquery()
    is_pending = select(living.c.status == PENDING).scalar_subquery()
    first = select(living.c.due_at).scalar_subquery()
    return select(case((is_pending, first), else_=func.least(pending, lease_ends)).label("next_due_at"))


def _next_due_at_in() -> Select[Any]:
    """The same in each of the chosen partitions, and the earliest of these."""
    wanted = relation("wanted", WANTED_PARTITIONS).subquery("wanted")
    here = timers.c.partition_id == wanted.c.partition_id
    pending = _first_pending().where(here).lateral("pending")
    front = _front(pending.c.due_at, here).lateral("front")
    always: ColumnElement[bool] = literal_column("true")
    return select(func.least(func.min(pending.c.due_at), _first_lease_to_end(front)).label("next_due_at")).select_from(
        wanted.outerjoin(pending, always).outerjoin(front, always)
    )


def _first_pending() -> Select[Any]:
    return (
        select(timers.c.due_at)
        .where(timers.c.died_at.is_(None), timers.c.status == PENDING)
        .order_by(timers.c.due_at, timers.c.timer_id)
        .limit(ONE)
    )


def _front(before: Any, *conditions: ColumnElement[bool]) -> Select[Any]:
    """The timers that are due before an instant, claimed ones only if that is the first pending one's.

    The limit makes the planner begin at the start of the index, where it would expect a third of the table before an
    instant that it does not know. Nobody has that many in hand; who has learns of the rest by polling.
    """
    return (
        select(timers.c.due_at, timers.c.status, timers.c.lease_expires_at)
        .where(
            timers.c.died_at.is_(None),
            timers.c.due_at < func.coalesce(before, literal_column("'infinity'::timestamptz", INSTANT)),
            *conditions,
        )
        .order_by(timers.c.due_at, timers.c.timer_id)
        .limit(literal_column("1000", INTEGER))
    )


def _first_lease_to_end(front: Any) -> ColumnElement[Any]:
    return func.min(func.greatest(front.c.due_at, front.c.lease_expires_at)).filter(front.c.status == CLAIMED)


NEXT_DUE_AT = Statement("timers.next_due_at", _next_due_at)
NEXT_DUE_AT_IN = Statement("timers.next_due_at.partitions", _next_due_at_in)


def _list(condition: ColumnElement[bool], *, continued: bool) -> Select[Any]:
    query = select(*timer_columns()).where(condition)
    if continued:
        after = tuple_(param("after_at", INSTANT), param("after_id", UUID_VALUE))
        query = query.where(tuple_(timers.c.due_at, timers.c.timer_id) > after)
    return query.order_by(timers.c.due_at, timers.c.timer_id).limit(param("limit", BIGINT))


def _of_instance() -> ColumnElement[bool]:
    return and_(
        timers.c.partition_id == param("partition_id", INTEGER),
        timers.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
    )


LIST_FOR_INSTANCE = Statement("timers.list_for_instance", lambda: _list(_of_instance(), continued=False))
LIST_FOR_INSTANCE_BEHIND = Statement("timers.list_for_instance.behind", lambda: _list(_of_instance(), continued=True))
LIST_DEAD = Statement("timers.list_dead", lambda: _list(timers.c.died_at.is_not(None), continued=False))
LIST_DEAD_BEHIND = Statement("timers.list_dead.behind", lambda: _list(timers.c.died_at.is_not(None), continued=True))
