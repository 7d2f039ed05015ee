"""Statements about published events, deliveries and dead letters; `matching` pairs events with waits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    Table,
    and_,
    cast,
    delete,
    exists,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from cascade_state.model.advance import HeldDelivery
from cascade_state.postgres.direct import Statement
from cascade_state.postgres.executor import Executor
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
    WANTED_PARTITIONS,
    columns,
    looked_up,
    param,
    relation,
)
from cascade_state.postgres.tables import correlations, early_events

__all__ = [
    "BURY_HELD",
    "BURY_WORN",
    "CANCEL",
    "CLAIM",
    "CLAIM_IN",
    "COMPLETE",
    "EXPIRE",
    "HELD",
    "NEXT_DELIVERY_AT",
    "NEXT_DELIVERY_AT_IN",
    "PUBLISH",
    "RELEASE",
    "RENEW",
    "RENEW_FREE",
    "RETRY",
    "UNMATCHED_KEYS",
    "held_values",
    "list_dead_letters_statement",
    "list_waiting_statement",
]

wait: Table = correlations
event: Table = early_events

# A row that is NEW for longer than this lost its process between the two statements that make and match it.
_HEALING_AGE = timedelta(seconds=1)
_SWEEP = 1000  # rows that one sweep turns; the next claim goes on

_WAIT_COLUMNS = {
    "partition_id": INTEGER,
    "correlation_key": TEXT,
    "flow_instance_id": UUID_VALUE,
    "step_id": TEXT,
}
_HELD_COLUMNS = {**_WAIT_COLUMNS, "token": BIGINT}


def held_values(executor: Executor, held: Sequence[HeldDelivery]) -> dict[str, Any]:
    """Returns the values that name held deliveries, and their tokens."""
    rows = [
        (
            executor.partition_of_key(item.correlation_key),
            item.correlation_key,
            item.flow_instance_id,
            item.step_id,
            item.token,
        )
        for item in held
    ]
    return dict(columns("held", tuple(_HELD_COLUMNS), rows))


def _key(*names: str) -> tuple[ColumnElement[Any], ...]:
    return tuple(wait.c[name] for name in ("partition_id", "correlation_key", "flow_instance_id", "step_id", *names))


def _same_wait(left: Any, right: Any) -> ColumnElement[bool]:
    return and_(
        *(left.c[name] == right.c[name] for name in ("partition_id", "correlation_key", "flow_instance_id", "step_id"))
    )


# Publishing


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

# Claiming


_ORDER = ("available_at", "correlation_key", "flow_instance_id", "step_id")
_ONE = literal_column("1", INTEGER)
_ALWAYS: ColumnElement[bool] = literal_column("true")


def _delivered(*entities: Any) -> Select[Any]:
    """Deliveries in the order in which they are claimed."""
    return (
        select(*entities)
        .where(wait.c.status == literal_column("'DELIVERED'"))
        .order_by(*(wait.c[name] for name in _ORDER))
    )


def _is_free() -> ColumnElement[bool]:
    return and_(wait.c.available_at <= NOW, or_(wait.c.lease_holder.is_(None), wait.c.lease_expires_at <= NOW))


def _claim() -> Select[Any]:
    free = (
        _delivered(*_key("attempts"))
        .where(_is_free())
        .limit(param("limit", BIGINT))
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    return _claimed(free)


def _claim_in() -> Select[Any]:
    """Claims in chosen partitions, one after the other until there are enough, the one with the oldest first.

    So it reads the first delivery of each partition and the deliveries that it takes, and locks no more than these.
    """
    wanted = relation("wanted", WANTED_PARTITIONS).subquery("wanted")
    here = wait.c.flow_partition_id == wanted.c.partition_id
    first = _delivered(wait.c.available_at).where(here, _is_free()).limit(_ONE).lateral("first")
    places = (
        select(wanted.c.partition_id)
        .join_from(wanted, first, _ALWAYS)
        .order_by(first.c.available_at, wanted.c.partition_id)
        .subquery("places")
    )
    taken = (
        _delivered(*_key("attempts"))
        .where(wait.c.flow_partition_id == places.c.partition_id, _is_free())
        .limit(param("limit", BIGINT))
        .with_for_update(skip_locked=True)
        .lateral("taken")
    )
    free = select(taken).join_from(places, taken, _ALWAYS).limit(param("limit", BIGINT)).cte("free")
    return _claimed(free)


def _claimed(free: CTE) -> Select[Any]:
    """Claims deliveries, and tells whether there is something to sweep; one empty row when no delivery is free."""
    now = NOW
    chosen = looked_up(free, _WAIT_COLUMNS, "chosen")
    claimed = (
        update(wait)
        .where(_same_wait(wait, chosen), wait.c.attempts < param("max_attempts", INTEGER))
        .values(
            lease_holder=param("holder", TEXT),
            lease_token=wait.c.lease_token + 1,
            lease_expires_at=now + param("lease_duration", INTERVAL),
            attempts=wait.c.attempts + 1,
        )
        .returning(
            *_key(
                "event_id",
                "delivered_at",
                "available_at",
                "timed_out",
                "attempts",
                "lease_holder",
                "lease_token",
                "lease_expires_at",
            ),
            cast(wait.c.payload, TEXT).label("payload"),
        )
        .cte("claimed")
    )
    worn = select(func.count()).select_from(free).where(free.c.attempts >= param("max_attempts", INTEGER))
    todo = select(
        worn.scalar_subquery().label("worn"),
        _is_anything_unmatched().label("unmatched"),
        _is_anything_expired().label("expired"),
    ).cte("todo")
    return (
        select(todo, claimed)
        .select_from(todo.outerjoin(claimed, literal_column("true")))
        .order_by(*(claimed.c[name] for name in _ORDER))
    )


def _is_anything_unmatched() -> ColumnElement[bool]:
    return or_(
        exists().where(wait.c.status == literal_column("'NEW'"), wait.c.created_at <= NOW - _HEALING_AGE),
        exists().where(event.c.status == literal_column("'NEW'"), event.c.published_at <= NOW - _HEALING_AGE),
    )


def _is_anything_expired() -> ColumnElement[bool]:
    return or_(
        exists().where(_is_waiting(), wait.c.expires_at <= NOW),
        exists().where(event.c.status != literal_column("'DEAD'"), event.c.expires_at <= NOW),
    )


def _is_waiting() -> ColumnElement[bool]:
    return wait.c.status.in_([literal_column("'NEW'"), literal_column("'WAITING'")])


CLAIM = Statement("correlations.claim", _claim)
CLAIM_IN = Statement("correlations.claim.partitions", _claim_in)


def _next_delivery_at() -> Select[Any]:
    """The first delivery that nobody holds, the first lease to end before it, or the first wait to expire."""
    first = select(_first_free().cte("first").c.available_at).scalar_subquery()
    front = _front(first).subquery("front")
    return select(
        func.least(first, _first_lease_to_end(front), _first_to_expire().scalar_subquery()).label("next_delivery_at")
    ).select_from(front)


def _next_delivery_at_in() -> Select[Any]:
    wanted = relation("wanted", WANTED_PARTITIONS).cte("wanted")
    here = wait.c.flow_partition_id == wanted.c.partition_id
    first = _first_free().where(here).lateral("first")
    front = _front(first.c.available_at, here).lateral("front")
    # Along the index of all partitions: a step for each wait of the others that expires before.
    expiring = _first_to_expire().where(wait.c.flow_partition_id.in_(select(wanted.c.partition_id)))
    return select(
        func.least(func.min(first.c.available_at), _first_lease_to_end(front), expiring.scalar_subquery()).label(
            "next_delivery_at"
        )
    ).select_from(wanted.outerjoin(first, _ALWAYS).outerjoin(front, _ALWAYS))


def _first_free() -> Select[Any]:
    return _delivered(wait.c.available_at).where(wait.c.lease_holder.is_(None)).limit(_ONE)


def _front(before: Any, *conditions: ColumnElement[bool]) -> Select[Any]:
    """The deliveries before the first that nobody holds; `timer_lists` says why there is a limit."""
    end = func.coalesce(before, literal_column("'infinity'::timestamptz", INSTANT))
    return (
        _delivered(wait.c.available_at, wait.c.lease_holder, wait.c.lease_expires_at)
        .where(wait.c.available_at < end, *conditions)
        .limit(literal_column("1000", INTEGER))
    )


def _first_lease_to_end(front: Any) -> ColumnElement[Any]:
    ends_at = func.min(func.greatest(front.c.available_at, front.c.lease_expires_at))
    return ends_at.filter(front.c.lease_holder.is_not(None))


def _first_to_expire() -> Select[Any]:
    return (
        select(wait.c.expires_at)
        .where(_is_waiting(), wait.c.expires_at.is_not(None))
        .order_by(wait.c.expires_at)
        .limit(_ONE)
    )


NEXT_DELIVERY_AT = Statement("correlations.next_delivery_at", _next_delivery_at)
NEXT_DELIVERY_AT_IN = Statement("correlations.next_delivery_at.partitions", _next_delivery_at_in)

# Sweeping


def _unmatched_keys() -> Select[Any]:
    waits = select(wait.c.correlation_key).where(
        wait.c.status == literal_column("'NEW'"), wait.c.created_at <= NOW - _HEALING_AGE
    )
    events = select(event.c.correlation_key).where(
        event.c.status == literal_column("'NEW'"), event.c.published_at <= NOW - _HEALING_AGE
    )
    keys = union_all(waits, events).subquery("keys")
    return select(keys.c.correlation_key).distinct().limit(_SWEEP)


UNMATCHED_KEYS = Statement("correlations.unmatched_keys", _unmatched_keys)


def _expire() -> Select[Any]:
    """Turns expired waits into time-outs and expired events into dead letters, and forgets expired ids."""
    late = (
        select(*_key())
        .where(_is_waiting(), wait.c.expires_at <= NOW)
        .limit(_SWEEP)
        .with_for_update(skip_locked=True)
        .cte("late")
    )
    timed_out = (
        update(wait)
        .where(_same_wait(wait, late))
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
        .limit(_SWEEP)
        .with_for_update(skip_locked=True)
        .cte("old")
    )
    buried = (
        update(event)
        .where(_same_event(event, old), old.c.status != literal_column("'SEEN'"))
        .values(status="DEAD", reason="expired")
        .cte("buried")
    )
    forgotten = delete(event).where(_same_event(event, old), old.c.status == literal_column("'SEEN'")).cte("forgotten")
    return select(timed_out.c.flow_partition_id).distinct().add_cte(buried, forgotten)


def _same_event(left: Any, right: Any) -> ColumnElement[bool]:
    return and_(*(left.c[name] == right.c[name] for name in ("partition_id", "correlation_key", "event_id")))


EXPIRE = Statement("correlations.expire", _expire)

# What is held


def _given() -> CTE:
    return relation("held", _HELD_COLUMNS).cte("given")


def _is_held(given: CTE) -> ColumnElement[bool]:
    return and_(_same_wait(wait, given), wait.c.lease_token == given.c.token, wait.c.lease_holder.is_not(None))


def _held_rows(*more: str) -> CTE:
    """The rows that are held under the given tokens, locked in one order."""
    given = _given()
    return (
        select(*_key(*more))
        .join_from(given, wait, _is_held(given))
        .order_by(*_key())
        .with_for_update(of=wait)
        .cte("held")
    )


def _are_all_held(held: CTE) -> ColumnElement[bool]:
    return select(func.count()).select_from(held).scalar_subquery() == param("held_count", BIGINT)


def _held() -> Select[Any]:
    given = _given()
    return select(*_key()).join_from(given, wait, _is_held(given))


def _complete() -> Select[Any]:
    held = _held_rows()
    completed = delete(wait).where(_same_wait(wait, held), _are_all_held(held)).cte("completed")
    return select(held).add_cte(completed)


def _release() -> Select[Any]:
    held = _held_rows()
    released = (
        update(wait)
        .where(_same_wait(wait, held), _are_all_held(held))
        .values(lease_holder=None, lease_expires_at=None)
        .cte("released")
    )
    return select(held).add_cte(released)


def _renew_free() -> Select[Any]:
    """Renews what is free to be renewed; returns all that is held, the others with the leases that they have."""
    given = _given()
    free = (
        select(*_key())
        .join_from(given, wait, _is_held(given))
        .order_by(*_key())
        .with_for_update(of=wait, skip_locked=True)
        .cte("free")
    )
    renewed = (
        update(wait)
        .where(_same_wait(wait, free))
        .values(lease_expires_at=NOW + param("lease_duration", INTERVAL))
        .returning(*_key("lease_expires_at"))
        .cte("renewed")
    )
    ends_at = func.coalesce(renewed.c.lease_expires_at, wait.c.lease_expires_at).label("lease_expires_at")
    held = given.join(wait, _is_held(given)).outerjoin(renewed, _same_wait(renewed, wait))
    return select(*_key("lease_holder", "lease_token"), ends_at).select_from(held)


def _renew() -> Any:
    given = _given()
    return (
        update(wait)
        .where(_is_held(given))
        .values(lease_expires_at=NOW + param("lease_duration", INTERVAL))
        .returning(*_key("lease_holder", "lease_token", "lease_expires_at"))
    )


def _retry() -> Any:
    given = _given()
    return (
        update(wait)
        .where(_is_held(given), wait.c.attempts < param("max_attempts", INTEGER))
        .values(
            lease_holder=None,
            lease_expires_at=None,
            available_at=NOW + param("after", INTERVAL),
            last_error=param("error", TEXT),
        )
        .returning(*_key())
    )


HELD = Statement("correlations.held", _held)
COMPLETE = Statement("correlations.complete", _complete)
RELEASE = Statement("correlations.release", _release)
RENEW = Statement("correlations.renew", _renew)
RENEW_FREE = Statement("correlations.renew.free", _renew_free)
RETRY = Statement("correlations.retry", _retry)

# Dead letters

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
        .where(_same_wait(wait, buried), not_(buried.c.timed_out))
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
    removed = delete(wait).where(_same_wait(wait, buried), buried.c.timed_out).cte("removed")
    return select(buried.c.correlation_key).distinct().add_cte(dead, waiting_again, removed)


def _lock() -> CTE:
    return select(func.pg_advisory_xact_lock(param("lock_key", BIGINT)).label("locked")).cte("lock")


def _bury_held() -> Select[Any]:
    given = _given()
    lock = _lock()
    held = (
        select(*_key(*_EVENT_COLUMNS))
        .select_from(lock.join(given, literal_column("true")).join(wait, _is_held(given)))
        .with_for_update(of=wait)
        .cte("buried")
    )
    return _bury(held)


def _bury_worn() -> Select[Any]:
    worn = (
        select(*_key(*_EVENT_COLUMNS))
        .where(
            wait.c.status == literal_column("'DELIVERED'"),
            wait.c.available_at <= NOW,
            or_(wait.c.lease_holder.is_(None), wait.c.lease_expires_at <= NOW),
            wait.c.attempts >= param("max_attempts", INTEGER),
        )
        .limit(_SWEEP)
        .with_for_update(skip_locked=True)
        .cte("buried")
    )
    return _bury(worn)


BURY_HELD = Statement("correlations.bury_held", _bury_held)
BURY_WORN = Statement("correlations.bury_worn", _bury_worn)

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

# Lists


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
        _is_waiting(),
        or_(wait.c.expires_at.is_(None), wait.c.expires_at > NOW),
    )
    if continued:
        query = query.where(
            tuple_(*order)
            > tuple_(param("after_at", INSTANT), param("after_id", UUID_VALUE), param("after_step", TEXT))
        )
    return query.order_by(*order).limit(param("limit", BIGINT))


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
