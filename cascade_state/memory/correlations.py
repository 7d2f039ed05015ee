"""Correlations in memory. `matching` pairs events with waits, `delivering` holds what befalls deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from uuid import UUID

from cascade_state.abc.correlations import Correlations
from cascade_state.abc.guards import Guard
from cascade_state.memory.decoding import correlation_of, delivery_of, lease_of
from cascade_state.memory.delivering import bury, claim_deliveries, freed, next_delivery_at
from cascade_state.memory.matching import DEAD, KEPT, SEEN, deliver_broadcast, match_key
from cascade_state.memory.rows import EventRow, WaitRow
from cascade_state.memory.runners import Runner
from cascade_state.memory.schema import wait_key
from cascade_state.memory.transaction import View
from cascade_state.memory.writing import drop_wait, held_delivery_row
from cascade_state.model.advance import HeldDelivery, Limits
from cascade_state.model.correlations import Correlation, DeadLetter, Delivery
from cascade_state.model.documents import load
from cascade_state.model.publishing import EVENT_LIFETIME, PlannedPublication

__all__ = ["MemoryCorrelations"]


class MemoryCorrelations(Correlations):
    """See `Correlations`."""

    def __init__(self, runner: Runner, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._runner = runner

    async def _publish(self, publication: PlannedPublication) -> list[Delivery]:
        return await self._runner.run(_publish, publication)

    async def _cancel(self, flow_instance_id: UUID, step_id: str) -> bool:
        return await self._runner.run(_cancel, flow_instance_id, step_id)

    async def _claim_delivered(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: frozenset[int] | None
    ) -> list[Delivery]:
        attempts = self._limits.max_attempts
        return await self._runner.run(claim_deliveries, holder, limit, lease_duration, attempts, partitions)

    async def _next_delivery_at(self, partitions: frozenset[int] | None) -> datetime | None:
        return await self._runner.run(next_delivery_at, partitions)

    async def _renew(
        self,
        deliveries: Sequence[Delivery],
        held: Sequence[HeldDelivery],
        lease_duration: timedelta,
        skip_locked: bool,
    ) -> list[Delivery]:
        return await self._runner.run(_renew, deliveries, held, lease_duration, skip_locked)

    async def _complete(self, held: Sequence[HeldDelivery]) -> None:
        await self._runner.run(_complete, held)

    async def _release(self, held: Sequence[HeldDelivery]) -> None:
        await self._runner.run(_release, held)

    async def _retry(self, held: HeldDelivery, after: timedelta, error: str) -> None:
        await self._runner.run(_retry, held, after, error, self._limits.max_attempts)

    async def _give_up(self, held: HeldDelivery, reason: str) -> None:
        await self._runner.run(_give_up, held, reason)

    async def _list_waiting(
        self, correlation_key: str, limit: int, after: tuple[datetime, UUID, str] | None
    ) -> list[Correlation]:
        return await self._runner.run(_list_waiting, correlation_key, limit, after)

    async def _list_dead_letters(self, limit: int, after: tuple[datetime, str, str] | None) -> list[DeadLetter]:
        return await self._runner.run(_list_dead_letters, limit, after)


def _publish(view: View, publication: PlannedPublication) -> list[Delivery]:
    now = view.now()
    key = (publication.correlation_key, publication.event_id)
    view.lock("correlation key", publication.correlation_key)
    view.lock("early_events", key)
    known = view.early_events.get(key)
    if known is not None and known.expires_at > now and not (publication.replaces and known.status == DEAD):
        return []
    event = EventRow(
        correlation_key=publication.correlation_key,
        event_id=publication.event_id,
        payload=publication.payload,
        mode=publication.mode,
        status=KEPT,
        published_at=now,
        ordinal=publication.ordinal,
        expires_at=publication.expires_at or now + EVENT_LIFETIME,
    )
    delivered = [row for row in _matched(view, event, now) if row.event_id == event.event_id]
    delivered.sort(key=lambda row: (row.flow_instance_id.int, row.step_id))
    return [delivery_of(row) for row in delivered]


def _matched(view: View, event: EventRow, now: datetime) -> list[WaitRow]:
    """Stores a new event and matches it."""
    key = (event.correlation_key, event.event_id)
    if event.mode == "broadcast" and event.expires_at > now:
        view.early_events.put(key, event._replace(status=SEEN, payload="null"))
        return deliver_broadcast(view, event, now)
    view.early_events.put(key, event)
    return match_key(view, event.correlation_key, now)


def _cancel(view: View, flow_instance_id: UUID, step_id: str) -> bool:
    rows = view.correlations.select("flow", flow_instance_id.int)
    keys = [wait_key(row) for row in rows if row.step_id == step_id]
    for key in keys:
        drop_wait(view, key)
    return bool(keys)


def _renew(
    view: View,
    deliveries: Sequence[Delivery],
    held: Sequence[HeldDelivery],
    lease_duration: timedelta,
    skip_locked: bool,
) -> list[Delivery]:
    expires_at = view.now() + lease_duration
    renewed = []
    for delivery, item in zip(deliveries, held, strict=True):
        key = (item.correlation_key, item.flow_instance_id.int, item.step_id)
        row = view.correlations.get(key)
        if row is None or row.lease_token != item.token or row.lease_holder is None:
            continue
        if skip_locked and not view.is_free("correlations", key):
            renewed.append(delivery)
            continue
        view.lock("correlations", key)
        row = row._replace(lease_expires_at=expires_at)
        view.correlations.put(key, row)
        renewed.append(replace(delivery, lease=lease_of(row)))
    return renewed


def _complete(view: View, held: Sequence[HeldDelivery]) -> None:
    for row in _all_held(view, held):
        view.correlations.remove(wait_key(row))


def _release(view: View, held: Sequence[HeldDelivery]) -> None:
    for row in _all_held(view, held):
        view.correlations.put(wait_key(row), freed(row))


def _all_held(view: View, held: Sequence[HeldDelivery]) -> list[WaitRow]:
    return [held_delivery_row(view, item) for item in dict.fromkeys(held)]


def _retry(view: View, held: HeldDelivery, after: timedelta, error: str, max_attempts: int) -> None:
    seen = view.correlations.get((held.correlation_key, held.flow_instance_id.int, held.step_id))
    if seen is not None and seen.attempts >= max_attempts:
        _give_up(view, held, error)
        return
    row = held_delivery_row(view, held)
    available_at = view.now() + after
    view.correlations.put(wait_key(row), freed(row)._replace(available_at=available_at, last_error=error))


def _give_up(view: View, held: HeldDelivery, reason: str) -> None:
    view.lock("correlation key", held.correlation_key)  # before the row, as a publisher does
    bury(view, held_delivery_row(view, held), reason, view.now())


def _list_waiting(
    view: View, correlation_key: str, limit: int, after: tuple[datetime, UUID, str] | None
) -> list[Correlation]:
    now = view.now()
    behind = None if after is None else (after[0], (correlation_key, after[1].int, after[2]))
    rows = view.correlations.select("waiting", correlation_key, after=behind)
    waiting = (row for row in rows if row.expires_at is None or row.expires_at > now)
    return [correlation_of(row) for row in islice(waiting, limit)]


def _list_dead_letters(view: View, limit: int, after: tuple[datetime, str, str] | None) -> list[DeadLetter]:
    behind = None if after is None else (after[0], (after[1], after[2]))
    return [
        DeadLetter(
            correlation_key=row.correlation_key,
            event_id=row.event_id,
            payload=load(row.payload),
            published_at=row.published_at,
            reason=row.reason or "",
        )
        for row in islice(view.early_events.select("dead", after=behind), limit)
    ]
