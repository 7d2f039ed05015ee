"""Matching events with waits: the second statement of publishing and of waiting.

Publishing inserts an event, waiting inserts a wait, each under its key's lock, and each is followed by this
same statement, which pairs what it finds under the key. Whoever commits the insert last sees the other one's
row here, so no event is lost; rows are locked and looked at again before they are paired, so none is
delivered twice.

A row is NEW until a match has looked at it. One that stays NEW (its process died between the two statements)
is healed by `claim_delivered`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    and_,
    case,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
    union_all,
    update,
)

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import BIGINT, INTEGER, JSON_DOCUMENT, NOW, TEXT, relation
from cascade_state.postgres.statements.waits import event, wait

__all__ = ["KEY_COLUMNS", "MATCH", "MATCH_UNLOCKED"]

# `item` is the position of the caller who wants the key matched.
KEY_COLUMNS = {"item": INTEGER, "partition_id": INTEGER, "correlation_key": TEXT, "lock_key": BIGINT}


def _match(*, patient: bool) -> Select[Any]:
    """Pairs events and waits of the given keys.

    Args:
        patient: Whether to wait for a key that somebody else has locked, or to leave it out.
    """
    keys = _locked_keys(patient=patient)
    events, waits = _live_events(keys), _live_waits(keys)
    nth = func.row_number().over(
        partition_by=(events.c.partition_id, events.c.correlation_key),
        order_by=(events.c.published_at, events.c.ordinal),
    )
    in_order = select(events, nth.label("nth")).where(events.c.mode == "broadcast").subquery("in_order")
    # The first of each key; SQLAlchemy 2.0 and 2.1 write DISTINCT ON in different ways.
    broadcasts = select(*(in_order.c[item.name] for item in events.c)).where(in_order.c.nth == 1).cte("broadcasts")
    pairs = _pairs(events, waits, broadcasts)
    delivered = (
        update(wait)
        .where(_same_wait(wait, pairs))
        .values(
            status="DELIVERED",
            event_id=pairs.c.event_id,
            payload=pairs.c.payload,
            mode=pairs.c.mode,
            published_at=pairs.c.published_at,
            ordinal=pairs.c.ordinal,
            delivered_at=NOW,
            available_at=NOW,
            attempts=0,
            last_error=None,
        )
        .returning(
            wait.c.correlation_key,
            wait.c.flow_instance_id,
            wait.c.step_id,
            wait.c.event_id,
            cast(wait.c.payload, TEXT).label("payload"),
            wait.c.delivered_at,
        )
        .cte("delivered")
    )
    settled_waits = (
        update(wait)
        .where(_same_wait(wait, waits), waits.c.status == "NEW", ~exists().where(_same_wait(pairs, waits)))
        .values(status="WAITING")
        .cte("settled_waits")
    )
    verdicts = _verdicts(events, pairs)
    settled_events = (
        update(event)
        .where(_same_event(event, verdicts), event.c.status != verdicts.c.verdict)
        .values(
            status=verdicts.c.verdict,
            # What is only remembered for deduplication needs no payload; a delivery has its own copy.
            payload=case(
                (verdicts.c.verdict == "SEEN", cast(literal_column("'null'"), JSON_DOCUMENT)),
                else_=event.c.payload,
            ),
        )
        .cte("settled_events")
    )
    return (
        select(keys.c.item, delivered)
        .join_from(delivered, keys, keys.c.correlation_key == delivered.c.correlation_key)
        .order_by(delivered.c.correlation_key, delivered.c.flow_instance_id, delivered.c.step_id)
        .add_cte(settled_waits, settled_events)
    )


def _locked_keys(*, patient: bool) -> CTE:
    given = relation("key", KEY_COLUMNS).subquery("given")
    if patient:
        return (
            select(given, func.pg_advisory_xact_lock(given.c.lock_key).label("locked"))
            .where(_has_new_snapshot())
            .order_by(given.c.lock_key)
            .cte("keys")
        )
    locked = func.pg_try_advisory_xact_lock(given.c.lock_key).label("locked")
    tried = select(given, locked).where(_has_new_snapshot()).cte("tried")
    return select(tried).where(tried.c.locked).cte("keys")


def _has_new_snapshot() -> ColumnElement[bool]:
    """Whether this statement sees what was committed until it began; from REPEATABLE READ on it does not."""
    isolation = func.current_setting("transaction_isolation", type_=TEXT)
    return and_(isolation != "repeatable read", isolation != "serializable")


def _live_events(keys: CTE) -> CTE:
    return (
        select(
            event.c.partition_id,
            event.c.correlation_key,
            event.c.event_id,
            event.c.payload,
            event.c.mode,
            event.c.status,
            event.c.published_at,
            event.c.ordinal,
        )
        .join_from(keys, event, _same_key(event, keys))
        .where(event.c.status.in_(_texts("NEW", "KEPT")), event.c.expires_at > NOW)
        .with_for_update(of=event)
        .cte("events")
    )


def _live_waits(keys: CTE) -> CTE:
    return (
        select(
            wait.c.partition_id,
            wait.c.correlation_key,
            wait.c.flow_instance_id,
            wait.c.step_id,
            wait.c.status,
            wait.c.created_at,
        )
        .join_from(keys, wait, _same_key(wait, keys))
        .where(
            wait.c.status.in_(_texts("NEW", "WAITING")),
            or_(wait.c.expires_at.is_(None), wait.c.expires_at > NOW),
        )
        .with_for_update(of=wait)
        .cte("waits")
    )


def _pairs(events: CTE, waits: CTE, broadcasts: CTE) -> CTE:
    """Who gets what: a broadcast goes to every waiter of its key; else the oldest event to the oldest waiter."""
    by_key = (waits.c.partition_id, waits.c.correlation_key)
    waiting = select(
        waits,
        func.row_number()
        .over(partition_by=by_key, order_by=(waits.c.created_at, waits.c.flow_instance_id, waits.c.step_id))
        .label("place"),
    ).where(~exists().where(_same_key(broadcasts, waits)))
    waiting_cte = waiting.cte("waiting")
    queued = (
        select(
            events,
            func.row_number()
            .over(
                partition_by=(events.c.partition_id, events.c.correlation_key),
                order_by=(events.c.published_at, events.c.ordinal),
            )
            .label("place"),
        )
        .where(events.c.mode != "broadcast")
        .cte("queued")
    )
    one_to_one = select(*_pair_columns(waiting_cte, queued)).join_from(
        waiting_cte, queued, and_(_same_key(queued, waiting_cte), queued.c.place == waiting_cte.c.place)
    )
    to_all = select(*_pair_columns(waits, broadcasts)).join_from(waits, broadcasts, _same_key(broadcasts, waits))
    return union_all(one_to_one, to_all).cte("pairs")


def _pair_columns(waiting: CTE, chosen: CTE) -> tuple[ColumnElement[Any], ...]:
    return (
        waiting.c.partition_id,
        waiting.c.correlation_key,
        waiting.c.flow_instance_id,
        waiting.c.step_id,
        chosen.c.event_id,
        chosen.c.payload,
        chosen.c.mode,
        chosen.c.published_at,
        chosen.c.ordinal,
    )


def _verdicts(events: CTE, pairs: CTE) -> CTE:
    """What becomes of each event: delivered, dropped and broadcast ones are only remembered (SEEN), the rest is KEPT.

    Of "first" events that nobody got, only the oldest is kept.
    """
    paired = exists().where(_same_event(pairs, events)).label("paired")
    judged = select(events, paired).cte("judged")
    earlier = judged.alias("earlier")
    older_is_kept = exists().where(
        _same_key(earlier, judged),
        earlier.c.mode == "first",
        ~earlier.c.paired,
        or_(
            earlier.c.published_at < judged.c.published_at,
            and_(earlier.c.published_at == judged.c.published_at, earlier.c.ordinal < judged.c.ordinal),
        ),
    )
    seen = or_(judged.c.paired, judged.c.mode == "broadcast", and_(judged.c.mode == "first", older_is_kept))
    return select(
        judged.c.partition_id,
        judged.c.correlation_key,
        judged.c.event_id,
        case((seen, literal_column("'SEEN'", TEXT)), else_=literal_column("'KEPT'", TEXT)).label("verdict"),
    ).cte("verdicts")


def _texts(*values: str) -> list[ColumnElement[str]]:
    # Literals, not parameters: so the planner can see that a partial index covers them.
    return [literal_column(f"'{value}'", TEXT) for value in values]


def _same_key(left: Any, right: Any) -> ColumnElement[bool]:
    return and_(left.c.partition_id == right.c.partition_id, left.c.correlation_key == right.c.correlation_key)


def _same_event(left: Any, right: Any) -> ColumnElement[bool]:
    return and_(_same_key(left, right), left.c.event_id == right.c.event_id)


def _same_wait(left: Any, right: Any) -> ColumnElement[bool]:
    return and_(
        _same_key(left, right),
        left.c.flow_instance_id == right.c.flow_instance_id,
        left.c.step_id == right.c.step_id,
    )


MATCH = Statement("correlations.match", lambda: _match(patient=True))
MATCH_UNLOCKED = Statement("correlations.match_unlocked", lambda: _match(patient=False))
