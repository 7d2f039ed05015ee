"""Statements about deliveries: claiming them under a lease, and giving them back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, and_, cast, delete, func, literal_column, or_, select, update

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    INSTANT,
    INTEGER,
    INTERVAL,
    NOW,
    TEXT,
    WANTED_PARTITIONS,
    looked_up,
    param,
    relation,
    unforeseen,
)
from cascade_state.postgres.statements.sweeping import is_anything_expired, is_anything_unmatched
from cascade_state.postgres.statements.waits import (
    WAIT_COLUMNS,
    given_deliveries,
    is_held,
    is_waiting,
    key,
    same_wait,
    wait,
)

__all__ = [
    "CLAIM",
    "CLAIM_IN",
    "COMPLETE",
    "HELD",
    "NEXT_DELIVERY_AT",
    "NEXT_DELIVERY_AT_IN",
    "RELEASE",
    "RENEW",
    "RENEW_FREE",
    "RETRY",
]

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
    now = unforeseen(NOW)
    return and_(wait.c.available_at <= now, or_(wait.c.lease_holder.is_(None), wait.c.lease_expires_at <= now))


def _claim() -> Select[Any]:
    free = (
        _delivered(*key("attempts"))
        .where(_is_free())
        .limit(unforeseen(param("limit", BIGINT)))
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
        _delivered(*key("attempts"))
        .where(wait.c.flow_partition_id == places.c.partition_id, _is_free())
        .limit(unforeseen(param("limit", BIGINT)))
        .with_for_update(skip_locked=True)
        .lateral("taken")
    )
    free = select(taken).join_from(places, taken, _ALWAYS).limit(unforeseen(param("limit", BIGINT))).cte("free")
    return _claimed(free)


def _claimed(free: CTE) -> Select[Any]:
    """Claims deliveries, and tells whether there is something to sweep; one empty row when no delivery is free."""
    now = NOW
    chosen = looked_up(free, WAIT_COLUMNS, "chosen")
    claimed = (
        update(wait)
        .where(same_wait(wait, chosen), wait.c.attempts < param("max_attempts", INTEGER))
        .values(
            lease_holder=param("holder", TEXT),
            lease_token=wait.c.lease_token + 1,
            lease_expires_at=now + param("lease_duration", INTERVAL),
            attempts=wait.c.attempts + 1,
        )
        .returning(
            *key(
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
        is_anything_unmatched().label("unmatched"),
        is_anything_expired().label("expired"),
    ).cte("todo")
    return (
        select(todo, claimed)
        .select_from(todo.outerjoin(claimed, literal_column("true")))
        .order_by(*(claimed.c[name] for name in _ORDER))
    )


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
        .where(is_waiting(), wait.c.expires_at.is_not(None))
        .order_by(wait.c.expires_at)
        .limit(_ONE)
    )


NEXT_DELIVERY_AT = Statement("correlations.next_delivery_at", _next_delivery_at)
NEXT_DELIVERY_AT_IN = Statement("correlations.next_delivery_at.partitions", _next_delivery_at_in)


# What is held


def _held_rows(*more: str) -> CTE:
    """The rows that are held under the given tokens, locked in one order."""
    given = given_deliveries()
    return (
        select(*key(*more)).join_from(given, wait, is_held(given)).order_by(*key()).with_for_update(of=wait).cte("held")
    )


def _are_all_held(held: CTE) -> ColumnElement[bool]:
    return select(func.count()).select_from(held).scalar_subquery() == param("held_count", BIGINT)


def _held() -> Select[Any]:
    given = given_deliveries()
    return select(*key("lease_token")).join_from(given, wait, is_held(given))


def _complete() -> Select[Any]:
    held = _held_rows("lease_token")
    completed = delete(wait).where(same_wait(wait, held), _are_all_held(held)).cte("completed")
    return select(held).add_cte(completed)


def _release() -> Select[Any]:
    held = _held_rows("lease_token")
    released = (
        update(wait)
        .where(same_wait(wait, held), _are_all_held(held))
        .values(lease_holder=None, lease_expires_at=None)
        .cte("released")
    )
    return select(held).add_cte(released)


def _renew_free() -> Select[Any]:
    """Renews what is free to be renewed; returns all that is held, the others with the leases that they have."""
    given = given_deliveries()
    free = (
        select(*key())
        .join_from(given, wait, is_held(given))
        .order_by(*key())
        .with_for_update(of=wait, skip_locked=True)
        .cte("free")
    )
    renewed = (
        update(wait)
        .where(same_wait(wait, free))
        .values(lease_expires_at=NOW + param("lease_duration", INTERVAL))
        .returning(*key("lease_expires_at"))
        .cte("renewed")
    )
    ends_at = func.coalesce(renewed.c.lease_expires_at, wait.c.lease_expires_at).label("lease_expires_at")
    held = given.join(wait, is_held(given)).outerjoin(renewed, same_wait(renewed, wait))
    return select(*key("lease_holder", "lease_token"), ends_at).select_from(held)


def _renew() -> Any:
    given = given_deliveries()
    return (
        update(wait)
        .where(is_held(given))
        .values(lease_expires_at=NOW + param("lease_duration", INTERVAL))
        .returning(*key("lease_holder", "lease_token", "lease_expires_at"))
    )


def _retry() -> Any:
    given = given_deliveries()
    return (
        update(wait)
        .where(is_held(given), wait.c.attempts < param("max_attempts", INTEGER))
        .values(
            lease_holder=None,
            lease_expires_at=None,
            available_at=NOW + param("after", INTERVAL),
            last_error=param("error", TEXT),
        )
        .returning(*key())
    )


HELD = Statement("correlations.held", _held)
COMPLETE = Statement("correlations.complete", _complete)
RELEASE = Statement("correlations.release", _release)
RENEW = Statement("correlations.renew", _renew)
RENEW_FREE = Statement("correlations.renew.free", _renew_free)
RETRY = Statement("correlations.retry", _retry)
