"""The repository of correlations: waits, published events, deliveries and dead letters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from cascade_state.abc.repository import DEFAULT_LIMIT, Repository, check_limit, cut, decode_position
from cascade_state.model.advance import HeldDelivery, held_deliveries, held_delivery
from cascade_state.model.arguments import (
    check_duration,
    check_items,
    check_key,
    check_partitions,
    check_text,
    check_uuid,
)
from cascade_state.model.correlations import Correlation, DeadLetter, Delivery, PublishMode
from cascade_state.model.lists import CursorList
from cascade_state.model.publishing import PlannedPublication, plan_publication, plan_republication
from cascade_state.types import JsonValue

__all__ = ["Correlations"]


class Correlations(Repository, ABC):
    """Steps that wait for a key, and the events published under it.

    A wait is made by `FlowInstance.suspend_for_event` and stored by `advance`. In every interleaving of
    publishing and waiting exactly one delivery results (C-30): whoever commits second finds what the first
    one left. Publishing takes a transaction-level lock on the key, so two units of work that touch one key
    follow each other.
    """

    async def publish(
        self,
        correlation_key: str,
        payload: JsonValue = None,
        *,
        event_id: str | None = None,
        mode: PublishMode = "first",
        expires_at: datetime | None = None,
    ) -> list[Delivery]:
        """Publishes an event and returns the deliveries made now (not claimed yet; empty if nobody waits).

        Args:
            event_id: Deduplicates: the same id under the same key is delivered once, however often it is
                published, while the event is remembered (until `expires_at`). None mints one.
            mode: "first": the oldest waiter gets it, and at most one event a key is kept for whoever waits
                later; "fifo": events queue and go one to a waiter in publish order; "broadcast": every
                current waiter gets it and nothing is kept.
            expires_at: Until when an event that nobody waits for is kept, then a dead letter; None: 24 hours.

        Raises:
            InvalidArgument: A key or payload cannot be stored.
        """
        publication = plan_publication(
            correlation_key, payload, event_id=event_id, mode=mode, expires_at=expires_at, limits=self._limits
        )
        with self._guard.call(writes=True):
            return await self._publish(publication)

    async def republish(self, dead_letter: DeadLetter) -> list[Delivery]:
        """Publishes a dead letter's event once more, past the deduplication, and takes it off the dead letters.

        It is kept for 24 hours when nobody waits. Returns the deliveries made now.

        Raises:
            InvalidArgument: The dead letter holds no event.
        """
        publication = plan_republication(dead_letter, self._limits)
        with self._guard.call(writes=True):
            return await self._publish(publication)

    async def list_waiting(
        self, correlation_key: str, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> CursorList[Correlation]:
        """Returns the steps that wait for the key and have no delivery yet, oldest first."""
        subject = ("correlations.list_waiting", check_key(correlation_key, "correlation_key"))
        after = decode_position(cursor, subject, datetime, UUID, str)
        with self._guard.call(writes=False):
            rows = await self._list_waiting(correlation_key, check_limit(limit) + 1, after)
        return cut(
            rows,
            limit,
            subject,
            lambda row: (row.created_at.isoformat(), str(row.flow_instance_id), row.step_id),
        )

    async def cancel(self, flow_instance_id: UUID, step_id: str) -> bool:
        """Removes what a step waits for, and a delivery already made for it; returns whether there was anything.

        The flow instance itself does not change: it stays suspended until it is resumed.
        """
        check_uuid(flow_instance_id, "flow_instance_id")
        check_key(step_id, "step_id")
        with self._guard.call(writes=True):
            return await self._cancel(flow_instance_id, step_id)

    async def claim_delivered(
        self,
        holder: str,
        *,
        limit: int = DEFAULT_LIMIT,
        lease_duration: timedelta,
        partitions: Collection[int] | None = None,
    ) -> list[Delivery]:
        """Claims deliveries that nobody holds, oldest first, and returns them with their leases.

        The age of a delivery counts from when it was made, or to be tried again.

        Waits that have expired become deliveries with `timed_out`, and kept events that have expired become
        dead letters, in this call. Neither sees nor waits for deliveries that another open unit of work
        holds. Counts as an attempt; a delivery with no attempt left becomes a dead letter instead of being
        claimed.

        Args:
            partitions: Claims deliveries to flows in these partitions only. Where there are more than `limit`,
                each partition's oldest come first, and which partition does is not promised. None: all.
        """
        check_key(holder, "holder")
        check_duration(lease_duration, "lease_duration")
        chosen = check_partitions(partitions, "partitions", self._limits.partition_count)
        with self._guard.call(writes=True):
            if chosen is not None and not chosen:
                return []
            return await self._claim_delivered(holder, check_limit(limit), lease_duration, chosen)

    async def next_delivery_at(self, *, partitions: Collection[int] | None = None) -> datetime | None:
        """Returns when the next delivery becomes claimable; None: there is none, and nobody waits with a time limit.

        It lies in the past when one can be claimed now; else it is the end of a lease, the instant of a retry, or
        when a wait expires.

        Args:
            partitions: Looks at deliveries to flows in these partitions only; None: at all.
        """
        chosen = check_partitions(partitions, "partitions", self._limits.partition_count)
        with self._guard.call(writes=False):
            if chosen is not None and not chosen:
                return None
            return await self._next_delivery_at(chosen)

    async def renew(
        self, deliveries: Iterable[Delivery], lease_duration: timedelta, *, skip_locked: bool = False
    ) -> list[Delivery]:
        """Extends leases to now + `lease_duration`; returns the deliveries that it renewed. What is missing was lost.

        Args:
            skip_locked: Does not wait for deliveries that another transaction holds, but returns them as they are:
                while it is open nobody can take them.
        """
        items = check_items(deliveries, "deliveries")
        held = held_deliveries(items)
        check_duration(lease_duration, "lease_duration")
        with self._guard.call(writes=True):
            return await self._renew(items, held, lease_duration, skip_locked)

    async def complete(self, deliveries: Iterable[Delivery]) -> None:
        """Acknowledges claimed deliveries, all or nothing. Usually `advance(…, completes=[delivery])` does it.

        Raises:
            LeaseLost: Naming the first whose lease is not current; nothing is acknowledged.
        """
        held = held_deliveries(deliveries)
        with self._guard.call(writes=True):
            await self._complete(held)

    async def release(self, deliveries: Iterable[Delivery]) -> None:
        """Gives claimed deliveries back, claimable at once, all or nothing. The attempt stays counted.

        Raises:
            LeaseLost: Naming the first whose lease is not current; nothing is released.
        """
        held = held_deliveries(deliveries)
        with self._guard.call(writes=True):
            await self._release(held)

    async def retry(self, delivery: Delivery, *, after: timedelta, error: str) -> None:
        """Gives a claimed delivery back, claimable again `after` from now; a dead letter if no attempt is left.

        Args:
            error: What went wrong; becomes the dead letter's reason in the end.

        Raises:
            LeaseLost: The lease is not current.
        """
        held = held_delivery(delivery)
        check_duration(after, "after", allow_zero=True)
        check_text(error, "error")
        with self._guard.call(writes=True):
            await self._retry(held, after, error)

    async def give_up(self, delivery: Delivery, *, reason: str) -> None:
        """Turns a claimed delivery into a dead letter with `reason`; the step waits for its key again.

        A time-out that is given up only loses its wait.

        Raises:
            LeaseLost: The lease is not current.
        """
        held = held_delivery(delivery)
        check_text(reason, "reason")
        with self._guard.call(writes=True):
            await self._give_up(held, reason)

    async def list_dead_letters(
        self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> CursorList[DeadLetter]:
        """Returns the events that reached nobody, in the order of their publication."""
        subject = "correlations.list_dead_letters"
        after = decode_position(cursor, subject, datetime, str, str)
        with self._guard.call(writes=False):
            rows = await self._list_dead_letters(check_limit(limit) + 1, after)
        return cut(
            rows,
            limit,
            subject,
            lambda row: (row.published_at.isoformat(), row.correlation_key, row.event_id or ""),
        )

    @abstractmethod
    async def _publish(self, publication: PlannedPublication) -> list[Delivery]: ...

    @abstractmethod
    async def _list_waiting(
        self, correlation_key: str, limit: int, after: tuple[datetime, UUID, str] | None
    ) -> list[Correlation]: ...

    @abstractmethod
    async def _cancel(self, flow_instance_id: UUID, step_id: str) -> bool: ...

    @abstractmethod
    async def _claim_delivered(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: frozenset[int] | None
    ) -> list[Delivery]: ...

    @abstractmethod
    async def _next_delivery_at(self, partitions: frozenset[int] | None) -> datetime | None: ...

    @abstractmethod
    async def _renew(
        self,
        deliveries: Sequence[Delivery],
        held: Sequence[HeldDelivery],
        lease_duration: timedelta,
        skip_locked: bool,
    ) -> list[Delivery]: ...

    @abstractmethod
    async def _complete(self, held: Sequence[HeldDelivery]) -> None: ...

    @abstractmethod
    async def _release(self, held: Sequence[HeldDelivery]) -> None: ...

    @abstractmethod
    async def _retry(self, held: HeldDelivery, after: timedelta, error: str) -> None: ...

    @abstractmethod
    async def _give_up(self, held: HeldDelivery, reason: str) -> None: ...

    @abstractmethod
    async def _list_dead_letters(self, limit: int, after: tuple[datetime, str, str] | None) -> list[DeadLetter]: ...
