"""What befalls deliveries: they are claimed, they time out, they wear out and become dead letters."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

from cascade_state.memory.decoding import delivery_of
from cascade_state.memory.indexes import BUSY, FREE
from cascade_state.memory.matching import DEAD, SEEN, match_key
from cascade_state.memory.rows import EventRow, WaitRow
from cascade_state.memory.schema import wait_key
from cascade_state.memory.transaction import View
from cascade_state.model.correlations import Delivery

__all__ = ["bury", "claim_deliveries", "freed", "next_delivery_at"]

_WORN_OUT = "worn out"


def claim_deliveries(
    view: View,
    holder: str,
    limit: int,
    lease_duration: timedelta,
    max_attempts: int,
    partitions: frozenset[int] | None,
) -> list[Delivery]:
    """Claims free deliveries, oldest first; what times out now comes behind what is there already."""
    now = view.now()
    expires_at = now + lease_duration
    claimed = _claim_free(view, holder, limit, expires_at, max_attempts, partitions)
    _time_out(view, now)
    _expire_events(view, now)
    if len(claimed) < limit:
        claimed += _claim_free(view, holder, limit - len(claimed), expires_at, max_attempts, partitions)
    return claimed


def _claim_free(
    view: View, holder: str, limit: int, expires_at: datetime, max_attempts: int, partitions: frozenset[int] | None
) -> list[Delivery]:
    """Claims what is free now, after what has worn out was buried."""
    now = view.now()
    while worn_out := _worn_out(view, now, limit, max_attempts, partitions):
        for row in worn_out:
            bury(view, row, row.last_error or _WORN_OUT, now)
    usable = (row for row in _free(view, now, partitions) if row.attempts < max_attempts)
    chosen = list(islice(usable, limit))
    return [_claimed(view, row, holder, expires_at) for row in chosen]


def next_delivery_at(view: View, partitions: frozenset[int] | None) -> datetime | None:
    """Returns when the next delivery becomes claimable, or the next wait expires."""
    now = view.now()
    candidates = []
    for row in view.correlations.select("claimable", FREE, now=now):
        if view.is_in(row.flow_instance_id.int, partitions):
            candidates.append(_claimable_at(row))
            if candidates[-1] <= now:
                break
    for held in view.correlations.select("claimable", BUSY):
        if view.is_in(held.flow_instance_id.int, partitions):
            candidates.append(_claimable_at(held))
            break
    for waiting in view.correlations.select("expiring"):
        if view.is_in(waiting.flow_instance_id.int, partitions) and waiting.expires_at is not None:
            candidates.append(waiting.expires_at)
            break
    return min(candidates, default=None)


def _claimable_at(row: WaitRow) -> datetime:
    assert row.delivered_at is not None  # noqa: S101 - it is a delivery
    return row.lease_expires_at or row.available_at or row.delivered_at


def _free(view: View, now: datetime, partitions: frozenset[int] | None) -> Iterator[WaitRow]:
    """Yields the deliveries that nobody holds, in order, without those of other open units of work."""
    for row in view.correlations.select("claimable", FREE, now=now):
        held_until = row.lease_expires_at or row.available_at
        if not view.is_in(row.flow_instance_id.int, partitions):
            continue
        if (held_until is None or held_until <= now) and view.is_free("correlations", wait_key(row)):
            yield row


def _worn_out(
    view: View, now: datetime, limit: int, max_attempts: int, partitions: frozenset[int] | None
) -> list[WaitRow]:
    """Returns the deliveries without an attempt left among those that a claim would look at."""
    worn_out = []
    usable = 0
    for row in _free(view, now, partitions):
        if row.attempts < max_attempts:
            usable += 1
            if usable == limit:
                break
        elif view.is_free("correlation key", row.correlation_key):
            worn_out.append(row)
    return worn_out


def _claimed(view: View, row: WaitRow, holder: str, expires_at: datetime) -> Delivery:
    key = wait_key(row)
    view.lock("correlations", key)
    row = row._replace(
        lease_holder=holder,
        lease_token=row.lease_token + 1,
        lease_expires_at=expires_at,
        attempts=row.attempts + 1,
    )
    view.correlations.put(key, row)
    return delivery_of(row)


def freed(row: WaitRow) -> WaitRow:
    """Returns a row that nobody holds."""
    return row._replace(lease_holder=None, lease_expires_at=None)


def bury(view: View, row: WaitRow, reason: str, now: datetime) -> None:
    """Makes a dead letter of a delivery; its step waits again. A time-out has no event: only its wait goes."""
    view.lock("correlation key", row.correlation_key)
    key = wait_key(row)
    view.lock("correlations", key)
    if row.timed_out:
        view.correlations.remove(key)
        return
    _put_dead_letter(view, row, reason, now)
    view.correlations.put(
        key,
        freed(row)._replace(
            delivered_at=None,
            available_at=None,
            event_id=None,
            payload=None,
            mode=None,
            published_at=None,
            ordinal=0,
            attempts=0,
            last_error=None,
        ),
    )
    match_key(view, row.correlation_key, now)


def _put_dead_letter(view: View, row: WaitRow, reason: str, now: datetime) -> None:
    assert row.event_id is not None  # noqa: S101 - every delivery but a time-out has its event
    key = (row.correlation_key, row.event_id)
    view.lock("early_events", key)
    remembered = view.early_events.get(key)
    letter = EventRow(
        correlation_key=row.correlation_key,
        event_id=row.event_id,
        payload=row.payload or "null",
        mode=row.mode or "fifo",
        status=DEAD,
        published_at=row.published_at or now,
        ordinal=row.ordinal,
        expires_at=now if remembered is None else remembered.expires_at,
        reason=reason,
    )
    view.early_events.put(key, letter)


def _time_out(view: View, now: datetime) -> None:
    """Turns waits that have expired into deliveries that say so."""
    expired = []
    for row in view.correlations.select("expiring"):
        if row.expires_at is None or row.expires_at > now:
            break
        if view.is_free("correlations", wait_key(row)):
            expired.append(row)
    for row in expired:
        view.lock("correlations", wait_key(row))
        view.correlations.put(wait_key(row), row._replace(delivered_at=now, timed_out=True))


def _expire_events(view: View, now: datetime) -> None:
    """Turns kept events that have expired into dead letters, and forgets ids that were remembered long enough."""
    expired = []
    for row in view.early_events.select("expiring"):
        if row.expires_at > now:
            break
        if view.is_free("early_events", (row.correlation_key, row.event_id)):
            expired.append(row)
    for row in expired:
        key = (row.correlation_key, row.event_id)
        view.lock("early_events", key)
        if row.status == SEEN:
            view.early_events.remove(key)
        else:
            view.early_events.put(key, row._replace(status=DEAD, reason="expired"))
