"""Consumers of the feed: checkpoints that move with the effects."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.errors import FeedConsumerNotFound, InvalidArgument, LeaseLost
from cascade_state.ids import partition_of
from cascade_state.model.events import FlowEvent
from cascade_state.model.feeds import FeedBatch, FeedLag, FeedStart
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import PATIENCE, StoreContract
from cascade_state.testing.contracts.feed_reading import read_feed
from cascade_state.testing.contracts.rules import rule

__all__ = ["FeedsContract", "family", "numbers_of", "partition_in", "take_batch"]

_HOUR = timedelta(hours=1)
_POLL_SECONDS = 0.01


def partition_in(store: Store, flow: FlowInstance) -> int:
    """Returns the partition of a flow."""
    return partition_of(flow.flow_instance_id, store.options.partition_count)


async def take_batch(
    on: Store | UnitOfWork, consumer: str, partition_id: int, *, count: int = 1, limit: int = 500
) -> FeedBatch:
    """Returns a batch once it has `count` events; on a server with other databases, theirs may have to end first."""
    async with asyncio.timeout(PATIENCE):
        while True:
            batch = await on.feeds.read_batch(consumer, partition_id, limit=limit)
            if batch is not None and len(batch.events) >= count:
                return batch
            await asyncio.sleep(_POLL_SECONDS)


async def family(store: Store, size: int) -> list[FlowInstance]:
    """Returns flows that share a partition, each with two events."""
    definition = await factories.deploy_flow_definition(store)
    root = await factories.add_flow(store, definition)
    return [root, *[await store.advance(root.child(definition).start()) for _ in range(size - 1)]]


def numbers_of(events: Iterable[FlowEvent]) -> list[int]:
    """Returns the sequence of each event."""
    return [event.sequence for event in events]


class FeedsContract(StoreContract):
    """`feeds` keeps how far each consumer has come."""

    # Being known

    async def test_a_consumer_is_what_it_was_when_it_was_first_seen(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        assert await store.feeds.find("invoices") is None
        made = await store.feeds.register("invoices", start="now")
        assert (made.consumer, made.start, made.started_at, made.paused_at) == ("invoices", "now", clock.now(), None)
        clock.advance(_HOUR)
        assert await other_store.feeds.register("invoices", start="beginning") == made
        assert await other_store.feeds.get("invoices") == made
        assert await store.feeds.find("invoices") == made

    async def test_two_that_register_at_once_are_one(self, store: Store, other_store: Store) -> None:
        async with asyncio.timeout(PATIENCE):
            first, second = await asyncio.gather(store.feeds.register("a"), other_store.feeds.register("a"))
        assert first == second
        assert await store.feeds.list_consumers() == [first]

    async def test_a_registration_is_waited_for(self, store: Store, other_store: Store) -> None:
        async with store.begin() as uow:
            made = await uow.feeds.register("a", start="now")
            second = self.started(other_store.feeds.register("a"))
            await self.blocked(second)
        assert await self.finished(second) == made

    async def test_consumers_are_listed_by_name(self, store: Store) -> None:
        for name in ("b", "a", "B", "é", "a b"):
            await store.feeds.register(name)
        first = await store.feeds.list_consumers(limit=2)
        assert [found.consumer for found in first] == ["B", "a"]
        second = await store.feeds.list_consumers(limit=3, cursor=first.next_cursor)
        assert [found.consumer for found in second] == ["a b", "b", "é"]
        assert second.next_cursor is None

    @pytest.mark.parametrize("start", ["", "NOW", None, 0, "end"])
    async def test_a_start_is_the_beginning_or_now(self, store: Store, start: FeedStart) -> None:
        for call in (store.feeds.register, store.feeds.reset):
            with pytest.raises(InvalidArgument) as caught:
                await call("invoices", start=start)
            assert caught.value.argument == "start"
        assert await store.feeds.list_consumers() == []

    async def test_what_is_asked_of_an_unknown_consumer_fails(self, store: Store) -> None:
        feeds = store.feeds
        for call in (
            feeds.get("nobody"),
            feeds.pause("nobody"),
            feeds.resume("nobody"),
            feeds.lag("nobody"),
            feeds.find_news("nobody", [1]),
            feeds.retry("nobody", 1, error="x"),
        ):
            with pytest.raises(FeedConsumerNotFound) as caught:
                await call
            assert caught.value.key == "nobody"
        assert await feeds.read_batch("nobody", 1) is None
        assert not await feeds.remove("nobody")

    # Working

    @rule("Feed")
    async def test_a_consumer_from_the_beginning_gets_everything_once(self, store: Store, other_store: Store) -> None:
        flows = [await factories.add_flow(store) for _ in range(3)]
        whole = await read_feed(store, 6)
        await store.feeds.register("invoices")
        places = {flow.flow_instance_id: partition_in(store, flow) for flow in flows}
        for partition_id in set(places.values()):  # two flows may share one
            seen: list[FlowEvent] = []
            while batch := await other_store.feeds.read_batch("invoices", partition_id):
                seen += batch.events
                await other_store.feeds.complete(batch)
            assert seen == [event for event in whole if places[event.flow_instance_id] == partition_id]
        assert await store.feeds.lag("invoices") == FeedLag(events=0, oldest_recorded_at=None)

    async def test_a_batch_has_at_most_so_many_events_and_the_next_goes_on(self, store: Store) -> None:
        flows = await family(store, 3)
        partition_id = partition_in(store, flows[0])
        await store.feeds.register("invoices")
        whole = await read_feed(store, 6)
        seen: list[FlowEvent] = []
        for size in (4, 2):
            batch = await take_batch(store, "invoices", partition_id, limit=4)
            assert (batch.consumer, batch.partition_id, batch.attempts) == ("invoices", partition_id, 0)
            assert len(batch.events) == size
            assert batch.position == batch.events[-1].position
            seen += batch.events
            await store.feeds.complete(batch)
        assert seen == whole
        assert await store.feeds.read_batch("invoices", partition_id) is None

    async def test_a_consumer_from_now_gets_only_what_is_committed_later(
        self, store: Store, other_store: Store
    ) -> None:
        first, second = await family(store, 2)
        partition_id = partition_in(store, first)
        async with other_store.begin() as uow:
            await uow.advance(second.complete_step("charge"))  # its transaction began before, and ends afterwards
            first = await store.advance(first.complete_step("charge"))
            await store.feeds.register("invoices", start="now")
            assert await store.feeds.lag("invoices") == FeedLag(events=0, oldest_recorded_at=None)
        first = await store.advance(first.complete_step("ship"))
        batch = await take_batch(store, "invoices", partition_id, count=2)
        assert {(event.flow_instance_id, event.sequence) for event in batch.events} == {
            (second.flow_instance_id, 3),
            (first.flow_instance_id, 4),
        }

    async def test_from_now_on_nothing_is_missed_that_an_older_transaction_appends(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        flow, other = await family(store, 2)
        async with other_store.begin() as uow:
            await uow.advance(other.complete_step("charge"))
            flow = await store.advance(flow.complete_step("charge"))  # committed by a younger transaction
            clock.advance(_HOUR)
            await uow.advance(flow.complete_step("ship"))
            await store.feeds.register("invoices", start="now")
        batch = await take_batch(store, "invoices", partition_in(store, flow), count=2)
        assert {(event.flow_instance_id, event.sequence) for event in batch.events} == {
            (other.flow_instance_id, 3),
            (flow.flow_instance_id, 4),
        }

    @pytest.mark.parametrize("way", ["register", "reset"])
    async def test_from_now_on_nothing_is_missed_of_the_unit_of_work_that_said_so(
        self, store: Store, other_store: Store, way: str
    ) -> None:
        flow, other = await family(store, 2)
        async with store.begin() as uow:
            flow = await uow.advance(flow.complete_step("charge"))
            await other_store.advance(other.complete_step("charge"))  # a younger transaction, and committed by now
            await getattr(uow.feeds, way)("invoices", start="now")
            flow = await uow.advance(flow.complete_step("ship"))
        assert (await store.statistics()).consumer_lags == {"invoices": 2}
        batch = await take_batch(store, "invoices", partition_in(store, flow), count=2)
        assert {(event.flow_instance_id, event.sequence) for event in batch.events} == {
            (flow.flow_instance_id, 3),
            (flow.flow_instance_id, 4),
        }

    @rule("Feed")
    async def test_a_batch_ends_in_front_of_what_may_still_come(self, store: Store, other_store: Store) -> None:
        first, second, third = await family(store, 3)
        partition_id = partition_in(store, first)
        await store.feeds.register("invoices")
        await take_batch(store, "invoices", partition_id, count=6)
        seen: list[FlowEvent] = []
        async with other_store.begin() as uow:
            await uow.advance(second.complete_step("charge"))
            await store.advance(third.complete_step("charge"))  # younger, and committed earlier
            batch = await take_batch(store, "invoices", partition_id, count=6)
            seen += batch.events
            await store.feeds.complete(batch)
        while len(seen) < 8:
            batch = await take_batch(store, "invoices", partition_id)
            seen += batch.events
            await store.feeds.complete(batch)
        assert len({(event.flow_instance_id, event.sequence) for event in seen}) == 8

    @rule("Feed")
    async def test_the_checkpoint_moves_with_the_effect(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        partition_id = partition_in(store, flow)
        await store.feeds.register("invoices")
        await take_batch(store, "invoices", partition_id, count=2)
        for commits in (False, False, True):
            async with store.begin() as uow:
                batch = await uow.feeds.read_batch("invoices", partition_id)
                assert batch is not None
                assert numbers_of(batch.events) == [1, 2]
                attempts = f"attempt-{commits}"
                await uow.component_states.put(flow.flow_instance_id, "charge", attempts, expected_version=0)
                await uow.feeds.complete(batch)
                if not commits:
                    await uow.rollback()
        assert (await store.component_states.get(flow.flow_instance_id, "charge")).state == "attempt-True"
        assert await store.feeds.read_batch("invoices", partition_id) is None

    @rule("C-50")
    async def test_a_batch_is_completed_once(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store)
        partition_id = partition_in(store, flow)
        await store.feeds.register("invoices")
        batch = await take_batch(store, "invoices", partition_id, count=2)
        await store.feeds.complete(batch)
        with pytest.raises(LeaseLost) as caught:
            await other_store.feeds.complete(batch)
        assert caught.value.entity == "feed checkpoint"
        await store.advance(flow.complete_step("charge"))
        late = await take_batch(store, "invoices", partition_id)
        assert numbers_of(late.events) == [3]
        with pytest.raises(LeaseLost):  # nor does it put the checkpoint back
            await other_store.feeds.complete(batch)
        await store.feeds.complete(late)

    @rule("Feed")
    async def test_while_a_batch_is_in_hand_nobody_else_gets_one(self, store: Store, other_store: Store) -> None:
        first = await factories.add_flow(store)
        partition_id = partition_in(store, first)
        for name in ("invoices", "mails"):
            await store.feeds.register(name)
        await take_batch(store, "invoices", partition_id, count=2)
        async with store.begin() as uow:
            batch = await uow.feeds.read_batch("invoices", partition_id)
            assert batch is not None
            assert await other_store.feeds.read_batch("invoices", partition_id) is None
            assert await uow.feeds.read_batch("invoices", partition_id) == batch
            assert await other_store.feeds.read_batch("mails", partition_id) is not None
        assert await other_store.feeds.read_batch("invoices", partition_id) == batch

    async def test_news_are_found_in_the_partitions_asked_for(self, store: Store) -> None:
        flows = [await factories.add_flow(store) for _ in range(4)]
        every = range(store.options.partition_count)
        places = sorted({partition_in(store, flow) for flow in flows})
        await read_feed(store, 8)
        await store.feeds.register("invoices")
        news = await store.feeds.find_news("invoices", every)
        assert (news.ready, news.unsettled, news.is_paused) == (tuple(places), (), False)
        assert (await store.feeds.find_news("invoices", places[1:])).ready == tuple(places[1:])
        assert (await store.feeds.find_news("invoices", set(every) - set(places))).ready == ()
        assert (await store.feeds.find_news("invoices", [])).ready == ()
        await store.feeds.complete(await take_batch(store, "invoices", places[0]))
        assert (await store.feeds.find_news("invoices", every)).ready == tuple(places[1:])

    @pytest.mark.parametrize("partition_id", [-1, 256, True, None])
    async def test_a_partition_that_there_is_not_is_refused(self, store: Store, partition_id: int) -> None:
        for call in (
            store.feeds.read_batch("a", partition_id),
            store.feeds.find_news("a", [0, partition_id]),
            store.feeds.retry("a", partition_id, error="x"),
        ):
            with pytest.raises(InvalidArgument):
                await call

    async def test_what_is_no_batch_cannot_be_completed(self, store: Store) -> None:
        empty = FeedBatch(consumer="a", partition_id=1, after="", events=())
        for batch in (None, "batch", empty):
            with pytest.raises(InvalidArgument):
                await store.feeds.complete(batch)  # type: ignore[arg-type]
