"""Statements about timers: scheduling, claiming under a lease, and giving back.

Every write under a lease compares the token in the statement that writes. Statements that are all or nothing
lock and count the rows first; they lock in the order of the key, so that two of them never wait for each
other in a circle.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    Text,
    Update,
    and_,
    case,
    cast,
    delete,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    INSTANT,
    INTEGER,
    INTERVAL,
    JSON_DOCUMENT,
    NOW,
    TEXT,
    UUID_VALUE,
    WANTED_PARTITIONS,
    looked_up,
    param,
    relation,
    scalars,
    unforeseen,
)
from cascade_state.postgres.tables import flow_instances, timers

__all__ = [
    "CANCEL",
    "CLAIMED",
    "CLAIM_DUE",
    "CLAIM_DUE_IN",
    "COMPLETE_ALL",
    "COMPLETE_EACH",
    "COMPLETE_ONE",
    "DEAD",
    "DIAGNOSE_SCHEDULE",
    "FIND",
    "GIVE_UP",
    "HELD",
    "HELD_COLUMNS",
    "ONE",
    "PENDING",
    "RELEASE",
    "RENEW",
    "RENEW_FREE",
    "RESCHEDULE",
    "RETRY",
    "REVIVE",
    "SCHEDULE_EACH",
    "SCHEDULE_ONE",
    "TIMER_COLUMNS",
    "timer_columns",
]

_timer = timers.c

# Written out rather than bound: the same for every call. The partial indexes go by `died_at`, which no claim changes.
PENDING = literal_column("'PENDING'", TEXT)
CLAIMED = literal_column("'CLAIMED'", TEXT)
DEAD = literal_column("'DEAD'", TEXT)
ONE = literal_column("1", INTEGER)

_IDENTITY = {"partition_id": INTEGER, "timer_id": UUID_VALUE}
HELD_COLUMNS = {**_IDENTITY, "token": BIGINT}
TIMER_COLUMNS = {
    **_IDENTITY,
    "flow_instance_id": UUID_VALUE,
    "step_id": TEXT,
    "due_at": INSTANT,
    "after": INTERVAL,
    "payload": JSON_DOCUMENT,
    "max_attempts": INTEGER,
}


def timer_columns(source: Any = timers) -> tuple[ColumnElement[Any], ...]:
    """The columns that make a timer."""
    return (
        source.c.timer_id,
        source.c.flow_instance_id,
        source.c.step_id,
        source.c.due_at,
        source.c.status,
        source.c.attempts,
        source.c.max_attempts,
        cast(source.c.payload, Text).label("payload"),
        source.c.last_error,
        source.c.lease_holder,
        source.c.lease_token,
        source.c.lease_expires_at,
    )


def _same_timer(given: Any) -> ColumnElement[bool]:
    return and_(_timer.partition_id == given.c.partition_id, _timer.timer_id == given.c.timer_id)


def _this_timer() -> ColumnElement[bool]:
    return and_(
        _timer.partition_id == param("partition_id", INTEGER),
        _timer.timer_id == param("timer_id", UUID_VALUE),
    )


_WORN_OUT = _timer.attempts >= _timer.max_attempts

# Scheduling


def _schedule(query: Select[Any]) -> Select[Any]:
    """Inserts timers of flows that have not ended.

    The flow's row is updated first. So this waits for an advance of the flow that is under way, and then sees
    whether it ended the flow; and an advance that waits for this sees by `timer_changes` that there is one
    more timer to remove.
    """
    given = query.cte("given")
    flow = flow_instances.c
    living = (
        update(flow_instances)
        .where(
            flow.partition_id == given.c.partition_id,
            flow.flow_instance_id == given.c.flow_instance_id,
            flow.completed_at.is_(None),
        )
        .values(timer_changes=flow.timer_changes + ONE)
        .returning(flow.partition_id, flow.flow_instance_id)
        .cte("living")
    )
    rows = select(
        given.c.partition_id,
        given.c.timer_id,
        given.c.flow_instance_id,
        given.c.step_id,
        func.coalesce(given.c.due_at, NOW + given.c.after).label("due_at"),
        PENDING.label("status"),
        literal_column("0", INTEGER).label("attempts"),
        given.c.max_attempts,
        given.c.payload,
    ).join_from(
        given,
        living,
        and_(
            living.c.partition_id == given.c.partition_id,
            living.c.flow_instance_id == given.c.flow_instance_id,
        ),
    )
    inserted = (
        insert(timers)
        .from_select([item.name for item in rows.selected_columns], rows)
        .on_conflict_do_nothing(index_elements=["partition_id", "timer_id"])
        .returning(_timer.timer_id, _timer.due_at)
        .cte("inserted")
    )
    return select(given.c.item, inserted.c.due_at).join_from(given, inserted, inserted.c.timer_id == given.c.timer_id)


SCHEDULE_ONE = Statement("timers.schedule.one", lambda: _schedule(scalars("timer", TIMER_COLUMNS)))
SCHEDULE_EACH = Statement(
    "timers.schedule.batch", lambda: _schedule(relation("timer", {"item": INTEGER, **TIMER_COLUMNS}))
)


def _diagnose_schedule() -> Select[Any]:
    flow = flow_instances.c
    return (
        select(flow.status.label("flow_status"), flow.completed_at, *timer_columns())
        .outerjoin_from(
            flow_instances,
            timers,
            and_(
                _timer.partition_id == flow.partition_id,
                _timer.timer_id == param("timer_id", UUID_VALUE),
                _timer.flow_instance_id == flow.flow_instance_id,
            ),
        )
        .where(
            flow.partition_id == param("partition_id", INTEGER),
            flow.flow_instance_id == param("flow_instance_id", UUID_VALUE),
        )
    )


DIAGNOSE_SCHEDULE = Statement("timers.diagnose_schedule", _diagnose_schedule)

# Claiming


def _due(*entities: Any) -> Select[Any]:
    now = unforeseen(NOW)
    return (
        select(*entities)
        .where(
            _timer.died_at.is_(None),
            _timer.due_at <= now,
            or_(_timer.status == PENDING, _timer.lease_expires_at <= now),
        )
        .order_by(_timer.due_at, _timer.timer_id)
    )


def _claim_due() -> Any:
    locked = (
        _due(_timer.partition_id, _timer.timer_id)
        .limit(unforeseen(param("limit", BIGINT)))
        .with_for_update(skip_locked=True)
        .cte("locked")
    )
    return _claimed(locked)


def _claim_due_in() -> Any:
    """Claims in chosen partitions, one after the other until there are enough, the one with the oldest timer first.

    So it reads the first timer of each partition and the timers that it takes, however much is due here or in the
    partitions of others; and it locks no more than it takes.
    """
    wanted = relation("wanted", WANTED_PARTITIONS).subquery("wanted")
    first = _due(_timer.due_at).where(_timer.partition_id == wanted.c.partition_id).limit(ONE).lateral("first")
    places = (
        select(wanted.c.partition_id)
        .join_from(wanted, first, literal_column("true"))
        .order_by(first.c.due_at, wanted.c.partition_id)
        .subquery("places")
    )
    taken = (
        _due(_timer.partition_id, _timer.timer_id)
        .where(_timer.partition_id == places.c.partition_id)
        .limit(unforeseen(param("limit", BIGINT)))
        .with_for_update(skip_locked=True)
        .lateral("taken")
    )
    locked = (
        select(taken.c.partition_id, taken.c.timer_id)
        .join_from(places, taken, literal_column("true"))
        .limit(unforeseen(param("limit", BIGINT)))
        .cte("locked")
    )
    return _claimed(locked)


def _claimed(locked: CTE) -> Any:
    """Claims locked timers; those without an attempt left die instead. Returns both, in no order."""
    due = looked_up(locked, _IDENTITY, "due")
    return (
        update(timers)
        .where(_same_timer(due))
        .values(
            status=case((_WORN_OUT, DEAD), else_=CLAIMED),
            lease_token=_timer.lease_token + ONE,
            lease_holder=case((_WORN_OUT, null()), else_=param("holder", TEXT)),
            lease_expires_at=case((_WORN_OUT, null()), else_=NOW + param("lease_duration", INTERVAL)),
            attempts=case((_WORN_OUT, _timer.attempts), else_=_timer.attempts + ONE),
            last_error=case((_WORN_OUT, param("worn_out", TEXT)), else_=_timer.last_error),
            died_at=case((_WORN_OUT, NOW), else_=null()),
        )
        .returning(*timer_columns())
    )


CLAIM_DUE = Statement("timers.claim_due", _claim_due)
CLAIM_DUE_IN = Statement("timers.claim_due.partitions", _claim_due_in)

# Under a lease


def _is_held(given: Any) -> ColumnElement[bool]:
    return and_(_same_timer(given), _timer.lease_token == given.c.token, _timer.lease_holder.is_not(None))


def _is_this_held() -> ColumnElement[bool]:
    return and_(_this_timer(), _timer.lease_token == param("token", BIGINT), _timer.lease_holder.is_not(None))


def _held(*, locked: bool, skip_locked: bool = False) -> Select[Any]:
    given = relation("held", HELD_COLUMNS).subquery("given")
    held = (
        select(_timer.partition_id, _timer.timer_id, _timer.lease_token, _timer.lease_expires_at)
        .join_from(given, timers, _is_held(given))
        .order_by(_timer.partition_id, _timer.timer_id)
    )
    return held.with_for_update(of=timers, skip_locked=skip_locked) if locked else held


HELD = Statement("timers.held", lambda: _held(locked=False))


def _all_of(held: CTE) -> ColumnElement[bool]:
    return select(func.count()).select_from(held).scalar_subquery() == param("held_count", BIGINT)


def _complete_all() -> Select[Any]:
    """Deletes the held timers if all of them are held; returns those that are."""
    held = _held(locked=True).cte("current")
    removed = delete(timers).where(_same_timer(held), _all_of(held)).cte("removed")
    return select(held.c.timer_id, held.c.lease_token).add_cte(removed)


def _release() -> Select[Any]:
    """Gives the held timers back if all of them are held; returns those that are."""
    held = _held(locked=True).cte("current")
    released = (
        update(timers)
        .where(_same_timer(held), _all_of(held))
        .values(status=PENDING, lease_holder=null(), lease_expires_at=null())
        .cte("released")
    )
    return select(held.c.timer_id, held.c.lease_token).add_cte(released)


def _renewed(held: CTE) -> CTE:
    return (
        update(timers)
        .where(_same_timer(held))
        .values(lease_expires_at=NOW + param("lease_duration", INTERVAL))
        .returning(_timer.timer_id, _timer.lease_token, _timer.lease_expires_at)
        .cte("renewed")
    )


def _renew() -> Select[Any]:
    return select(_renewed(_held(locked=True).cte("current")))


def _renew_free() -> Select[Any]:
    """Renews what is free to be renewed; returns all that is held, the others with the leases that they have."""
    renewed = _renewed(_held(locked=True, skip_locked=True).cte("current"))
    held = _held(locked=False).subquery("every")
    return select(
        held.c.timer_id,
        held.c.lease_token,
        func.coalesce(renewed.c.lease_expires_at, held.c.lease_expires_at).label("lease_expires_at"),
    ).outerjoin_from(held, renewed, renewed.c.timer_id == held.c.timer_id)


def _complete(query: Select[Any]) -> Any:
    given = query.subquery("given")
    return delete(timers).where(_is_held(given)).returning(given.c.item)


COMPLETE_ONE = Statement("timers.complete.one", lambda: _complete(scalars("held", HELD_COLUMNS)))
COMPLETE_EACH = Statement(
    "timers.complete.batch", lambda: _complete(relation("held", {"item": INTEGER, **HELD_COLUMNS}))
)
COMPLETE_ALL = Statement("timers.complete_all", _complete_all)
RELEASE = Statement("timers.release", _release)
RENEW = Statement("timers.renew", _renew)
RENEW_FREE = Statement("timers.renew.free", _renew_free)


def _given_back(**values: Any) -> Update:
    return (
        update(timers)
        .where(_is_this_held())
        .values(lease_holder=null(), lease_expires_at=null(), last_error=param("error", TEXT), **values)
        .returning(*timer_columns())
    )


RETRY = Statement(
    "timers.retry",
    lambda: _given_back(
        status=case((_WORN_OUT, DEAD), else_=PENDING),
        died_at=case((_WORN_OUT, NOW), else_=null()),
        due_at=NOW + param("after", INTERVAL),
    ),
)
GIVE_UP = Statement("timers.give_up", lambda: _given_back(status=DEAD, died_at=NOW))

# Without a lease

FIND = Statement("timers.find", lambda: select(*timer_columns()).where(_this_timer()))
CANCEL = Statement("timers.cancel", lambda: delete(timers).where(_this_timer()).returning(_timer.timer_id))
RESCHEDULE = Statement(
    "timers.reschedule",
    lambda: (
        update(timers)
        .where(_this_timer())
        .values(
            due_at=param("due_at", INSTANT),
            status=case((_timer.status == DEAD, DEAD), else_=PENDING),
            lease_token=_timer.lease_token + ONE,
            lease_holder=null(),
            lease_expires_at=null(),
        )
        .returning(*timer_columns())
    ),
)
REVIVE = Statement(
    "timers.revive",
    lambda: (
        update(timers)
        .where(_this_timer())
        .values(
            status=case((_timer.status == DEAD, PENDING), else_=_timer.status),
            died_at=null(),
            attempts=case((_timer.status == DEAD, literal_column("0", INTEGER)), else_=_timer.attempts),
        )
        .returning(*timer_columns())
    ),
)
