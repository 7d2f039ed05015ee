"""What can be leased, told in one way: how a flow instance, a timer or a delivery is made, claimed and written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from cascade_state.abc import Store
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import LEASE
from cascade_state.testing.contracts.claiming import Target, claim_deliveries, claim_timers

__all__ = ["KINDS", "SHARED_WRITES", "WRITES", "Item", "Leased", "SharedWrite", "Write"]

Item: TypeAlias = Any  # a claimed flow instance, timer or delivery
Write: TypeAlias = Callable[[Target, Item], Awaitable[object]]
SharedWrite: TypeAlias = Callable[[Target, list[Item]], Awaitable[object]]

_SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Leased:
    """One kind of leased thing.

    `writes` are the calls that need the current token; `shared_writes` those that take several items, all or nothing.
    """

    entity: str
    add: Callable[[Store], Awaitable[object]]
    claim: Callable[[Target, str], Awaitable[list[Item]]]
    key: Callable[[Item], object]
    repository: str
    writes: Mapping[str, Write]
    shared_writes: Mapping[str, SharedWrite]

    async def claim_one(self, target: Target, holder: str = "worker-1") -> Item:
        (item,) = await self.claim(target, holder)
        return item

    def renew(self, target: Target, items: list[Item], duration: timedelta = LEASE) -> Awaitable[list[Item]]:
        renewed: Awaitable[list[Item]] = getattr(target, self.repository).renew(items, duration)
        return renewed

    def release(self, target: Target, items: list[Item]) -> Awaitable[None]:
        released: Awaitable[None] = getattr(target, self.repository).release(items)
        return released


async def _add_delivery(store: Store) -> FlowInstance:
    key = factories.unique("key")
    flow = await factories.add_flow(store, waits_for=key)
    await store.correlations.publish(key, {})
    return flow


async def _add_timer(store: Store) -> FlowInstance:
    flow = await factories.add_flow(store)
    return await store.advance(flow.suspend_for_timer("ship", after=timedelta(0)))


async def _claim_instances(target: Target, holder: str) -> list[Item]:
    return await target.flow_instances.claim(holder, lease_duration=LEASE)


async def _advance_with(target: Target, item: Item) -> object:
    return await _advance_with_all(target, [item])


async def _advance_with_all(target: Target, items: list[Item]) -> object:
    """Advances the flow of timers or deliveries, acknowledging them."""
    flow = await target.flow_instances.get(items[0].flow_instance_id)
    return await target.advance(flow.resume(), completes=items)


async def _advance_claimed(target: Target, item: FlowInstance) -> object:
    # The version is read anew: the lease alone is what may be stale.
    flow = await target.flow_instances.get(item.flow_instance_id)
    return await target.advance(flow.complete_step(factories.unique("step")), lease=item.lease)


KINDS = {
    "flow instance": Leased(
        entity="flow instance",
        add=factories.add_flow,
        claim=_claim_instances,
        key=lambda item: item.flow_instance_id,
        repository="flow_instances",
        writes={
            "release": lambda target, item: target.flow_instances.release([item]),
            "advance": _advance_claimed,
        },
        shared_writes={"release": lambda target, items: target.flow_instances.release(items)},
    ),
    "timer": Leased(
        entity="timer",
        add=_add_timer,
        claim=claim_timers,
        key=lambda item: item.timer_id,
        repository="timers",
        writes={
            "release": lambda target, item: target.timers.release([item]),
            "complete": lambda target, item: target.timers.complete([item]),
            "retry": lambda target, item: target.timers.retry(item, after=_SECOND, error="late"),
            "give_up": lambda target, item: target.timers.give_up(item, reason="enough"),
            "advance": _advance_with,
        },
        shared_writes={
            "release": lambda target, items: target.timers.release(items),
            "complete": lambda target, items: target.timers.complete(items),
            "advance": _advance_with_all,
        },
    ),
    "delivery": Leased(
        entity="delivery",
        add=_add_delivery,
        claim=claim_deliveries,
        key=lambda item: item.correlation_key,
        repository="correlations",
        writes={
            "release": lambda target, item: target.correlations.release([item]),
            "complete": lambda target, item: target.correlations.complete([item]),
            "retry": lambda target, item: target.correlations.retry(item, after=_SECOND, error="late"),
            "give_up": lambda target, item: target.correlations.give_up(item, reason="enough"),
            "advance": _advance_with,
        },
        shared_writes={
            "release": lambda target, items: target.correlations.release(items),
            "complete": lambda target, items: target.correlations.complete(items),
            "advance": _advance_with_all,
        },
    ),
}

# Every call that needs the current token, of every kind of thing.
WRITES = [(kind, write) for kind in sorted(KINDS) for write in sorted(KINDS[kind].writes)]
SHARED_WRITES = [(kind, write) for kind in sorted(KINDS) for write in sorted(KINDS[kind].shared_writes)]
