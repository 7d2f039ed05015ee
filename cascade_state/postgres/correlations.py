"""Correlations on PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from cascade_state.abc.correlations import Correlations
from cascade_state.abc.guards import Guard
from cascade_state.errors import LeaseLost
from cascade_state.model.advance import HeldDelivery, Limits
from cascade_state.model.correlations import Correlation, DeadLetter, Delivery
from cascade_state.model.publishing import EVENT_LIFETIME, PlannedPublication
from cascade_state.postgres.diagnosis import raise_lost_delivery
from cascade_state.postgres.direct import Record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.instance_rows import lease_from_record, load_optional
from cascade_state.postgres.matching import match_keys
from cascade_state.postgres.statements import correlations as statements
from cascade_state.postgres.statements import dead_letters, sweeping
from cascade_state.postgres.statements import deliveries as delivery_statements
from cascade_state.postgres.statements.parameters import partition_values
from cascade_state.postgres.statements.waits import held_values

__all__ = ["PostgresCorrelations"]

_log = logging.getLogger("cascade_state.correlations")


class PostgresCorrelations(Correlations):
    """See `Correlations`."""

    def __init__(self, executor: Executor, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._executor = executor

    async def _publish(self, publication: PlannedPublication) -> list[Delivery]:
        key = publication.correlation_key
        executor = self._executor
        await executor.fetch(
            statements.PUBLISH,
            {
                "now": executor.now(),
                "lock_key": executor.lock_key("correlation", key),
                "partition_id": executor.partition_of_key(key),
                "correlation_key": key,
                "event_id": publication.event_id,
                "payload": publication.payload,
                "mode": publication.mode,
                "ordinal": publication.ordinal,
                "expires_at": publication.expires_at,
                "lifetime": EVENT_LIFETIME,
                "replaces": publication.replaces,
            },
        )
        # Also when its id is remembered: whoever published it first may have been stopped before the match.
        deliveries = await match_keys(executor, [key])
        return [delivery for delivery in deliveries if delivery.event_id == publication.event_id]

    # Claiming

    async def _claim_delivered(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: frozenset[int] | None
    ) -> list[Delivery]:
        claimed: list[Delivery] = []
        statement = delivery_statements.CLAIM if partitions is None else delivery_statements.CLAIM_IN
        values = {
            **({} if partitions is None else partition_values(partitions)),
            "now": self._executor.now(),
            "holder": holder,
            "lease_duration": lease_duration,
            "max_attempts": self._limits.max_attempts,
        }
        swept = False
        wanted = limit
        while True:
            records = await self._executor.fetch(statement, {**values, "limit": wanted})
            taken = [record for record in records if record["correlation_key"] is not None]
            claimed += _decodable(taken)
            wanted -= len(taken)
            worn, todo = records[0]["worn"], records[0]["unmatched"] or records[0]["expired"]
            if worn:
                await self._bury_worn()
            elif todo and not swept:
                await self._sweep(unmatched=records[0]["unmatched"])
                swept = True
            else:
                return claimed
            if not wanted:
                return claimed

    async def _sweep(self, *, unmatched: bool) -> None:
        """Matches what a dead process left unmatched, and turns what has expired into time-outs and dead letters."""
        now = {"now": self._executor.now()}
        if unmatched:
            records = await self._executor.fetch(sweeping.UNMATCHED_KEYS, now)
            await match_keys(self._executor, [record["correlation_key"] for record in records], patient=False)
        for record in await self._executor.fetch(sweeping.EXPIRE, now):
            self._executor.hint(record["flow_partition_id"])

    async def _bury_worn(self) -> None:
        values = {"now": self._executor.now(), "max_attempts": self._limits.max_attempts, "reason": None}
        records = await self._executor.fetch(dead_letters.BURY_WORN, values)
        keys = [record["correlation_key"] for record in records]
        # Their keys were not known before, so the waits came back without their locks. A claim waits for nobody:
        # a key that somebody has locked is left to a later claim. The second match has a snapshot from behind the
        # locks that the first one took, and sees what was published until then.
        await match_keys(self._executor, keys, patient=False)
        await match_keys(self._executor, keys, patient=False)

    async def _next_delivery_at(self, partitions: frozenset[int] | None) -> datetime | None:
        if partitions is None:
            records = await self._executor.fetch(delivery_statements.NEXT_DELIVERY_AT, {})
        else:
            records = await self._executor.fetch(delivery_statements.NEXT_DELIVERY_AT_IN, partition_values(partitions))
        next_delivery_at: datetime | None = records[0]["next_delivery_at"]
        return next_delivery_at

    # What is held

    async def _renew(
        self,
        deliveries: Sequence[Delivery],
        held: Sequence[HeldDelivery],
        lease_duration: timedelta,
        skip_locked: bool,
    ) -> list[Delivery]:
        statement = delivery_statements.RENEW_FREE if skip_locked else delivery_statements.RENEW
        values = {
            **held_values(self._executor, held),
            "now": self._executor.now(),
            "lease_duration": lease_duration,
        }
        leases = {
            _identity(record): lease_from_record(record) for record in await self._executor.fetch(statement, values)
        }
        renewed = []
        for delivery in deliveries:
            lease = leases.get((delivery.correlation_key, delivery.flow_instance_id, delivery.step_id))
            if lease is not None and delivery.lease is not None and lease.token == delivery.lease.token:
                renewed.append(replace(delivery, lease=lease))
        return renewed

    async def _complete(self, held: Sequence[HeldDelivery]) -> None:
        await self._all_or_nothing(delivery_statements.COMPLETE, held)

    async def _release(self, held: Sequence[HeldDelivery]) -> None:
        await self._all_or_nothing(delivery_statements.RELEASE, held)
        self._hint(held)

    async def _all_or_nothing(self, statement: Any, held: Sequence[HeldDelivery]) -> None:
        wanted = tuple(dict.fromkeys(held))
        values = {**held_values(self._executor, wanted), "held_count": len(wanted)}
        raise_lost_delivery(wanted, await self._executor.fetch(statement, values))

    async def _retry(self, held: HeldDelivery, after: timedelta, error: str) -> None:
        values = {
            **held_values(self._executor, (held,)),
            "now": self._executor.now(),
            "max_attempts": self._limits.max_attempts,
            "after": after,
            "error": error,
        }
        if not await self._executor.fetch(delivery_statements.RETRY, values):
            await self._give_up(held, error)  # no attempt is left; or the lease is lost, which it says
        else:
            self._hint([held])

    async def _give_up(self, held: HeldDelivery, reason: str) -> None:
        values = {
            **held_values(self._executor, (held,)),
            "now": self._executor.now(),
            "lock_key": self._executor.lock_key("correlation", held.correlation_key),
            "reason": reason,
        }
        if not await self._executor.fetch(dead_letters.BURY_HELD, values):
            raise _lost(held)
        await match_keys(self._executor, [held.correlation_key])

    def _hint(self, held: Sequence[HeldDelivery]) -> None:
        for item in held:
            self._executor.hint(self._executor.partition_of(item.flow_instance_id))

    async def _cancel(self, flow_instance_id: UUID, step_id: str) -> bool:
        records = await self._executor.fetch(
            statements.CANCEL,
            {
                "flow_partition_id": self._executor.partition_of(flow_instance_id),
                "flow_instance_id": flow_instance_id,
                "step_id": step_id,
            },
        )
        return bool(records)

    # Lists

    async def _list_waiting(
        self, correlation_key: str, limit: int, after: tuple[datetime, UUID, str] | None
    ) -> list[Correlation]:
        values: dict[str, Any] = {
            "now": self._executor.now(),
            "partition_id": self._executor.partition_of_key(correlation_key),
            "correlation_key": correlation_key,
            "limit": limit,
        }
        if after is not None:
            values.update(zip(("after_at", "after_id", "after_step"), after, strict=True))
        statement = statements.list_waiting_statement(continued=after is not None)
        return [Correlation(**record) for record in await self._executor.fetch(statement, values)]

    async def _list_dead_letters(self, limit: int, after: tuple[datetime, str, str] | None) -> list[DeadLetter]:
        values: dict[str, Any] = {"limit": limit}
        if after is not None:
            values.update(zip(("after_at", "after_key", "after_event"), after, strict=True))
        statement = dead_letters.list_dead_letters_statement(continued=after is not None)
        return [
            DeadLetter(**{**record, "payload": load_optional(record["payload"])})
            for record in await self._executor.fetch(statement, values)
        ]


def _decodable(records: Sequence[Record]) -> list[Delivery]:
    """Returns the deliveries that can be decoded; one that cannot stays claimed until its attempts are used."""
    deliveries = []
    for record in records:
        try:
            deliveries.append(_delivery(record))
        except (ValueError, RecursionError) as error:
            key, flow_instance_id = record["correlation_key"], record["flow_instance_id"]
            _log.warning("skipping a claimed delivery key=%r flow=%s: %s", key, flow_instance_id, type(error).__name__)
    return deliveries


def _delivery(record: Record) -> Delivery:
    return Delivery(
        correlation_key=record["correlation_key"],
        flow_instance_id=record["flow_instance_id"],
        step_id=record["step_id"],
        event_id=record["event_id"],
        payload=load_optional(record["payload"]),
        delivered_at=record["delivered_at"],
        timed_out=record["timed_out"],
        attempts=record["attempts"],
        lease=lease_from_record(record),
    )


def _identity(record: Record) -> tuple[str, UUID, str]:
    return record["correlation_key"], record["flow_instance_id"], record["step_id"]


def _lost(held: HeldDelivery) -> LeaseLost:
    return LeaseLost(entity="delivery", key=held.correlation_key, token=held.token, holder=held.holder)
