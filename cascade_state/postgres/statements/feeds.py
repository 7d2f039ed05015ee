"""Statements of the feed as its consumers work: where there is news, the next batch, checkpoints, lags and failures."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    update,
)

from cascade_state.model.feeds import COUNTED_LAG
from cascade_state.postgres.columns import XID8
from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.events import IS_SETTLED, event_columns
from cascade_state.postgres.statements.feed_places import ONE, PLACE, ZERO, behind_checkpoint, is_this_consumer
from cascade_state.postgres.statements.parameters import BIGINT, INTEGER, NOW, TEXT, UUID_VALUE, param, unforeseen
from cascade_state.postgres.tables import feed_checkpoints, feed_consumers, flow_events

__all__ = ["COMPLETE", "FIND_NEWS", "LAG", "LIST_FAILING", "READ_BATCH", "RETRY", "failures", "lags"]

_consumer = feed_consumers.c
_checkpoint = feed_checkpoints.c
_event = flow_events.c


def _find_news() -> Select[Any]:
    """A record for each partition with something new; one without a partition when there is none at all."""
    first = behind_checkpoint(IS_SETTLED.label("is_settled")).limit(ONE).lateral("first_event")
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
        .where(is_this_consumer())
    )


def _read_batch() -> Select[Any]:
    # In a subquery, because a volatile function in a condition may be called for any row, or for none.
    idle_timeout = param("idle_timeout", TEXT)
    limited = func.set_config(param("setting", TEXT), idle_timeout, literal_column("true"))
    held = select(
        func.pg_try_advisory_xact_lock(param("lock_key", BIGINT)).label("is_held"),
        case((idle_timeout.is_not(None), limited)).label("limited"),
    ).subquery("hand")
    feed = behind_checkpoint(*event_columns())
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
        .where(_is_checkpoint(), tuple_(*PLACE) == tuple_(*_place("after")))
        .values(
            recorded_xid=xid,
            flow_instance_id=flow_instance_id,
            sequence=sequence,
            updated_at=NOW,
            attempts=ZERO,
            last_error=null(),
            failed_at=null(),
        )
        .returning(_checkpoint.partition_id)
    )


def _retry() -> Any:
    return (
        update(feed_checkpoints)
        .where(_is_checkpoint())
        .values(attempts=_checkpoint.attempts + ONE, last_error=param("error", TEXT), failed_at=NOW)
        .returning(_checkpoint.attempts)
    )


FIND_NEWS = Statement("feeds.find_news", _find_news)
READ_BATCH = Statement("feeds.read_batch", _read_batch)
COMPLETE = Statement("feeds.complete", _complete)
RETRY = Statement("feeds.retry", _retry)


# Figures


def _lag() -> Select[Any]:
    is_committed = _event.recorded_xid.is_distinct_from(func.pg_current_xact_id_if_assigned())
    every = behind_checkpoint().add_columns(ONE.label("one")).where(is_committed).order_by(None)
    events = select(func.count().label("events")).select_from(every.subquery("every_event")).lateral("counted")
    oldest = behind_checkpoint(_event.recorded_at).where(is_committed).limit(ONE).lateral("oldest")
    return (
        select(
            func.coalesce(cast(func.sum(events.c.events), BIGINT), ZERO).label("events"),
            func.min(oldest.c.recorded_at).label("oldest_recorded_at"),
        )
        .select_from(feed_consumers)
        .join(feed_checkpoints, _checkpoint.consumer == _consumer.consumer)
        .join(events, true())
        .join(oldest, true(), isouter=True)
        .where(is_this_consumer())
        .group_by(_consumer.consumer)
    )


def lags() -> Select[Any]:
    """The lag of each consumer, as far as it is counted."""
    some = behind_checkpoint().add_columns(ONE.label("one")).limit(unforeseen(literal_column(str(COUNTED_LAG))))
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
        .where(_checkpoint.attempts > ZERO)
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
            _checkpoint.attempts > ZERO,
            or_(param("consumer", TEXT).is_(None), _checkpoint.consumer == param("consumer", TEXT)),
            place > tuple_(param("after_consumer", TEXT), param("after_partition", INTEGER)),
        )
        .order_by(_checkpoint.consumer, _checkpoint.partition_id)
        .limit(param("limit", BIGINT))
    )


LAG = Statement("feeds.lag", _lag)
LIST_FAILING = Statement("feeds.list_failing", _list_failing)
