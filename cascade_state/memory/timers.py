"""Timers in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from cascade_state.abc.guards import Guard
from cascade_state.abc.timers import Timers
from cascade_state.errors import FlowInstanceNotFound, InvalidTransition, SerializationError
from cascade_state.memory.decoding import lease_of, timer_of
from cascade_state.memory.indexes import BUSY, FREE
from cascade_state.memory.rows import TimerRow
from cascade_state.memory.runners import Runner
from cascade_state.memory.sorted_keys import Entry
from cascade_state.memory.transaction import View
from cascade_state.memory.writing import drop_timer, held_timer_row, new_timer_row
from cascade_state.model.advance import HeldTimer, Limits, PlannedTimer
from cascade_state.model.timers import WORN_OUT, Timer, TimerStatus

__all__ = ["MemoryTimers"]

_log = logging.getLogger("cascade_state.timers")


class MemoryTimers(Timers):
    """See `Timers`."""

    def __init__(self, runner: Runner, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._runner = runner

    async def _find(self, timer_id: UUID) -> Timer | None:
        return await self._runner.run(_find, timer_id)

    async def _schedule(self, timer: PlannedTimer) -> Timer:
        return await self._runner.run(_schedule, timer)

    async def _cancel(self, timer_id: UUID) -> bool:
        return await self._runner.run(drop_timer, timer_id.int)

    async def _reschedule(self, timer_id: UUID, due_at: datetime) -> Timer | None:
        return await self._runner.run(_reschedule, timer_id, due_at)

    async def _revive(self, timer_id: UUID) -> Timer | None:
        return await self._runner.run(_revive, timer_id)

    async def _claim_due(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: frozenset[int] | None
    ) -> list[Timer]:
        return await self._runner.run(_claim_due, holder, limit, lease_duration, partitions)

    async def _renew(
        self, timers: Sequence[Timer], held: Sequence[HeldTimer], lease_duration: timedelta, skip_locked: bool
    ) -> list[Timer]:
        return await self._runner.run(_renew, timers, held, lease_duration, skip_locked)

    async def _complete(self, held: Sequence[HeldTimer]) -> None:
        await self._runner.run(_complete, held)

    async def _release(self, held: Sequence[HeldTimer]) -> None:
        await self._runner.run(_release, held)

    async def _retry(self, held: HeldTimer, after: timedelta, error: str) -> Timer:
        return await self._runner.run(_retry, held, after, error)

    async def _give_up(self, held: HeldTimer, reason: str) -> Timer:
        return await self._runner.run(_give_up, held, reason)

    async def _next_due_at(self, partitions: frozenset[int] | None) -> datetime | None:
        return await self._runner.run(_next_due_at, partitions)

    async def _list_for_instance(
        self, flow_instance_id: UUID, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[Timer]:
        return await self._runner.run(_list, "flow", flow_instance_id.int, limit, after)

    async def _list_dead(self, limit: int, after: tuple[datetime, UUID] | None) -> list[Timer]:
        return await self._runner.run(_list, "dead", None, limit, after)


def _find(view: View, timer_id: UUID) -> Timer | None:
    row = view.timers.get(timer_id.int)
    return None if row is None else timer_of(row)


def _schedule(view: View, timer: PlannedTimer) -> Timer:
    """Stores a timer. The flow's row is locked, so the flow cannot end meanwhile without removing this timer, too."""
    flow_key = timer.flow_instance_id.int
    flow = view.flow_instances.get(flow_key)
    if flow is None:
        raise FlowInstanceNotFound(key=timer.flow_instance_id)
    if flow.completed_at is not None:
        raise InvalidTransition(from_status=flow.status, to_status="WAITING_FOR_TIMER")
    view.lock("flow_instances", flow_key)
    key = timer.timer_id.int
    view.lock("timers", key)
    row = view.timers.get(key)
    if row is None:
        row = new_timer_row(timer, view.now())
        view.timers.put(key, row)
    return timer_of(row)


def _reschedule(view: View, timer_id: UUID, due_at: datetime) -> Timer | None:
    key = timer_id.int
    row = view.timers.get(key)
    if row is None:
        return None
    view.lock("timers", key)
    status = TimerStatus.DEAD if row.status is TimerStatus.DEAD else TimerStatus.PENDING
    # The token grows, so that whoever holds the timer has lost it.
    return _put(view, _freed(row)._replace(due_at=due_at, status=status, lease_token=row.lease_token + 1))


def _revive(view: View, timer_id: UUID) -> Timer | None:
    key = timer_id.int
    row = view.timers.get(key)
    if row is None:
        return None
    view.lock("timers", key)
    if row.status is not TimerStatus.DEAD:
        return timer_of(row)
    return _put(view, row._replace(status=TimerStatus.PENDING, attempts=0))


def _claim_due(
    view: View, holder: str, limit: int, lease_duration: timedelta, partitions: frozenset[int] | None
) -> list[Timer]:
    now = view.now()
    due: list[TimerRow] = []
    worn_out: list[TimerRow] = []
    for row in view.timers.select("claimable", FREE, now=now):
        if row.due_at > now or len(due) == limit:
            break
        if not view.is_in(row.timer_id.int, partitions):
            continue
        if _is_held(row, now) or not view.is_free("timers", row.timer_id.int):
            continue
        (due if row.attempts < row.max_attempts else worn_out).append(row)
    for row in worn_out:
        view.lock("timers", row.timer_id.int)
        dead = _freed(row)._replace(status=TimerStatus.DEAD, last_error=WORN_OUT, lease_token=row.lease_token + 1)
        view.timers.put(row.timer_id.int, dead)
    expires_at = now + lease_duration
    return [claimed for row in due if (claimed := _claimed(view, row, holder, expires_at)) is not None]


def _claimed(view: View, row: TimerRow, holder: str, expires_at: datetime) -> Timer | None:
    """Puts a timer under a lease. One that cannot be decoded stays claimed, and dies when its attempts are used up."""
    view.lock("timers", row.timer_id.int)
    row = row._replace(
        status=TimerStatus.CLAIMED,
        attempts=row.attempts + 1,
        lease_holder=holder,
        lease_token=row.lease_token + 1,
        lease_expires_at=expires_at,
    )
    view.timers.put(row.timer_id.int, row)
    try:
        return timer_of(row)
    except SerializationError as error:
        _log.warning("skipping a claimed timer: %s", error)
        return None


def _is_held(row: TimerRow, now: datetime) -> bool:
    return row.lease_expires_at is not None and row.lease_expires_at > now


def _renew(
    view: View, timers: Sequence[Timer], held: Sequence[HeldTimer], lease_duration: timedelta, skip_locked: bool
) -> list[Timer]:
    expires_at = view.now() + lease_duration
    renewed = []
    for timer, item in zip(timers, held, strict=True):
        row = view.timers.get(item.timer_id.int)
        if row is None or row.lease_token != item.token or row.lease_holder is None:
            continue
        if skip_locked and not view.is_free("timers", item.timer_id.int):
            renewed.append(timer)
            continue
        view.lock("timers", item.timer_id.int)
        row = row._replace(lease_expires_at=expires_at)
        view.timers.put(item.timer_id.int, row)
        renewed.append(replace(timer, lease=lease_of(row)))
    return renewed


def _complete(view: View, held: Sequence[HeldTimer]) -> None:
    for row in _all_held(view, held):
        view.timers.remove(row.timer_id.int)


def _release(view: View, held: Sequence[HeldTimer]) -> None:
    for row in _all_held(view, held):
        _put(view, _freed(row)._replace(status=TimerStatus.PENDING))


def _all_held(view: View, held: Sequence[HeldTimer]) -> list[TimerRow]:
    return [held_timer_row(view, item) for item in dict.fromkeys(held)]


def _retry(view: View, held: HeldTimer, after: timedelta, error: str) -> Timer:
    row = held_timer_row(view, held)
    status = TimerStatus.DEAD if row.attempts >= row.max_attempts else TimerStatus.PENDING
    return _put(view, _freed(row)._replace(status=status, due_at=view.now() + after, last_error=error))


def _give_up(view: View, held: HeldTimer, reason: str) -> Timer:
    row = held_timer_row(view, held)
    return _put(view, _freed(row)._replace(status=TimerStatus.DEAD, last_error=reason))


def _freed(row: TimerRow) -> TimerRow:
    return row._replace(lease_holder=None, lease_expires_at=None)


def _put(view: View, row: TimerRow) -> Timer:
    view.timers.put(row.timer_id.int, row)
    return timer_of(row)


def _next_due_at(view: View, partitions: frozenset[int] | None) -> datetime | None:
    now = view.now()
    candidates: list[datetime] = []
    for row in view.timers.select("claimable", FREE, now=now):
        if not view.is_in(row.timer_id.int, partitions):
            continue
        if not _is_held(row, now):
            candidates.append(row.due_at)
            break
        candidates.append(_claimable_at(row))  # a clock was set back
    held = view.timers.select("claimable", BUSY)
    busy = next((row for row in held if view.is_in(row.timer_id.int, partitions)), None)
    if busy is not None:
        candidates.append(_claimable_at(busy))
    return min(candidates, default=None)


def _claimable_at(row: TimerRow) -> datetime:
    return row.due_at if row.lease_expires_at is None else max(row.due_at, row.lease_expires_at)


def _list(view: View, index: str, group: int | None, limit: int, after: tuple[datetime, UUID] | None) -> list[Timer]:
    behind: Entry | None = None if after is None else (after[0], after[1].int)
    timers = []
    for row in view.timers.select(index, group, after=behind):
        timers.append(timer_of(row))
        if len(timers) == limit:
            break
    return timers
