"""An event to be published, validated and encoded for a back end."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import get_args

from uuid_utils.compat import uuid7

from cascade_state.errors import InvalidArgument
from cascade_state.model import documents
from cascade_state.model.advance import Limits
from cascade_state.model.arguments import check_key, check_optional_instant
from cascade_state.model.correlations import DeadLetter, PublishMode
from cascade_state.types import JsonValue

__all__ = ["EVENT_LIFETIME", "PlannedPublication", "plan_publication", "plan_republication"]

EVENT_LIFETIME = timedelta(
    hours=24
)  # how long an event is kept, and its id remembered, unless `expires_at` says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPublication:
    """An event to be published.

    `ordinal` grows within a process: events of one publisher keep their order even within one instant.
    `replaces` makes the publication pass the deduplication (it re-publishes a dead letter under the same
    event id).
    """

    correlation_key: str
    event_id: str
    payload: str
    mode: str
    expires_at: datetime | None  # None: EVENT_LIFETIME from now
    ordinal: int
    replaces: bool = False


def plan_publication(
    correlation_key: str,
    payload: JsonValue,
    *,
    event_id: str | None,
    mode: PublishMode,
    expires_at: datetime | None,
    limits: Limits,
) -> PlannedPublication:
    """Returns the event that is to be published.

    Raises:
        InvalidArgument: Naming the argument.
    """
    if mode not in get_args(PublishMode):
        raise InvalidArgument(argument="mode", reason="must be 'first', 'fifo' or 'broadcast'")
    return PlannedPublication(
        correlation_key=check_key(correlation_key, "correlation_key"),
        event_id=str(uuid7()) if event_id is None else check_key(event_id, "event_id"),
        payload=documents.dump(payload, "payload", maximum_bytes=limits.max_document_bytes),
        mode=mode,
        expires_at=check_optional_instant(expires_at, "expires_at"),
        ordinal=_next_ordinal(),
    )


def plan_republication(letter: DeadLetter, limits: Limits) -> PlannedPublication:
    """Returns the event of a dead letter, to be published once more.

    Raises:
        InvalidArgument: It is no dead letter, or holds no event (a time-out that wore out).
    """
    if not isinstance(letter, DeadLetter):
        raise InvalidArgument(argument="dead_letter", reason=f"must be a DeadLetter, not {type(letter).__name__}")
    if letter.event_id is None:
        raise InvalidArgument(argument="dead_letter", reason="holds no event that could be published")
    return PlannedPublication(
        correlation_key=check_key(letter.correlation_key, "correlation_key"),
        event_id=check_key(letter.event_id, "event_id"),
        payload=documents.dump(letter.payload, "payload", maximum_bytes=limits.max_document_bytes),
        mode="fifo",  # neither dropped because another event is kept, nor lost because nobody waits now
        expires_at=None,
        ordinal=_next_ordinal(),
        replaces=True,
    )


_lock = threading.Lock()
_latest = 0


def _next_ordinal() -> int:
    """Returns a number that grows within this process, and with the machine's time across processes."""
    global _latest
    with _lock:
        _latest = max(_latest + 1, time.time_ns())
        return _latest
