"""Statements of the consumers of the feed themselves: where they start, whether they pause, that they are gone."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    not_,
    null,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as upsert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.feed_places import NIL, XID0, ZERO, every_partition, is_this_consumer
from cascade_state.postgres.statements.parameters import BIGINT, NOW, TEXT, param
from cascade_state.postgres.tables import feed_checkpoints, feed_consumers, workers

__all__ = ["FIND", "LIST", "PAUSE", "REGISTER", "REMOVE", "RESET", "RESUME"]

_consumer = feed_consumers.c
_checkpoint = feed_checkpoints.c

_SNAPSHOT = func.pg_current_snapshot()
_COLON, _COMMA, _NOTHING = (literal(text, TEXT) for text in (":", ",", ""))


def _found() -> tuple[ColumnElement[Any], ...]:
    return _consumer.consumer, _consumer.start, _consumer.started_at, _consumer.paused_at


def _start_xid() -> ColumnElement[Any]:
    """Where all checkpoints start: in front of every event, or of every one that may still come."""
    return case((param("start", TEXT) == literal_column("'beginning'"), XID0), else_=func.pg_snapshot_xmin(_SNAPSHOT))


def _start_snapshot() -> ColumnElement[Any]:
    return case((param("start", TEXT) == literal_column("'beginning'"), null()), else_=_what_is_committed())


def _what_is_committed() -> ColumnElement[str]:
    """The snapshot, with its own transaction among those under way: the server counts that one as visible to itself."""
    own, ends = func.pg_current_xact_id_if_assigned(), func.pg_snapshot_xmax(_SNAPSHOT)
    others = select(func.pg_snapshot_xip(_SNAPSHOT).label("xid"))
    under_way = union_all(others, select(own).where(own < ends)).subquery("under_way")
    listed = select(
        func.string_agg(cast(under_way.c.xid, Text), aggregate_order_by(_COMMA, under_way.c.xid))
    ).scalar_subquery()
    begins = func.pg_snapshot_xmin(_SNAPSHOT)
    return func.concat_ws(_COLON, cast(begins, Text), cast(ends, Text), func.coalesce(listed, _NOTHING))


def _register() -> Select[Any]:
    made = (
        upsert(feed_consumers)
        .from_select(
            ["consumer", "start", "start_snapshot", "started_at"],
            select(param("consumer", TEXT), param("start", TEXT), _start_snapshot(), NOW),
        )
        .on_conflict_do_nothing(index_elements=[_consumer.consumer])
        .returning(*_found())
        .cte("made")
    )
    partitions = every_partition()
    checkpoints = (
        insert(feed_checkpoints)
        .from_select(
            ["partition_id", "consumer", "recorded_xid", "flow_instance_id", "sequence", "updated_at"],
            select(partitions.c.number, made.c.consumer, _start_xid(), NIL, ZERO, NOW).join_from(
                made, partitions, true()
            ),
        )
        .cte("checkpoints")
    )
    return select(made).add_cte(checkpoints)


def _is_running(consumer: ColumnElement[str]) -> ColumnElement[bool]:
    return exists().where(
        workers.c.metadata.op("->>")(param("metadata_key", TEXT)) == consumer,
        workers.c.heartbeat_at + workers.c.stale_after > NOW,
    )


def _reset() -> Select[Any]:
    changed = (
        update(feed_consumers)
        .where(is_this_consumer(), not_(_is_running(_consumer.consumer)))
        .values(start=param("start", TEXT), start_snapshot=_start_snapshot(), started_at=NOW)
        .returning(_consumer.consumer)
        .cte("changed")
    )
    moved = (
        update(feed_checkpoints)
        .where(_checkpoint.consumer == changed.c.consumer)
        .values(
            recorded_xid=_start_xid(),
            flow_instance_id=NIL,
            sequence=ZERO,
            updated_at=NOW,
            attempts=ZERO,
            last_error=null(),
            failed_at=null(),
        )
        .cte("moved")
    )
    return select(changed).add_cte(moved)


def _remove() -> Select[Any]:
    gone = (
        delete(feed_consumers)
        .where(is_this_consumer(), not_(_is_running(_consumer.consumer)))
        .returning(_consumer.consumer)
        .cte("gone")
    )
    checkpoints = delete(feed_checkpoints).where(_checkpoint.consumer == gone.c.consumer).cte("checkpoints")
    return select(gone).add_cte(checkpoints)


def _set_paused(paused_at: Any) -> Select[Any]:
    """One record if there is such a consumer: whether it was paused before."""
    before = feed_consumers.alias("before")
    changed = update(feed_consumers).where(is_this_consumer()).values(paused_at=paused_at).cte("changed")
    return (
        select(before.c.paused_at.is_not(None).label("was_paused"))
        .where(before.c.consumer == param("consumer", TEXT))
        .add_cte(changed)
    )


REGISTER = Statement("feeds.register", _register)
FIND = Statement("feeds.find", lambda: select(*_found()).where(is_this_consumer()))
LIST = Statement(
    "feeds.list_consumers",
    lambda: (
        select(*_found())
        .where(_consumer.consumer > param("after", TEXT))
        .order_by(_consumer.consumer)
        .limit(param("limit", BIGINT))
    ),
)
PAUSE = Statement("feeds.pause", lambda: _set_paused(func.coalesce(_consumer.paused_at, NOW)))
RESUME = Statement("feeds.resume", lambda: _set_paused(null()))
RESET = Statement("feeds.reset", _reset)
REMOVE = Statement("feeds.remove", _remove)
