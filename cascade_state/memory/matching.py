"""Matching the events and the waits of one key. Whoever calls holds the key's lock.

A new broadcast event goes to everybody who waits. All other events and the waits pair off one to one, each
in order. What is expired takes no part in it.
"""

from __future__ import annotations

from datetime import datetime

from cascade_state.memory.rows import EventRow, WaitRow
from cascade_state.memory.schema import wait_key
from cascade_state.memory.transaction import View

__all__ = ["DEAD", "KEPT", "SEEN", "deliver_broadcast", "live_waits", "match_key"]

KEPT = "KEPT"
SEEN = "SEEN"
DEAD = "DEAD"


def live_waits(view: View, correlation_key: str, now: datetime) -> list[WaitRow]:
    """Returns who waits for the key now, oldest first."""
    return [
        row
        for row in view.correlations.select("waiting", correlation_key)
        if row.expires_at is None or row.expires_at > now
    ]


def deliver_broadcast(view: View, event: EventRow, now: datetime) -> list[WaitRow]:
    """Delivers an event to everybody who waits for its key; returns the deliveries."""
    return [_deliver(view, wait, event, now) for wait in live_waits(view, event.correlation_key, now)]


def match_key(view: View, correlation_key: str, now: datetime) -> list[WaitRow]:
    """Pairs the kept events of a key with those who wait for it; returns the deliveries."""
    events = [row for row in view.early_events.select("kept", correlation_key) if row.expires_at > now]
    if not events:
        return []
    pairs = list(zip(live_waits(view, correlation_key, now), events, strict=False))
    delivered = [_deliver(view, wait, event, now) for wait, event in pairs]
    for _, event in pairs:
        _forget(view, event)
    _drop_later_firsts(view, events[len(pairs) :])
    return delivered


def _deliver(view: View, wait: WaitRow, event: EventRow, now: datetime) -> WaitRow:
    key = wait_key(wait)
    view.lock("correlations", key)
    delivered = wait._replace(
        delivered_at=now,
        available_at=None,
        event_id=event.event_id,
        payload=event.payload,
        mode=event.mode,
        published_at=event.published_at,
        ordinal=event.ordinal,
        attempts=0,
        last_error=None,
    )
    view.correlations.put(key, delivered)
    return delivered


def _drop_later_firsts(view: View, unmatched: list[EventRow]) -> None:
    """Keeps only the oldest of the "first" events that nobody got."""
    for later in [event for event in unmatched if event.mode == "first"][1:]:
        _forget(view, later)


def _forget(view: View, event: EventRow) -> None:
    """Remembers only that the event was there; its payload is needed no more."""
    key = (event.correlation_key, event.event_id)
    view.lock("early_events", key)
    view.early_events.put(key, event._replace(status=SEEN, payload="null"))
