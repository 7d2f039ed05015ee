"""Statements of feed consumers: where there is news, the next batch, checkpoints, lag, and what may be forgotten.

A checkpoint and an event are compared as (recorded_xid, flow_instance_id, sequence). Whatever covers many partitions
looks into each of them by the index of one partition: as many short descents, in one statement.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Select,
    TableValuedAlias,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import UserDefinedType

from cascade_state.model.feeds import COUNTED_LAG
from cascade_state.postgres.columns import XID8
from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.events import IS_SETTLED, event_columns, partition_feed, unforeseen
from cascade_state.postgres.statements.parameters import BIGINT, BOOLEAN, INSTANT, INTEGER, NOW, TEXT, UUID_VALUE, param
from cascade_state.postgres.tables import feed_checkpoints, feed_consumers, flow_events, workers

__all__ = [
    "COMPLETE",
    "FIND",
    "FIND_NEWS",
    "LAG",
    "LIST",
    "LIST_FAILING",
    "PAUSE",
    "PURGE_EVENTS",
    "READ_BATCH",
    "REGISTER",
    "REMOVE",
    "RESET",
    "RESUME",
    "RETRY",
    "Snapshot",
    "failures",
    "is_unhandled",
    "lags",
]

_consumer = feed_consumers.c
_checkpoint = feed_checkpoints.c
_event = flow_events.c

_SNAPSHOT = func.pg_current_snapshot()
_NIL = literal_column("'00000000-0000-0000-0000-000000000000'::uuid", UUID_VALUE)
_XID0 = literal_column("'0'::xid8", XID8())
_ZERO = literal_column("0", BIGINT)
_ONE = literal_column("1", INTEGER)
_COLON, _COMMA, _NOTHING = (literal(text, TEXT) for text in (":", ",", ""))

_PLACE = (_checkpoint.recorded_xid, _checkpoint.flow_instance_id, _checkpoint.sequence)


class Snapshot(UserDefinedType[str]):
    """What is stored as text, because no tool that reads schemas knows the type."""

    cache_ok: bool | None = True

    def get_col_spec(self, **_: Any) -> str:
        """Returns the name of the type."""
        return "pg_snapshot"


# Places


def _is_wanted(consumer: Any, event: Any) -> ColumnElement[bool]:
    """Whether a consumer that started "now" wants an event: one that was not committed then.

    Events of a flow may carry a later transaction's id than their own, so that they come in order: those that were
    appended to what was visible, by a transaction that was not. Their time tells them apart.
    """
    # Looked up by its key again, so that the event's entry in the index is enough wherever this is not asked.
    own, first = flow_events.alias("own"), flow_events.alias("first_of_transaction")
    was_appended = (
        exists()
        .where(
            own.c.partition_id == event.partition_id,
            own.c.flow_instance_id == event.flow_instance_id,
            own.c.sequence == event.sequence,
            first.c.partition_id == event.partition_id,
            first.c.flow_instance_id == event.flow_instance_id,
            first.c.sequence < event.sequence,
            first.c.recorded_xid == event.recorded_xid,
            first.c.recorded_at != own.c.recorded_at,
        )
        .correlate_except(own, first)
    )
    return or_(
        consumer.start_snapshot.is_(None),
        not_(func.pg_visible_in_snapshot(event.recorded_xid, cast(consumer.start_snapshot, Snapshot()))),
        was_appended,
    )


def is_unhandled(event: Any) -> ColumnElement[bool]:
    """Whether some consumer has not handled an event."""
    is_behind = tuple_(event.recorded_xid, event.flow_instance_id, event.sequence) > tuple_(*_PLACE)
    return (
        exists()
        .where(
            _checkpoint.partition_id == event.partition_id,
            _consumer.consumer == _checkpoint.consumer,
            is_behind,
            _is_wanted(_consumer, event),
        )
        .correlate_except(feed_checkpoints, feed_consumers)
    )


def _behind_checkpoint(*selected: ColumnElement[Any]) -> Select[Any]:
    """The events behind a checkpoint that its consumer wants; for a query that has both tables."""
    feed = partition_feed(_checkpoint.partition_id, _PLACE, *selected)
    return feed.where(_is_wanted(_consumer, _event)).correlate(feed_checkpoints, feed_consumers)


def _every_partition() -> TableValuedAlias:
    last = param("partition_count", INTEGER) - _ONE
    numbers = func.generate_series(cast(_ZERO, INTEGER), last).table_valued(column("number", INTEGER))
    return numbers.render_derived(name="every_partition")


# Consumers


def _found() -> tuple[ColumnElement[Any], ...]:
    return _consumer.consumer, _consumer.start, _consumer.started_at, _consumer.paused_at


def _is_named() -> ColumnElement[bool]:
    return _consumer.consumer == param("consumer", TEXT)


def _start_xid() -> ColumnElement[Any]:
    """Where all checkpoints start: in front of every event, or of every one that may still come."""
    return case((param("start", TEXT) == literal_column("'beginning'"), _XID0), else_=func.pg_snapshot_xmin(_SNAPSHOT))


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
    partitions = _every_partition()
    checkpoints = (
        insert(feed_checkpoints)
        .from_select(
            ["partition_id", "consumer", "recorded_xid", "flow_instance_id", "sequence", "updated_at"],
            select(partitions.c.number, made.c.consumer, _start_xid(), _NIL, _ZERO, NOW).join_from(
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
        .where(_is_named(), not_(_is_running(_consumer.consumer)))
        .values(start=param("start", TEXT), start_snapshot=_start_snapshot(), started_at=NOW)
        .returning(_consumer.consumer)
        .cte("changed")
    )
    moved = (
        update(feed_checkpoints)
        .where(_checkpoint.consumer == changed.c.consumer)
        .values(
            recorded_xid=_start_xid(),
            flow_instance_id=_NIL,
            sequence=_ZERO,
            updated_at=NOW,
            attempts=_ZERO,
            last_error=null(),
            failed_at=null(),
        )
        .cte("moved")
    )
    return select(changed).add_cte(moved)


def _remove() -> Select[Any]:
    gone = (
        delete(feed_consumers)
        .where(_is_named(), not_(_is_running(_consumer.consumer)))
        .returning(_consumer.consumer)
        .cte("gone")
    )
    checkpoints = delete(feed_checkpoints).where(_checkpoint.consumer == gone.c.consumer).cte("checkpoints")
    return select(gone).add_cte(checkpoints)


def _set_paused(paused_at: Any) -> Select[Any]:
    """One record if there is such a consumer: whether it was paused before."""
    before = feed_consumers.alias("before")
    changed = update(feed_consumers).where(_is_named()).values(paused_at=paused_at).cte("changed")
    return (
        select(before.c.paused_at.is_not(None).label("was_paused"))
        .where(before.c.consumer == param("consumer", TEXT))
        .add_cte(changed)
    )


REGISTER = Statement("feeds.register", _register)
FIND = Statement("feeds.find", lambda: select(*_found()).where(_is_named()))
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


# Working


def _find_news() -> Select[Any]:
    """A record for each partition with something new; one without a partition when there is none at all."""
    first = _behind_checkpoint(IS_SETTLED.label("is_settled")).limit(_ONE).lateral("first_event")
    wanted = cast(bindparam("partitions", type_=ARRAY(Text)), ARRAY(Integer))
    news = (
        select(_checkpoint.partition_id, first.c.is_settled)
        .join_from(feed_checkpoints, first, true())
        .where(_checkpoint.consumer == _consumer.consumer, _checkpoint.partition_id == func.any(wanted))
        .correlate(feed_consumers)
        .lateral("news")
    )
    return (
        select(_consumer.paused_at, news.c.partition_id, news.c.is_settled)
        .join_from(feed_consumers, news, _consumer.paused_at.is_(None), isouter=True)
        .where(_is_named())
    )


def _read_batch() -> Select[Any]:
    # In a subquery, because a volatile function in a condition may be called for any row, or for none.
    idle_timeout = param("idle_timeout", TEXT)
    limited = func.set_config(param("setting", TEXT), idle_timeout, literal_column("true"))
    held = select(
        func.pg_try_advisory_xact_lock(param("lock_key", BIGINT)).label("is_held"),
        case((idle_timeout.is_not(None), limited)).label("limited"),
    ).subquery("hand")
    feed = _behind_checkpoint(*event_columns())
    events = feed.where(IS_SETTLED).limit(unforeseen(param("limit", BIGINT))).lateral("events")
    return (
        select(
            cast(_checkpoint.recorded_xid, Text).label("after_xid"),
            _checkpoint.flow_instance_id.label("after_id"),
            _checkpoint.sequence.label("after_sequence"),
            _checkpoint.attempts,
            events,
        )
        .select_from(held)
        .join(feed_checkpoints, held.c.is_held)
        .join(feed_consumers, _consumer.consumer == _checkpoint.consumer)
        .join(events, true())
        .where(
            _checkpoint.partition_id == param("partition_id", INTEGER),
            _checkpoint.consumer == param("consumer", TEXT),
            _consumer.paused_at.is_(None),
        )
    )


def _is_checkpoint() -> ColumnElement[bool]:
    return and_(
        _checkpoint.partition_id == param("partition_id", INTEGER), _checkpoint.consumer == param("consumer", TEXT)
    )


def _place(name: str) -> tuple[ColumnElement[Any], ...]:
    return (
        cast(param(f"{name}_xid", TEXT), XID8()),
        param(f"{name}_id", UUID_VALUE),
        param(f"{name}_sequence", BIGINT),
    )


def _complete() -> Any:
    xid, flow_instance_id, sequence = _place("to")
    return (
        update(feed_checkpoints)
        .where(_is_checkpoint(), tuple_(*_PLACE) == tuple_(*_place("after")))
        .values(
            recorded_xid=xid,
            flow_instance_id=flow_instance_id,
            sequence=sequence,
            updated_at=NOW,
            attempts=_ZERO,
            last_error=null(),
            failed_at=null(),
        )
        .returning(_checkpoint.partition_id)
    )


def _retry() -> Any:
    return (
        update(feed_checkpoints)
        .where(_is_checkpoint())
        .values(attempts=_checkpoint.attempts + _ONE, last_error=param("error", TEXT), failed_at=NOW)
        .returning(_checkpoint.attempts)
    )


FIND_NEWS = Statement("feeds.find_news", _find_news)
READ_BATCH = Statement("feeds.read_batch", _read_batch)
COMPLETE = Statement("feeds.complete", _complete)
RETRY = Statement("feeds.retry", _retry)


# Figures


def _lag() -> Select[Any]:
    is_committed = _event.recorded_xid.is_distinct_from(func.pg_current_xact_id_if_assigned())
    every = _behind_checkpoint().add_columns(_ONE.label("one")).where(is_committed).order_by(None)
    events = select(func.count().label("events")).select_from(every.subquery("every_event")).lateral("counted")
    oldest = _behind_checkpoint(_event.recorded_at).where(is_committed).limit(_ONE).lateral("oldest")
    return (
        select(
            func.coalesce(cast(func.sum(events.c.events), BIGINT), _ZERO).label("events"),
            func.min(oldest.c.recorded_at).label("oldest_recorded_at"),
        )
        .select_from(feed_consumers)
        .join(feed_checkpoints, _checkpoint.consumer == _consumer.consumer)
        .join(events, true())
        .join(oldest, true(), isouter=True)
        .where(_is_named())
        .group_by(_consumer.consumer)
    )


def lags() -> Select[Any]:
    """The lag of each consumer, as far as it is counted."""
    some = _behind_checkpoint().add_columns(_ONE.label("one")).limit(unforeseen(literal_column(str(COUNTED_LAG))))
    events = select(func.count().label("events")).select_from(some.subquery("some_events")).lateral("counted")
    return (
        select(_consumer.consumer, cast(func.sum(events.c.events), BIGINT).label("events"))
        .select_from(feed_consumers)
        .join(feed_checkpoints, _checkpoint.consumer == _consumer.consumer)
        .join(events, true())
        .group_by(_consumer.consumer)
    )


def failures() -> Select[Any]:
    """In how many partitions each consumer fails, if it does."""
    return (
        select(_checkpoint.consumer, func.count().label("partitions"))
        .where(_checkpoint.attempts > _ZERO)
        .group_by(_checkpoint.consumer)
    )


def _list_failing() -> Select[Any]:
    place = tuple_(_checkpoint.consumer, _checkpoint.partition_id)
    return (
        select(
            _checkpoint.consumer,
            _checkpoint.partition_id,
            _checkpoint.attempts,
            _checkpoint.last_error,
            _checkpoint.failed_at,
        )
        .where(
            _checkpoint.attempts > _ZERO,
            or_(param("consumer", TEXT).is_(None), _checkpoint.consumer == param("consumer", TEXT)),
            place > tuple_(param("after_consumer", TEXT), param("after_partition", INTEGER)),
        )
        .order_by(_checkpoint.consumer, _checkpoint.partition_id)
        .limit(param("limit", BIGINT))
    )


LAG = Statement("feeds.lag", _lag)
LIST_FAILING = Statement("feeds.list_failing", _list_failing)


# Forgetting

_PARTITIONS_AT_ONCE = 16


def _purge_events() -> Any:
    """Removes from the front of a few partitions, those with the oldest events.

    A window decides: an event goes if it and all before it in its partition are old and handled. So a history has no
    gap, whatever the clocks did.
    """
    before, limit = param("before", INSTANT), param("limit", BIGINT)
    partitions = _every_partition()
    start = (_XID0, _NIL, _ZERO)
    oldest = (
        partition_feed(partitions.c.number, start, _event.recorded_at, (IS_SETTLED & _may_go()).label("may_go"))
        .limit(_ONE)
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
        partition_feed(old.c.number, start, *key, _event.recorded_at, _may_go().label("may_go"))
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


_KEY = ("partition_id", "flow_instance_id", "sequence")


def _may_go() -> ColumnElement[bool]:
    return or_(param("force", BOOLEAN), not_(is_unhandled(_event)))


PURGE_EVENTS = Statement("feeds.purge_events", _purge_events)
