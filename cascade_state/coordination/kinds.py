"""The three kinds of things that a worker handles, told in one way: timers, deliveries and orphaned flows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeAlias
from uuid import UUID

from cascade_state.abc.store import Store
from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.errors import LeaseLost
from cascade_state.model.correlations import Delivery
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.timers import Timer

__all__ = ["Deliveries", "Item", "Kind", "Orphans", "Timers"]

Item: TypeAlias = Any  # a claimed Timer, Delivery or FlowInstance
Where: TypeAlias = UnitOfWork | Store  # both have the repositories

_ORPHANS = FlowInstanceFilter(statuses=(FlowStatus.RUNNING,))


class Kind(ABC):
    """How one kind of thing is claimed, renewed and settled."""

    name: ClassVar[str]
    # Whether a hint mostly means that something can be claimed now; where it mostly announces something for later,
    # it is cheaper to ask for the instant first.
    is_ready_when_hinted: ClassVar[bool] = True
    is_hinted: ClassVar[bool] = True

    def __init__(self, store: Store) -> None:
        self._store = store

    @abstractmethod
    async def claim(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: Collection[int] | None
    ) -> list[Item]:
        """Claims what is ready."""

    @abstractmethod
    async def next_at(self, partitions: Collection[int] | None) -> datetime | None:
        """Returns when a claim is worth while again; None: nobody knows."""

    @abstractmethod
    async def renew(self, items: Sequence[Item], lease_duration: timedelta) -> list[Item]:
        """Renews leases, and leaves alone what a handler's transaction holds; what is missing was lost."""

    @abstractmethod
    async def release(self, items: Sequence[Item]) -> None:
        """Gives items back."""

    @abstractmethod
    async def complete(self, where: Where, item: Item) -> None:
        """Acknowledges an item: in its handler's unit of work, or by itself."""

    @abstractmethod
    async def retry(self, item: Item, after: timedelta, error: str) -> None:
        """Gives an item back for later."""

    @abstractmethod
    async def give_up(self, item: Item, reason: str) -> None:
        """Gives an item back for good."""

    @abstractmethod
    def identity(self, item: Item) -> object:
        """Returns what tells an item from the others of its kind."""

    def flow_of(self, item: Item) -> UUID:
        """Returns the id of the item's flow."""
        flow_instance_id: UUID = item.flow_instance_id
        return flow_instance_id

    def ready_at(self, item: Item) -> datetime | None:
        """Returns since when the item could be handled; lateness counts from there."""
        return None

    def facts(self, item: Item) -> dict[str, str]:
        """Returns what names the item in logs and traces."""
        return {"flow_instance_id": str(item.flow_instance_id), "step_id": item.step_id}


class Timers(Kind):
    """Timers that are due."""

    name = "timer"
    is_ready_when_hinted = False

    async def claim(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: Collection[int] | None
    ) -> list[Item]:
        return await self._store.timers.claim_due(
            holder, limit=limit, lease_duration=lease_duration, partitions=partitions
        )

    async def next_at(self, partitions: Collection[int] | None) -> datetime | None:
        return await self._store.timers.next_due_at(partitions=partitions)

    async def renew(self, items: Sequence[Item], lease_duration: timedelta) -> list[Item]:
        return await self._store.timers.renew(items, lease_duration, skip_locked=True)

    async def release(self, items: Sequence[Item]) -> None:
        await self._store.timers.release(items)

    async def complete(self, where: Where, item: Item) -> None:
        await where.timers.complete([item])

    async def retry(self, item: Item, after: timedelta, error: str) -> None:
        await self._store.timers.retry(item, after=after, error=error)

    async def give_up(self, item: Item, reason: str) -> None:
        await self._store.timers.give_up(item, reason=reason)

    def identity(self, item: Timer) -> object:
        return item.timer_id

    def ready_at(self, item: Timer) -> datetime | None:
        return item.due_at

    def facts(self, item: Timer) -> dict[str, str]:
        return {"timer_id": str(item.timer_id), **super().facts(item)}


class Deliveries(Kind):
    """Events for steps that wait, and waits that timed out."""

    name = "delivery"

    async def claim(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: Collection[int] | None
    ) -> list[Item]:
        return await self._store.correlations.claim_delivered(
            holder, limit=limit, lease_duration=lease_duration, partitions=partitions
        )

    async def next_at(self, partitions: Collection[int] | None) -> datetime | None:
        return await self._store.correlations.next_delivery_at(partitions=partitions)

    async def renew(self, items: Sequence[Item], lease_duration: timedelta) -> list[Item]:
        return await self._store.correlations.renew(items, lease_duration, skip_locked=True)

    async def release(self, items: Sequence[Item]) -> None:
        await self._store.correlations.release(items)

    async def complete(self, where: Where, item: Item) -> None:
        await where.correlations.complete([item])

    async def retry(self, item: Item, after: timedelta, error: str) -> None:
        await self._store.correlations.retry(item, after=after, error=error)

    async def give_up(self, item: Item, reason: str) -> None:
        await self._store.correlations.give_up(item, reason=reason)

    def identity(self, item: Delivery) -> object:
        return item.correlation_key, item.flow_instance_id, item.step_id

    def ready_at(self, item: Delivery) -> datetime | None:
        return item.delivered_at if item.attempts == 1 else None  # later ones are late on purpose

    def facts(self, item: Delivery) -> dict[str, str]:
        return {"event_id": str(item.event_id), **super().facts(item)}


class Orphans(Kind):
    """RUNNING flows whose lease has expired: whoever drove them vanished.

    Nothing announces them, so they are looked for at each poll. A flow has no count of attempts; how often its handler
    failed in this process is what the back-off goes by. Until it is tried again it stays under its lease.
    """

    name = "orphan"
    is_hinted = False

    async def claim(
        self, holder: str, limit: int, lease_duration: timedelta, partitions: Collection[int] | None
    ) -> list[Item]:
        return await self._store.flow_instances.claim(
            holder,
            filter=_ORPHANS,
            limit=limit,
            lease_duration=lease_duration,
            partitions=partitions,
            orphans=True,
        )

    async def next_at(self, partitions: Collection[int] | None) -> datetime | None:
        return None

    async def renew(self, items: Sequence[Item], lease_duration: timedelta) -> list[Item]:
        return await self._store.flow_instances.renew(items, lease_duration, skip_locked=True)

    async def release(self, items: Sequence[Item]) -> None:
        # Under a lease that ends at once they stay orphans, for whoever looks next.
        await self._store.flow_instances.renew(items, timedelta(microseconds=1))

    async def complete(self, where: Where, item: Item) -> None:
        await where.flow_instances.release([item])

    async def retry(self, item: Item, after: timedelta, error: str) -> None:
        if not await self._store.flow_instances.renew([item], max(after, timedelta(microseconds=1))):
            raise LeaseLost(entity="flow instance", key=item.flow_instance_id)

    async def give_up(self, item: Item, reason: str) -> None:
        await self._store.flow_instances.release([item])

    def identity(self, item: FlowInstance) -> object:
        return item.flow_instance_id

    def facts(self, item: FlowInstance) -> dict[str, str]:
        return {"flow_instance_id": str(item.flow_instance_id)}
