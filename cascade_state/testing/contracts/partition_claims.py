"""Claims in chosen partitions, and when the next one is worth while (C-34, C-41, C-42, C-50)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from cascade_state.abc import Store
from cascade_state.errors import InvalidArgument
from cascade_state.ids import new_flow_instance_id, partition_of
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, Target, claim_deliveries, claim_timers
from cascade_state.testing.contracts.leased import KINDS
from cascade_state.testing.contracts.rules import rule

__all__ = ["NextInstantsContract", "OrphansContract", "PartitionClaimsContract", "SkippingRenewalsContract"]

_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)

# How each kind of thing is claimed in chosen partitions.
_CLAIMS: dict[str, Callable[..., Awaitable[list[Any]]]] = {
    "timer": lambda target, **options: target.timers.claim_due("worker-1", lease_duration=LEASE, **options),
    "delivery": lambda target, **options: target.correlations.claim_delivered(
        "worker-1", lease_duration=LEASE, **options
    ),
    "flow instance": lambda target, **options: target.flow_instances.claim(
        "worker-1", filter=FlowInstanceFilter(statuses=(FlowStatus.RUNNING,)), lease_duration=LEASE, **options
    ),
}
_NEXT: dict[str, Callable[..., Awaitable[datetime | None]]] = {
    "timer": lambda store, **options: store.timers.next_due_at(**options),
    "delivery": lambda store, **options: store.correlations.next_delivery_at(**options),
}
_UNUSABLE: tuple[Any, ...] = (3, "12", [-1], [256], [1.0], [True], ["1"], [None])


async def _flow_in(store: Store, partition_id: int, *, waits_for: str | None = None) -> FlowInstance:
    """Returns a stored flow in a partition."""
    mask = store.options.partition_count - 1
    identity = UUID(int=(new_flow_instance_id().int & ~mask) | partition_id)
    definition = await factories.deploy_flow_definition(store)
    flow = factories.flow_instance(definition, flow_instance_id=identity).start()
    return await store.advance(flow if waits_for is None else flow.suspend_for_event("ship", waits_for))


async def _add(store: Store, kind: str, partition_id: int) -> UUID:
    """Adds something to be claimed in a partition; returns the id of its flow."""
    if kind == "flow instance":
        flow = await _flow_in(store, partition_id)
    elif kind == "timer":
        flow = await _flow_in(store, partition_id)
        await store.advance(flow.suspend_for_timer("ship", after=timedelta(0)))
    else:
        key = factories.unique("key")
        flow = await _flow_in(store, partition_id, waits_for=key)
        await store.correlations.publish(key, {})
    return flow.flow_instance_id


def _ids(items: list[Any]) -> list[UUID]:
    return [item.flow_instance_id for item in items]


class PartitionClaimsContract(StoreContract):
    """A claim in chosen partitions is a claim like any other, and touches nothing of other partitions."""

    @rule("C-34", "C-41")
    @pytest.mark.parametrize("kind", sorted(_CLAIMS))
    async def test_only_what_lies_in_the_chosen_partitions_is_claimed(self, store: Store, kind: str) -> None:
        flows = {partition: await _add(store, kind, partition) for partition in (0, 7, 8, 255)}
        claim = _CLAIMS[kind]
        assert await claim(store, partitions=[]) == []
        assert await claim(store, partitions=[1, 6, 9]) == []
        assert _ids(await claim(store, partitions=(7,))) == [flows[7]]
        assert _ids(await claim(store, partitions={7, 8})) == [flows[8]]
        assert sorted(_ids(await claim(store, partitions=range(256)))) == sorted([flows[0], flows[255]])
        assert await claim(store) == []

    @rule("C-34", "C-41")
    @pytest.mark.parametrize("kind", sorted(_CLAIMS))
    async def test_the_oldest_of_a_partition_is_claimed_first(
        self, store: Store, clock: FrozenClock, kind: str
    ) -> None:
        added: dict[int, list[UUID]] = {3: [], 4: []}
        for partition in (3, 4, 3, 3, 4, 3):
            clock.advance(MOMENT)
            added[partition].append(await _add(store, kind, partition))
        claimed: list[UUID] = []
        while batch := _ids(await _CLAIMS[kind](store, partitions=[3, 4, 5], limit=2)):
            assert len(batch) <= 2
            claimed += batch
        assert len(claimed) == 6
        for flows in added.values():
            assert [flow for flow in claimed if flow in flows] == flows

    @rule("C-34", "C-42")
    @pytest.mark.parametrize("kind", sorted(_CLAIMS))
    async def test_it_neither_sees_nor_waits_for_what_another_unit_of_work_holds(
        self, store: Store, other_store: Store, kind: str
    ) -> None:
        flows = [await _add(store, kind, 3) for _ in range(4)] + [await _add(store, kind, 4)]
        claim = _CLAIMS[kind]
        async with store.begin() as uow:
            mine = _ids(await claim(uow, partitions=[3], limit=3))
            theirs = _ids(await self.finished(self.started(claim(other_store, partitions=[3, 4], limit=3))))  # type: ignore[arg-type]
            assert sorted(mine + theirs) == sorted(flows)
            assert len(mine) == 3
            await uow.rollback()
        assert sorted(_ids(await claim(store, partitions=[3]))) == sorted(mine)

    @rule("C-44")
    async def test_a_timer_that_wore_out_dies_in_a_claim_of_its_partition(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flow = await _flow_in(store, 3)
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", after=timedelta(0), max_attempts=1)
        living = await store.timers.schedule(flow.flow_instance_id, "ship", after=timedelta(0))
        assert len(await _CLAIMS["timer"](store, partitions=[3])) == 2
        clock.advance(LEASE)
        assert await _CLAIMS["timer"](store, partitions=[4]) == []
        assert await store.timers.list_dead() == []
        assert [item.timer_id for item in await _CLAIMS["timer"](store, partitions=[3])] == [living.timer_id]
        assert [item.timer_id for item in await store.timers.list_dead()] == [timer.timer_id]

    @rule("C-44")
    async def test_a_delivery_that_wore_out_is_buried_by_a_claim_of_its_partition(self, store: Store) -> None:
        await _add(store, "delivery", 3)
        for _ in range(store.options.max_attempts):
            (claimed,) = await _CLAIMS["delivery"](store, partitions=[3])
            await store.correlations.release([claimed])
        assert await _CLAIMS["delivery"](store, partitions=[4]) == []
        assert await store.correlations.list_dead_letters() == []
        assert await _CLAIMS["delivery"](store, partitions=[3]) == []
        assert len(await store.correlations.list_dead_letters()) == 1

    @rule("C-35")
    async def test_a_wait_that_expired_is_turned_by_a_claim_in_any_partition(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flow = await _flow_in(store, 3)
        await store.advance(flow.suspend_for_event("ship", "parcel-77", expires_at=clock.now() + _HOUR))
        clock.advance(_HOUR)
        assert await _CLAIMS["delivery"](store, partitions=[4]) == []
        (delivery,) = await _CLAIMS["delivery"](store, partitions=[3])
        assert delivery.timed_out

    @rule("Hints", "C-35")
    async def test_a_wait_that_expired_is_hinted_by_whoever_turned_it(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        flow = await _flow_in(store, 3)
        await store.advance(flow.suspend_for_event("ship", "parcel-77", expires_at=clock.now() + _HOUR))
        async with other_store.listen() as hints:
            clock.advance(_HOUR)
            assert await _CLAIMS["delivery"](store, partitions=[4]) == []
            heard: frozenset[int] = frozenset()
            while 3 not in heard:
                heard = await hints.wait(timedelta(seconds=20))
                assert heard
        assert partition_of(flow.flow_instance_id, store.options.partition_count) == 3

    @rule("Errors")
    @pytest.mark.parametrize("partitions", _UNUSABLE, ids=repr)
    async def test_what_is_no_collection_of_partitions_is_refused(self, store: Store, partitions: Any) -> None:
        for call in (*_CLAIMS.values(), *_NEXT.values()):
            with pytest.raises(InvalidArgument) as caught:
                await call(store, partitions=partitions)
            assert caught.value.argument == "partitions"


class OrphansContract(StoreContract):
    """Flows whose holder vanished can be told from those that nobody ever held (C-50)."""

    async def _orphans(self, target: Target, **options: Any) -> list[UUID]:
        running = FlowInstanceFilter(statuses=(FlowStatus.RUNNING,))
        claimed = await target.flow_instances.claim(
            "worker-2", filter=running, lease_duration=LEASE, orphans=True, **options
        )
        return _ids(claimed)

    @rule("C-50", "C-51")
    async def test_only_flows_with_an_expired_lease_are_orphans(self, store: Store, clock: FrozenClock) -> None:
        held = [await _flow_in(store, partition) for partition in (3, 4)]
        await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        free = await _flow_in(store, 3)
        given_back = await _flow_in(store, 3)
        (claimed,) = await store.flow_instances.claim(
            "worker-1",
            filter=FlowInstanceFilter(flow_id=given_back.flow_id),
            lease_duration=LEASE,
        )
        await store.flow_instances.release([claimed])
        assert await self._orphans(store) == []
        clock.advance(LEASE - MOMENT)
        assert await self._orphans(store) == []
        clock.advance(MOMENT)
        assert await self._orphans(store, partitions=[4]) == [held[1].flow_instance_id]
        assert await self._orphans(store) == [held[0].flow_instance_id]
        assert await self._orphans(store) == []
        assert (await store.flow_instances.get(free.flow_instance_id)).lease is None

    @rule("C-50")
    async def test_a_flow_that_ended_or_waits_is_no_orphan_of_those_that_run(
        self, store: Store, clock: FrozenClock
    ) -> None:
        ended, waiting = [await _flow_in(store, 3) for _ in range(2)]
        await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        await store.advance(ended.complete())
        await store.advance(waiting.suspend_for_timer("ship", after=_HOUR))
        clock.advance(LEASE)
        assert await self._orphans(store) == []
        (found,) = await store.flow_instances.claim("worker-2", lease_duration=LEASE, orphans=True)
        assert found.flow_instance_id == waiting.flow_instance_id


class NextInstantsContract(StoreContract):
    """When a claim is worth while again: a loop may sleep exactly that long (C-34, C-41)."""

    async def _next(self, store: Store, kind: str, partition: int = 3) -> datetime | None:
        """Returns the next instant, which is the same in the partition and over all; nothing lies in others."""
        everywhere = await _NEXT[kind](store)
        assert await _NEXT[kind](store, partitions=[partition, partition + 1]) == everywhere
        assert await _NEXT[kind](store, partitions=[partition + 1]) is None
        assert await _NEXT[kind](store, partitions=[]) is None
        return everywhere

    @rule("C-41")
    async def test_of_timers(self, store: Store, clock: FrozenClock) -> None:
        assert await self._next(store, "timer") is None
        flow = await _flow_in(store, 3)
        start = clock.now()
        later = await store.timers.schedule(flow.flow_instance_id, "ship", due_at=start + _HOUR)
        assert await self._next(store, "timer") == later.due_at
        sooner = await store.timers.schedule(flow.flow_instance_id, "ship", due_at=start + _MINUTE)
        assert await self._next(store, "timer") == sooner.due_at
        clock.advance(_MINUTE)
        assert await self._next(store, "timer") == sooner.due_at
        (claimed,) = await claim_timers(store)
        assert await self._next(store, "timer") == clock.now() + LEASE
        await store.timers.renew([claimed], 2 * _HOUR)
        assert await self._next(store, "timer") == later.due_at
        await store.timers.cancel(later.timer_id)
        assert await self._next(store, "timer") == clock.now() + 2 * _HOUR
        await store.timers.retry(claimed, after=_MINUTE, error="down")
        assert await self._next(store, "timer") == clock.now() + _MINUTE

    @rule("C-41")
    async def test_of_timers_in_several_partitions(self, store: Store, clock: FrozenClock) -> None:
        due = {}
        for minutes, partition in enumerate((9, 3, 5), start=1):
            flow = await _flow_in(store, partition)
            due[partition] = clock.now() + minutes * _MINUTE
            await store.timers.schedule(flow.flow_instance_id, "ship", due_at=due[partition])
        assert await store.timers.next_due_at(partitions=[3, 5]) == due[3]
        assert await store.timers.next_due_at(partitions=[5, 9]) == due[9]
        clock.advance(_MINUTE)
        assert len(await claim_timers(store)) == 1
        assert await store.timers.next_due_at(partitions=[3, 9]) == min(due[3], clock.now() + LEASE)

    @rule("C-34", "C-35")
    async def test_of_deliveries(self, store: Store, clock: FrozenClock) -> None:
        assert await self._next(store, "delivery") is None
        flow = await _flow_in(store, 3)
        flow = await store.advance(flow.suspend_for_event("ship", "a"))
        assert await self._next(store, "delivery") is None  # it may wait for ever
        clock.advance(MOMENT)
        await store.correlations.publish("a", {})
        made_at = clock.now()
        clock.advance(_MINUTE)
        assert await self._next(store, "delivery") == made_at
        (claimed,) = await claim_deliveries(store)
        assert await self._next(store, "delivery") == clock.now() + LEASE
        await store.correlations.retry(claimed, after=_HOUR, error="down")
        assert await self._next(store, "delivery") == clock.now() + _HOUR
        expires_at = clock.now() + _MINUTE
        flow = await store.advance(flow.suspend_for_event("bill", "b", expires_at=expires_at))
        assert await self._next(store, "delivery") == expires_at
        clock.advance(2 * _MINUTE)
        assert await self._next(store, "delivery") == expires_at
        (timed_out,) = await claim_deliveries(store)
        assert timed_out.timed_out
        await store.advance(flow.cancel("enough"))
        assert await self._next(store, "delivery") is None

    @rule("C-34")
    async def test_a_delivery_that_is_to_be_tried_later_does_not_come_before_others(
        self, store: Store, clock: FrozenClock
    ) -> None:
        await _add(store, "delivery", 3)
        (first,) = await claim_deliveries(store)
        await store.correlations.retry(first, after=_MINUTE, error="down")
        clock.advance(MOMENT)
        second = await _add(store, "delivery", 3)
        clock.advance(_HOUR)
        assert _ids(await _CLAIMS["delivery"](store)) == [second, first.flow_instance_id]


class SkippingRenewalsContract(StoreContract):
    """A renewal that skips what is locked waits for nobody, and still tells what is lost (C-50)."""

    @rule("C-50")
    @pytest.mark.parametrize("kind", sorted(KINDS))
    async def test_what_another_transaction_holds_is_left_as_it_is(
        self, store: Store, other_store: Store, clock: FrozenClock, kind: str
    ) -> None:
        leased = KINDS[kind]
        for _ in range(3):
            await leased.add(store)
        items = await leased.claim(store, "worker-1")
        lost, held, free = items
        await leased.release(store, [lost])
        clock.advance(_MINUTE)
        async with other_store.begin() as uow:
            for write in leased.writes.values():
                async with uow.savepoint():
                    await write(uow, held)
                break
            renew = getattr(store, leased.repository).renew(items, _HOUR, skip_locked=True)
            renewed = await self.finished(self.started(renew))
            assert renewed[0] == held
            assert renewed[1].lease.expires_at == clock.now() + _HOUR
            assert [leased.key(item) for item in renewed] == [leased.key(held), leased.key(free)]
            await uow.rollback()
        (again,) = await leased.renew(store, [held], _HOUR)
        assert again.lease.token == held.lease.token

    @rule("C-50")
    @pytest.mark.parametrize("kind", sorted(KINDS))
    async def test_without_locks_it_renews_what_is_held(self, store: Store, clock: FrozenClock, kind: str) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        held = await leased.claim_one(store)
        renew = getattr(store, leased.repository).renew
        assert await renew([], _HOUR, skip_locked=True) == []
        (renewed,) = await renew([held], _HOUR, skip_locked=True)
        assert renewed.lease.expires_at == clock.now() + _HOUR
        await leased.release(store, [held])
        assert await renew([renewed], _HOUR, skip_locked=True) == []
