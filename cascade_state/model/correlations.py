"""Correlations: steps that wait for an external key, and the events that are matched to them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias
from uuid import UUID

from cascade_state.model.leases import Lease
from cascade_state.types import JsonValue

__all__ = ["Correlation", "DeadLetter", "Delivery", "PublishMode"]

# Who gets an event: one waiter, oldest first, and at most one event is kept ("first"); one waiter each,
# queued in publish order ("fifo"); every current waiter, and nothing is kept ("broadcast").
PublishMode: TypeAlias = Literal["first", "fifo", "broadcast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """A step that waits for an event under `correlation_key`, until `expires_at` (None: for ever)."""

    correlation_key: str
    flow_instance_id: UUID
    step_id: str
    created_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An event matched to a waiting step.

    With `timed_out` it is the outcome of a wait that expired: there is no event and no payload. `attempts` counts
    claims. Acknowledge it in the commit of its effect: `uow.advance(flow, completes=[delivery])`.
    """

    correlation_key: str
    flow_instance_id: UUID
    step_id: str
    event_id: str | None = None
    payload: JsonValue = None
    delivered_at: datetime
    timed_out: bool = False
    attempts: int = 0
    lease: Lease | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that reached nobody, and why (`reason`: it expired, was given up, or wore out its attempts)."""

    correlation_key: str
    event_id: str | None
    payload: JsonValue
    published_at: datetime
    reason: str
