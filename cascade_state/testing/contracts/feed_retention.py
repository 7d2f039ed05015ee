"""What is kept for the consumers of the feed, and what may be forgotten."""

from __future__ import annotations

from datetime import timedelta

from cascade_state.abc import Store
from cascade_state.model.events import NewEvent
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.feed_reading import read_feed
from cascade_state.testing.contracts.feeds import numbers_of, partition_in, take_batch
from cascade_state.testing.contracts.rules import rule

__all__ = ["FeedRetentionContract"]

_HOUR = timedelta(hours=1)


class FeedRetentionContract(StoreContract):
    """What consumers have not handled is kept for them."""

    async def _ended(self, store: Store, definition: FlowDefinition | None = None) -> FlowInstance:
        flow = await factories.add_flow(store, definition)
        return await store.advance(flow.complete_step("charge").complete())

    async def test_old_events_can_be_purged_and_the_flow_goes_on(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        clock.advance(_HOUR)
        flow = await store.advance(flow.complete_step("charge"))
        await read_feed(store, 3)
        assert await store.feeds.purge_events(clock.now() - _HOUR) == 0
        assert await store.feeds.purge_events(clock.now()) == 2
        assert numbers_of(await store.flow_instances.history(flow.flow_instance_id)) == [3]
        flow = await store.advance(flow.complete_step("ship"))
        assert numbers_of(await store.flow_instances.history(flow.flow_instance_id)) == [3, 4]
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    async def test_events_are_purged_in_batches_from_the_front(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        await store.advance(flow, events=[NewEvent("noted") for _ in range(5)])
        await read_feed(store, 7)
        clock.advance(_HOUR)
        left = []
        while await store.feeds.purge_events(clock.now(), limit=3):
            left.append(numbers_of(await store.flow_instances.history(flow.flow_instance_id)))
        assert left == [[4, 5, 6, 7], [7], []]

    async def test_a_younger_event_keeps_those_behind_it(self, store: Store, clock: FrozenClock) -> None:
        early, late = clock.now(), clock.now() + _HOUR
        clock.set(late)
        flow = await factories.add_flow(store)
        clock.set(early)
        await store.advance(flow.complete_step("charge"))
        await read_feed(store, 3)
        clock.set(late)
        assert await store.feeds.purge_events(clock.now()) == 0
        assert await store.feeds.purge_events(clock.now() + _HOUR) == 3

    @rule("Feed")
    async def test_no_consumer_loses_what_it_has_not_handled(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        other = await factories.add_flow(store)
        partition_id = partition_in(store, flow)
        await read_feed(store, 4)
        for name in ("quick", "slow"):
            await store.feeds.register(name)
        clock.advance(_HOUR)
        assert await store.feeds.purge_events(clock.now()) == 0
        for partition in {partition_id, partition_in(store, other)}:
            await store.feeds.complete(await take_batch(store, "quick", partition))
        assert await store.feeds.purge_events(clock.now()) == 0
        await store.feeds.complete(await take_batch(store, "slow", partition_id, limit=1))
        assert await store.feeds.purge_events(clock.now()) == 1
        assert numbers_of((await take_batch(store, "slow", partition_id, limit=1)).events) == [2]
        assert (await store.feeds.lag("slow")).events == 3
        assert await store.feeds.purge_events(clock.now(), force=True) == 3
        assert (await store.feeds.lag("slow")).events == 0

    async def test_a_consumer_from_now_keeps_nothing_older(self, store: Store, clock: FrozenClock) -> None:
        await factories.add_flow(store)
        await store.feeds.register("late", start="now")
        await read_feed(store, 2)
        clock.advance(_HOUR)
        assert await store.feeds.purge_events(clock.now()) == 2

    async def test_a_removed_consumer_keeps_nothing(self, store: Store, clock: FrozenClock) -> None:
        await factories.add_flow(store)
        await read_feed(store, 2)
        await store.feeds.register("gone")
        clock.advance(_HOUR)
        assert await store.feeds.purge_events(clock.now()) == 0
        await store.feeds.remove("gone")
        assert await store.feeds.purge_events(clock.now()) == 2

    async def test_what_another_transaction_removes_is_passed_over(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store)
        await read_feed(store, 2)
        clock.advance(_HOUR)
        async with other_store.begin() as uow:
            await uow.flow_instances.remove(flow.flow_instance_id)
            assert await self.finished(store.feeds.purge_events(clock.now())) in (0, 2)
        assert await store.events.read() == []

    @rule("Feed")
    async def test_ended_flows_stay_until_every_consumer_has_handled_their_events(
        self, store: Store, clock: FrozenClock
    ) -> None:
        first, second = await self._ended(store), await self._ended(store)
        await read_feed(store, 8)
        await store.feeds.register("invoices")
        clock.advance(_HOUR)
        assert await store.flow_instances.purge(clock.now()) == 0
        assert await store.flow_instances.purge(clock.now(), dry_run=True) == 0
        assert await store.flow_instances.purge(clock.now(), dry_run=True, force=True) == 2
        await store.feeds.complete(await take_batch(store, "invoices", partition_in(store, first), count=4, limit=4))
        assert await store.flow_instances.purge(clock.now()) == 1
        assert await store.flow_instances.find(first.flow_instance_id) is None
        assert await store.flow_instances.purge(clock.now(), force=True) == 1
        assert await store.flow_instances.find(second.flow_instance_id) is None

    async def test_a_family_waits_for_all_of_its_events(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        root = await self._ended(store, definition)
        child = await store.advance(root.child(definition).start().complete())
        await read_feed(store, 7)
        await store.feeds.register("invoices")
        partition_id = partition_in(store, root)
        await store.feeds.complete(await take_batch(store, "invoices", partition_id, count=4, limit=4))
        clock.advance(_HOUR)
        assert await store.flow_instances.purge(clock.now()) == 0
        await store.feeds.complete(await take_batch(store, "invoices", partition_id, count=3))
        assert await store.flow_instances.purge(clock.now()) == 2
        assert await store.flow_instances.find(child.flow_instance_id) is None

    async def test_flows_whose_events_are_purged_do_not_wait(self, store: Store, clock: FrozenClock) -> None:
        await self._ended(store)
        await read_feed(store, 4)
        await store.feeds.register("invoices")
        clock.advance(_HOUR)
        await store.feeds.purge_events(clock.now(), force=True)
        assert await store.flow_instances.purge(clock.now()) == 1
