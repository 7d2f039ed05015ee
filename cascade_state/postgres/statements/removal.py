"""Removing flow instances, with what the foreign keys do not reach: business keys and correlations."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    exists,
    func,
    not_,
    or_,
    select,
)

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.feed_places import is_unhandled
from cascade_state.postgres.statements.parameters import BIGINT, BOOLEAN, INSTANT, INTEGER, UUID_VALUE, looked_up, param
from cascade_state.postgres.tables import correlations, flow_events, flow_instances, idempotency_keys

__all__ = ["COUNT_PURGEABLE", "PURGE", "REMOVE"]

flow: Table = flow_instances


def _removed(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Removes flows; results, states, timers and history go by their foreign keys. One record for each flow."""
    gone = (
        delete(flow)
        .where(*conditions)
        .returning(flow.c.partition_id, flow.c.flow_instance_id, flow.c.business_key)
        .cte("gone")
    )
    keys = (
        delete(idempotency_keys)
        .where(idempotency_keys.c.flow_instance_id == gone.c.flow_instance_id, gone.c.business_key.is_not(None))
        .cte("freed_keys")
    )
    waits = (
        delete(correlations)
        .where(
            correlations.c.flow_partition_id == gone.c.partition_id,
            correlations.c.flow_instance_id == gone.c.flow_instance_id,
        )
        .cte("removed_waits")
    )
    return select(gone.c.flow_instance_id).add_cte(keys, waits)


def _remove() -> Select[Any]:
    """Removes one flow; `version` is what the snapshot has of it, and `removed` whether it was removed.

    Waits that were stored since this statement's snapshot are invisible to it, and no foreign key takes them along.
    So a flow whose row (read afresh under its lock) is at another version than in the snapshot is left alone, and
    the caller tries again with a new snapshot.
    """
    seen = flow_instances.alias("seen")
    is_meant = and_(
        seen.c.partition_id == param("partition_id", INTEGER),
        seen.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
    )
    gone = _removed(
        flow.c.partition_id == param("partition_id", INTEGER),
        flow.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
        flow.c.version == select(seen.c.version).where(is_meant).scalar_subquery(),
    )
    return select(seen.c.version, exists(gone).label("removed")).where(is_meant)


REMOVE = Statement("flow_instances.remove", _remove)


def _purgeable(source: Any) -> ColumnElement[bool]:
    return and_(
        source.c.completed_at.is_not(None),
        source.c.completed_at < param("before", INSTANT),
        source.c.status == func.any(bindparam("statuses", type_=ARRAY(Text))),
        or_(param("force", BOOLEAN), ~_is_unhandled(source)),
    )


def _is_unhandled(source: Any) -> ColumnElement[bool]:
    """Whether some consumer of the feed has not handled a flow's last event."""
    last = flow_events.alias("last_event")
    return exists().where(
        last.c.partition_id == source.c.partition_id,
        last.c.flow_instance_id == source.c.flow_instance_id,
        last.c.sequence == source.c.event_count,
        is_unhandled(last.c),
    )


def _old() -> Select[Any]:
    """The oldest flows whose whole family (same root) may go."""
    relative = flow_instances.alias("relative")
    kept_relative = exists().where(
        relative.c.partition_id == flow.c.partition_id,
        relative.c.root_id == flow.c.root_id,
        or_(relative.c.completed_at.is_(None), not_(_purgeable(relative))),
    )
    return (
        select(flow.c.partition_id, flow.c.flow_instance_id)
        .where(_purgeable(flow), ~kept_relative)
        .order_by(flow.c.completed_at, flow.c.flow_instance_id)
        .limit(param("limit", BIGINT))
    )


def _purge() -> Select[Any]:
    locked = _old().with_for_update(skip_locked=True).cte("locked")
    old = looked_up(locked, {"partition_id": INTEGER, "flow_instance_id": UUID_VALUE}, "old")
    return _removed(flow.c.partition_id == old.c.partition_id, flow.c.flow_instance_id == old.c.flow_instance_id)


PURGE = Statement("flow_instances.purge", _purge)
COUNT_PURGEABLE = Statement(
    "flow_instances.count_purgeable",
    lambda: select(func.count().label("total")).select_from(_old().subquery("old")),
)
