"""Timers on PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from cascade_state.abc.guards import Guard
from cascade_state.abc.timers import Timers
from cascade_state.errors import (
    FlowInstanceNotFound,
    InvalidTransition,
    LeaseLost,
    SerializationError,
    TransactionAborted,
)
from cascade_state.model.advance import HeldTimer, Limits, PlannedTimer
from cascade_state.model.leases import Lease
from cascade_state.model.timers import WORN_OUT, Timer, TimerStatus
from cascade_state.postgres.diagnosis import raise_lost_timer
from cascade_state.postgres.direct import Record, Statement
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.operations import Operation
from cascade_state.postgres.statements import timer_lists
from cascade_state.postgres.statements import timers as statements
from cascade_state.postgres.statements.parameters import columns, partition_values
from cascade_state.postgres.timer_rows import scheduled_timer, timer_from_record, timers_from_records

__all__ = ["PostgresTimers"]

_log = logging.getLogger("cascade_state.timers")

_RACES = 5  # how often a timer of the same idempotency key may come and go while it is scheduled


class _Schedule(Operation[PlannedTimer]):
    """Inserts timers of flows that have not ended."""

    def keys(self, item: PlannedTimer) -> Collection[Hashable]:
        return (item.flow_instance_id,)

    def prepare(self, items: Sequence[PlannedTimer], executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        rows = [
            (
                executor.partition_of(timer.timer_id),
                timer.timer_id,
                timer.flow_instance_id,
                timer.step_id,
                timer.due_at,
                timer.after,
                timer.payload,
                timer.max_attempts,
            )
            for timer in items
        ]
        return _prepared(
            "timer",
            statements.TIMER_COLUMNS,
            rows,
            executor,
            statements.SCHEDULE_ONE,
            statements.SCHEDULE_EACH,
        )


class _Complete(Operation[HeldTimer]):
    """Removes claimed timers, each by itself."""

    def keys(self, item: HeldTimer) -> Collection[Hashable]:
        return (item.timer_id,)

    def prepare(self, items: Sequence[HeldTimer], executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        rows = [(executor.partition_of(held.timer_id), held.timer_id, held.token) for held in items]
        return _prepared(
            "held", statements.HELD_COLUMNS, rows, executor, statements.COMPLETE_ONE, statements.COMPLETE_EACH
        )


def _prepared(
    name: str,
    types: Mapping[str, Any],
    rows: Sequence[tuple[Any, ...]],
    executor: Executor,
    one: Statement,
    each: Statement,
) -> tuple[Statement, Mapping[str, Any]]:
    """Returns the statement for one row of scalars, or for a batch of rows that begin with their position."""
    values: dict[str, Any] = {"now": executor.now()}
    if len(rows) == 1:
        values.update((f"{name}_{column}", value) for column, value in zip(types, rows[0], strict=True))
        return one, values
    # Every batch touches the rows in one order, so that two of them never wait for each other in a circle.
    ordered = sorted(((position, *row) for position, row in enumerate(rows)), key=lambda row: row[1:3])
    values.update(columns(name, ("item", *types), ordered))
    return each, values


_SCHEDULE = _Schedule()
_COMPLETE = _Complete()


class PostgresTimers(Timers):
    """See `Timers`. A schedule waits for an advance of its flow that is under way."""

    def __init__(self, executor: Executor, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._executor = executor

    # Scheduling

    async def _schedule(self, timer: PlannedTimer) -> Timer:
        for _ in range(_RACES):
            record = await self._executor.one(_SCHEDULE, timer)
            if record is not None:
                self._executor.hint(self._executor.partition_of(timer.flow_instance_id))
                return scheduled_timer(timer, record["due_at"])
            existing = await self._existing(timer)
            if existing is not None:
                return existing
        raise TransactionAborted(reason="a timer of the same idempotency key kept coming and going")

    async def _existing(self, timer: PlannedTimer) -> Timer | None:
        """Returns the timer that is there already (None: it went meanwhile), or raises why none can be."""
        values = {
            "partition_id": self._executor.partition_of(timer.timer_id),
            "timer_id": timer.timer_id,
            "flow_instance_id": timer.flow_instance_id,
        }
        records = await self._executor.fetch(statements.DIAGNOSE_SCHEDULE, values)
        if not records:
            raise FlowInstanceNotFound(key=timer.flow_instance_id)
        record = records[0]
        if record["completed_at"] is not None:
            raise InvalidTransition(from_status=record["flow_status"], to_status="WAITING_FOR_TIMER")
        return None if record["timer_id"] is None else timer_from_record(record)

    async def _cancel(self, timer_id: UUID) -> bool:
        return bool(await self._executor.fetch(statements.CANCEL, self._identity(timer_id)))

    async def _reschedule(self, timer_id: UUID, due_at: datetime) -> Timer | None:
        self._executor.hint(self._executor.partition_of(timer_id))
        return await self._one(statements.RESCHEDULE, {**self._identity(timer_id), "due_at": due_at})

    async def _revive(self, timer_id: UUID) -> Timer | None:
        self._executor.hint(self._executor.partition_of(timer_id))
        return await self._one(statements.REVIVE, self._identity(timer_id))

    # Leases

    async def _claim_due(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: frozenset[int] | None
    ) -> list[Timer]:
        statement = statements.CLAIM_DUE
        values: dict[str, Any] = {"holder": holder, "lease_duration": lease_duration, "worn_out": WORN_OUT}
        if partitions is not None:
            statement = statements.CLAIM_DUE_IN
            values.update(partition_values(partitions))
        claimed: list[Timer] = []
        while True:
            wanted = limit - len(claimed)
            records = await self._executor.fetch(statement, {**values, "now": self._executor.now(), "limit": wanted})
            living = [record for record in records if record["status"] == TimerStatus.CLAIMED]
            claimed += _decodable(living)
            # Fewer than asked for: nothing more is due. As many, and none of them dead: all that was wanted.
            if len(records) < wanted or len(living) == len(records):
                claimed.sort(key=lambda timer: (timer.due_at, timer.timer_id))
                return claimed

    async def _renew(
        self, timers: Sequence[Timer], held: Sequence[HeldTimer], lease_duration: timedelta, skip_locked: bool
    ) -> list[Timer]:
        if not held:
            return []
        statement = statements.RENEW_FREE if skip_locked else statements.RENEW
        values = {"now": self._executor.now(), "lease_duration": lease_duration, **self._held(held)}
        records = await self._executor.fetch(statement, values)
        ends = {(record["timer_id"], record["lease_token"]): record["lease_expires_at"] for record in records}
        return [
            replace(
                timer,
                lease=Lease(holder=item.holder, token=item.token, expires_at=ends[item.timer_id, item.token]),
            )
            for timer, item in zip(timers, held, strict=True)
            if (item.timer_id, item.token) in ends
        ]

    async def _complete(self, held: Sequence[HeldTimer]) -> None:
        wanted = list(dict.fromkeys(held))
        if len(wanted) == 1:
            if await self._executor.one(_COMPLETE, wanted[0]) is None:
                raise _lost(wanted[0])
        elif wanted:
            await self._all_or_nothing(statements.COMPLETE_ALL, wanted)

    async def _release(self, held: Sequence[HeldTimer]) -> None:
        wanted = list(dict.fromkeys(held))
        if wanted:
            await self._all_or_nothing(statements.RELEASE, wanted)
            self._hint(wanted)

    async def _all_or_nothing(self, statement: Statement, wanted: Sequence[HeldTimer]) -> None:
        values = {**self._held(wanted), "held_count": len(wanted)}
        raise_lost_timer(wanted, await self._executor.fetch(statement, values))

    async def _retry(self, held: HeldTimer, after: timedelta, error: str) -> Timer:
        return await self._given_back(statements.RETRY, held, {"after": after, "error": error})

    async def _give_up(self, held: HeldTimer, reason: str) -> Timer:
        return await self._given_back(statements.GIVE_UP, held, {"error": reason})

    async def _given_back(self, statement: Statement, held: HeldTimer, values: Mapping[str, Any]) -> Timer:
        timer = await self._one(statement, {**self._identity(held.timer_id), "token": held.token, **values})
        if timer is None:
            raise _lost(held)
        self._hint([held])
        return timer

    def _hint(self, held: Sequence[HeldTimer]) -> None:
        for item in held:
            self._executor.hint(self._executor.partition_of(item.timer_id))

    # Reading

    async def _find(self, timer_id: UUID) -> Timer | None:
        return await self._one(statements.FIND, self._identity(timer_id))

    async def _next_due_at(self, partitions: frozenset[int] | None) -> datetime | None:
        if partitions is None:
            records = await self._executor.fetch(timer_lists.NEXT_DUE_AT, {})
        else:
            records = await self._executor.fetch(timer_lists.NEXT_DUE_AT_IN, partition_values(partitions))
        next_due_at: datetime | None = records[0]["next_due_at"]
        return next_due_at

    async def _list_for_instance(
        self, flow_instance_id: UUID, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[Timer]:
        values = {
            "partition_id": self._executor.partition_of(flow_instance_id),
            "flow_instance_id": flow_instance_id,
            "limit": limit,
        }
        return await self._listed(timer_lists.LIST_FOR_INSTANCE, timer_lists.LIST_FOR_INSTANCE_BEHIND, values, after)

    async def _list_dead(self, limit: int, after: tuple[datetime, UUID] | None) -> list[Timer]:
        return await self._listed(timer_lists.LIST_DEAD, timer_lists.LIST_DEAD_BEHIND, {"limit": limit}, after)

    async def _listed(
        self,
        first: Statement,
        behind: Statement,
        values: dict[str, Any],
        after: tuple[datetime, UUID] | None,
    ) -> list[Timer]:
        if after is None:
            return timers_from_records(await self._executor.fetch(first, values))
        values["after_at"], values["after_id"] = after
        return timers_from_records(await self._executor.fetch(behind, values))

    def _identity(self, timer_id: UUID) -> dict[str, Any]:
        return {"partition_id": self._executor.partition_of(timer_id), "timer_id": timer_id}

    def _held(self, held: Sequence[HeldTimer]) -> dict[str, Any]:
        rows = [(self._executor.partition_of(item.timer_id), item.timer_id, item.token) for item in held]
        return dict(columns("held", tuple(statements.HELD_COLUMNS), rows))

    async def _one(self, statement: Statement, values: Mapping[str, Any]) -> Timer | None:
        records = await self._executor.fetch(statement, {"now": self._executor.now(), **values})
        return timer_from_record(records[0]) if records else None


def _decodable(records: Sequence[Record]) -> list[Timer]:
    """Returns the timers that can be decoded; one that cannot stays claimed until its attempts are used."""
    timers: list[Timer] = []
    for record in records:
        try:
            timers.append(timer_from_record(record))
        except SerializationError as error:
            _log.warning("skipping a claimed timer: %s", error)
    return timers


def _lost(held: HeldTimer) -> LeaseLost:
    return LeaseLost(entity="timer", key=held.timer_id, token=held.token, holder=held.holder)
