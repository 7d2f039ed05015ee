"""The statement behind `store.statistics()`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Text, cast, func, literal_column, or_, select

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.feeds import failures, lags
from cascade_state.postgres.statements.parameters import NOW, TEXT
from cascade_state.postgres.tables import correlations, early_events, flow_instances, timers, workers

__all__ = ["STATISTICS"]

# Written out rather than bound: the planner must recognise the partial indexes without knowing the values.
_PENDING = literal_column("'PENDING'", TEXT)
_DEAD = literal_column("'DEAD'", TEXT)
_DELIVERED = literal_column("'DELIVERED'", TEXT)


def _statistics() -> Select[Any]:
    """One row. Each figure reads one index: the cost grows with what is counted, not with what rows hold."""
    by_status = (
        select(flow_instances.c.status, func.count().label("total"))
        .group_by(flow_instances.c.status)
        .subquery("by_status")
    )
    instances = select(func.json_object_agg(by_status.c.status, by_status.c.total)).scalar_subquery()
    living = select(func.count()).select_from(timers).where(timers.c.died_at.is_(None))
    overdue = (
        select(func.count().label("total"), func.min(timers.c.due_at).label("oldest"))
        .where(
            timers.c.died_at.is_(None),
            timers.c.due_at <= NOW,
            or_(timers.c.status == _PENDING, timers.c.lease_expires_at <= NOW),
        )
        .subquery("overdue")
    )
    dead = select(func.count()).select_from(timers).where(timers.c.died_at.is_not(None))
    delivered = select(func.count()).select_from(correlations).where(correlations.c.status == _DELIVERED)
    alive = select(func.count()).select_from(workers).where(workers.c.heartbeat_at + workers.c.stale_after > NOW)
    dead_letters = select(func.count()).select_from(early_events).where(early_events.c.status == _DEAD)
    return select(
        cast(instances, Text).label("instances_by_status"),
        living.scalar_subquery().label("timers_pending"),
        overdue.c.total.label("timers_overdue"),
        overdue.c.oldest.label("oldest_overdue_at"),
        dead.scalar_subquery().label("timers_dead"),
        delivered.scalar_subquery().label("deliveries_pending"),
        dead_letters.scalar_subquery().label("dead_letters"),
        alive.scalar_subquery().label("workers_alive"),
        _by_consumer(lags(), "events").label("consumer_lags"),
        _by_consumer(failures(), "partitions").label("consumer_failures"),
    )


def _by_consumer(figures: Select[Any], name: str) -> ColumnElement[str]:
    found = figures.subquery(f"{name}_of_consumers")
    return cast(select(func.json_object_agg(found.c.consumer, found.c[name])).scalar_subquery(), Text)


STATISTICS = Statement("statistics.read", _statistics)
