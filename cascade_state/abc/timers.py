"""The repository of timers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from cascade_state.abc.repository import DEFAULT_LIMIT, Repository, check_limit, cut, decode_position
from cascade_state.errors import TimerNotFound
from cascade_state.model.advance import HeldTimer, PlannedTimer, held_timer, held_timers, plan_timer
from cascade_state.model.arguments import (
    check_duration,
    check_instant,
    check_items,
    check_key,
    check_optional_key,
    check_partitions,
    check_text,
    check_uuid,
)
from cascade_state.model.lists import CursorList
from cascade_state.model.timers import ScheduleTimer, Timer
from cascade_state.types import JsonValue

__all__ = ["Timers"]


class Timers(Repository, ABC):
    """Instants at which steps must be woken.

    They are claimed under a lease and completed with the commit of their effect.
    A timer is due when `due_at <= now` and it is pending, or its lease has expired (C-41). Lists are ordered
    by due time, then id. A timer that was completed or cancelled is gone.
    """

    async def get(self, timer_id: UUID) -> Timer:
        """Returns the timer.

        Raises:
            TimerNotFound: It was completed or cancelled, or went with its flow.
        """
        found = await self.find(timer_id)
        if found is None:
            raise TimerNotFound(key=timer_id)
        return found

    async def find(self, timer_id: UUID) -> Timer | None:
        """Returns the timer, or None."""
        check_uuid(timer_id, "timer_id")
        with self._guard.call(writes=False):
            return await self._find(timer_id)

    async def schedule(
        self,
        flow_instance_id: UUID,
        step_id: str,
        *,
        due_at: datetime | None = None,
        after: timedelta | None = None,
        payload: JsonValue = None,
        max_attempts: int | None = None,
        idempotency_key: str | None = None,
    ) -> Timer:
        """Stores a timer and returns it. The flow is not suspended by it.

        Args:
            due_at: The instant; it may lie in the past. Give exactly one of `due_at` and `after`.
            after: Added to the database's clock.
            max_attempts: How often it may be claimed; None: the store's option.
            idempotency_key: A repeated call with the same flow and key returns the timer that is there
                instead of making another, as long as that timer exists.

        Raises:
            FlowInstanceNotFound: There is no such flow instance.
            InvalidTransition: The flow has ended.
            InvalidArgument: Neither or both of `due_at` and `after`, or a value that cannot be stored.
        """
        check_uuid(flow_instance_id, "flow_instance_id")
        key = check_optional_key(idempotency_key, "idempotency_key")
        timer = plan_timer(
            flow_instance_id,
            ScheduleTimer(step_id, due_at, after, payload, max_attempts),
            self._limits,
            key=key,
        )
        with self._guard.call(writes=True):
            return await self._schedule(timer)

    async def cancel(self, timer_id: UUID) -> bool:
        """Removes the timer; returns whether there was one. It never fires; a holder gets `LeaseLost` (C-43)."""
        check_uuid(timer_id, "timer_id")
        with self._guard.call(writes=True):
            return await self._cancel(timer_id)

    async def reschedule(self, timer_id: UUID, due_at: datetime) -> Timer:
        """Moves a timer to another instant, pending again; a holder loses it. A dead one stays dead.

        Raises:
            TimerNotFound: There is no such timer.
        """
        check_uuid(timer_id, "timer_id")
        due_at = check_instant(due_at, "due_at")
        with self._guard.call(writes=True):
            timer = await self._reschedule(timer_id, due_at)
        if timer is None:
            raise TimerNotFound(key=timer_id)
        return timer

    async def claim_due(
        self,
        holder: str,
        *,
        limit: int = DEFAULT_LIMIT,
        lease_duration: timedelta,
        partitions: Collection[int] | None = None,
    ) -> list[Timer]:
        """Claims due timers, earliest first, and returns them with their leases.

        Neither sees nor waits for timers that another open unit of work holds (C-42). Counts as an attempt; a
        timer with no attempt left becomes DEAD instead of being claimed.

        Args:
            partitions: Claims timers of flows in these partitions only. Where more are due than `limit`, each
                partition's earliest come first, and which partition does is not promised. None: all.
        """
        check_key(holder, "holder")
        check_duration(lease_duration, "lease_duration")
        chosen = check_partitions(partitions, "partitions", self._limits.partition_count)
        with self._guard.call(writes=True):
            if chosen is not None and not chosen:
                return []
            return await self._claim_due(holder, check_limit(limit), lease_duration, chosen)

    async def renew(
        self, timers: Iterable[Timer], lease_duration: timedelta, *, skip_locked: bool = False
    ) -> list[Timer]:
        """Extends leases to now + `lease_duration`; returns the timers that it renewed. What is missing was lost.

        Args:
            skip_locked: Does not wait for timers that another transaction holds, but returns them as they are:
                while it is open nobody can take them.
        """
        items = check_items(timers, "timers")
        held = held_timers(items)
        check_duration(lease_duration, "lease_duration")
        with self._guard.call(writes=True):
            return await self._renew(items, held, lease_duration, skip_locked)

    async def complete(self, timers: Iterable[Timer]) -> None:
        """Removes claimed timers, all or nothing. Inside the unit of work of their effect they fire exactly once.

        Raises:
            LeaseLost: Naming the first whose lease is not current; nothing is removed.
        """
        held = held_timers(timers)
        with self._guard.call(writes=True):
            await self._complete(held)

    async def retry(self, timer: Timer, *, after: timedelta, error: str) -> Timer:
        """Gives a claimed timer back, due again `after` from now, with its error; DEAD if no attempt is left.

        Raises:
            LeaseLost: The lease is not current.
        """
        held = held_timer(timer)
        check_duration(after, "after", allow_zero=True)
        check_text(error, "error")
        with self._guard.call(writes=True):
            return await self._retry(held, after, error)

    async def give_up(self, timer: Timer, *, reason: str) -> Timer:
        """Makes a claimed timer DEAD, with `reason` as its `last_error`.

        Raises:
            LeaseLost: The lease is not current.
        """
        held = held_timer(timer)
        check_text(reason, "reason")
        with self._guard.call(writes=True):
            return await self._give_up(held, reason)

    async def release(self, timers: Iterable[Timer]) -> None:
        """Gives claimed timers back, pending at once, all or nothing. The attempt stays counted.

        Raises:
            LeaseLost: Naming the first whose lease is not current; nothing is released.
        """
        held = held_timers(timers)
        with self._guard.call(writes=True):
            await self._release(held)

    async def next_due_at(self, *, partitions: Collection[int] | None = None) -> datetime | None:
        """Returns when the next timer becomes claimable: its due time, or the end of its lease; None: there is none.

        Args:
            partitions: Looks at timers of flows in these partitions only; None: at all.
        """
        chosen = check_partitions(partitions, "partitions", self._limits.partition_count)
        with self._guard.call(writes=False):
            if chosen is not None and not chosen:
                return None
            return await self._next_due_at(chosen)

    async def list_for_instance(
        self, flow_instance_id: UUID, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> CursorList[Timer]:
        """Returns the timers of a flow instance, dead ones included."""
        subject = ("timers.list_for_instance", check_uuid(flow_instance_id, "flow_instance_id"))
        after = decode_position(cursor, subject, datetime, UUID)
        with self._guard.call(writes=False):
            rows = await self._list_for_instance(flow_instance_id, check_limit(limit) + 1, after)
        return cut(rows, limit, subject, _sort_key)

    async def list_dead(self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> CursorList[Timer]:
        """Returns the dead timers; `last_error` says what killed them."""
        subject = "timers.list_dead"
        after = decode_position(cursor, subject, datetime, UUID)
        with self._guard.call(writes=False):
            rows = await self._list_dead(check_limit(limit) + 1, after)
        return cut(rows, limit, subject, _sort_key)

    async def revive(self, timer_id: UUID) -> Timer:
        """Makes a dead timer pending again, with all its attempts and its due time. A living one stays as it is.

        Raises:
            TimerNotFound: There is no such timer.
        """
        check_uuid(timer_id, "timer_id")
        with self._guard.call(writes=True):
            timer = await self._revive(timer_id)
        if timer is None:
            raise TimerNotFound(key=timer_id)
        return timer

    @abstractmethod
    async def _find(self, timer_id: UUID) -> Timer | None: ...

    @abstractmethod
    async def _schedule(self, timer: PlannedTimer) -> Timer: ...

    @abstractmethod
    async def _cancel(self, timer_id: UUID) -> bool: ...

    @abstractmethod
    async def _reschedule(self, timer_id: UUID, due_at: datetime) -> Timer | None: ...

    @abstractmethod
    async def _claim_due(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: frozenset[int] | None
    ) -> list[Timer]: ...

    @abstractmethod
    async def _renew(
        self, timers: Sequence[Timer], held: Sequence[HeldTimer], lease_duration: timedelta, skip_locked: bool
    ) -> list[Timer]: ...

    @abstractmethod
    async def _complete(self, held: Sequence[HeldTimer]) -> None: ...

    @abstractmethod
    async def _retry(self, held: HeldTimer, after: timedelta, error: str) -> Timer: ...

    @abstractmethod
    async def _give_up(self, held: HeldTimer, reason: str) -> Timer: ...

    @abstractmethod
    async def _release(self, held: Sequence[HeldTimer]) -> None: ...

    @abstractmethod
    async def _next_due_at(self, partitions: frozenset[int] | None) -> datetime | None: ...

    @abstractmethod
    async def _list_for_instance(
        self, flow_instance_id: UUID, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[Timer]: ...

    @abstractmethod
    async def _list_dead(self, limit: int, after: tuple[datetime, UUID] | None) -> list[Timer]: ...

    @abstractmethod
    async def _revive(self, timer_id: UUID) -> Timer | None: ...


def _sort_key(timer: Timer) -> tuple[str, str]:
    return timer.due_at.isoformat(), str(timer.timer_id)
