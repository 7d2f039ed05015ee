"""The statement that forgets old events of the feed: of what every consumer has handled, and without a gap."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, literal_column, not_, or_, select, true

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.events import IS_SETTLED, partition_feed
from cascade_state.postgres.statements.feed_places import ONE, START, every_partition, is_unhandled
from cascade_state.postgres.statements.parameters import BIGINT, BOOLEAN, INSTANT, param, unforeseen
from cascade_state.postgres.tables import flow_events

__all__ = ["PURGE_EVENTS"]

_event = flow_events.c

_PARTITIONS_AT_ONCE = 16
_KEY = ("partition_id", "flow_instance_id", "sequence")


def _purge_events() -> Any:
    """Removes from the front of a few partitions, those with the oldest events.

    A window decides: an event goes if it and all before it in its partition are old and handled. So a history has no
    gap, whatever the clocks did.
    """
    before, limit = param("before", INSTANT), param("limit", BIGINT)
    partitions = every_partition()
    oldest = (
        partition_feed(partitions.c.number, START, _event.recorded_at, (IS_SETTLED & _may_go()).label("may_go"))
        .limit(ONE)
        .correlate(partitions)
        .lateral("oldest")
    )
    old = (
        select(partitions.c.number)
        .join_from(partitions, oldest, and_(oldest.c.may_go, oldest.c.recorded_at < before))
        .order_by(oldest.c.recorded_at, partitions.c.number)
        .limit(literal_column(str(_PARTITIONS_AT_ONCE)))
        .cte("old")
    )
    key = (_event.partition_id, _event.recorded_xid, _event.flow_instance_id, _event.sequence)
    front = (
        partition_feed(old.c.number, START, *key, _event.recorded_at, _may_go().label("may_go"))
        .where(IS_SETTLED)
        .limit(unforeseen(limit))
        .correlate(old)
        .lateral("front")
    )
    order = (front.c.recorded_xid, front.c.flow_instance_id, front.c.sequence)
    goes = func.bool_and(and_(front.c.may_go, front.c.recorded_at < before)).over(
        partition_by=front.c.partition_id, order_by=order
    )
    judged = select(front, goes.label("goes")).join_from(old, front, true()).subquery("judged")
    chosen = (
        select(judged.c.partition_id, judged.c.flow_instance_id, judged.c.sequence)
        .where(judged.c.goes)
        .order_by(judged.c.partition_id, judged.c.recorded_xid, judged.c.flow_instance_id, judged.c.sequence)
        .limit(limit)
        .subquery("chosen")
    )
    event = flow_events.alias("event")
    locked = (
        select(event.c.partition_id, event.c.flow_instance_id, event.c.sequence)
        .join_from(chosen, event, and_(*(event.c[name] == chosen.c[name] for name in _KEY)))
        .with_for_update(of=event, skip_locked=True)
        .cte("locked")
    )
    return (
        delete(flow_events).where(and_(*(_event[name] == locked.c[name] for name in _KEY))).returning(_event.sequence)
    )


def _may_go() -> ColumnElement[bool]:
    return or_(param("force", BOOLEAN), not_(is_unhandled(_event)))


PURGE_EVENTS = Statement("feeds.purge_events", _purge_events)
