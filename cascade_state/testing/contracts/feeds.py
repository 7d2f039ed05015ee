"""Consumers of the feed: checkpoints that move with the effects, and what is kept for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.errors import FeedConsumerNotFound, InvalidArgument, LeaseLost, UsageError
from cascade_state.ids import partition_of
from cascade_state.model.events import FlowEvent, NewEvent
from cascade_state.model.feeds import FEED_CONSUMER, FeedBatch, FeedLag, FeedStart
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import PATIENCE, StoreContract
from cascade_state.testing.contracts.feed_reading import read_feed
from cascade_state.testing.contracts.rules import rule

__all__ = ["FeedRetentionContract", "FeedsContract", "partition_in", "take_batch"]

_HOUR = timedelta(hours=1)
_MOMENT = timedelta(microseconds=1)
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


async def _family(store: Store, size: int) -> list[FlowInstance]:
    """Returns flows that share a partition, each with two events."""
    definition = await factories.deploy_flow_definition(store)
    root = await factories.add_flow(store, definition)
    return [root, *[await store.advance(root.child(definition).start()) for _ in range(size - 1)]]


def _numbers(events: Iterable[FlowEvent]) -> list[int]:
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
        flows = await _family(store, 3)
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
        first, second = await _family(store, 2)
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
        flow, other = await _family(store, 2)
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
        flow, other = await _family(store, 2)
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
        first, second, third = await _family(store, 3)
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
                assert _numbers(batch.events) == [1, 2]
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
        assert _numbers(late.events) == [3]
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

    # Pausing, going back

    async def test_a_paused_consumer_gets_nothing_until_it_is_resumed(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store)
        partition_id = partition_in(store, flow)
        await store.feeds.register("invoices")
        batch = await take_batch(store, "invoices", partition_id, count=2)
        assert await other_store.feeds.pause("invoices")
        paused_at = clock.now()
        clock.advance(_HOUR)
        assert not await store.feeds.pause("invoices")
        assert (await store.feeds.get("invoices")).paused_at == paused_at
        assert await store.feeds.read_batch("invoices", partition_id) is None
        news = await store.feeds.find_news("invoices", [partition_id])
        assert (news.is_paused, news.ready) == (True, ())
        assert (await store.feeds.lag("invoices")).events == 2
        await store.feeds.complete(batch)  # what is in hand may be finished
        await store.advance(flow.complete_step("charge"))
        assert await other_store.feeds.resume("invoices")
        assert not await store.feeds.resume("invoices")
        assert (await store.feeds.get("invoices")).paused_at is None
        assert _numbers((await take_batch(store, "invoices", partition_id)).events) == [3]

    async def test_a_consumer_can_begin_again(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        partition_id = partition_in(store, flow)
        await store.feeds.register("invoices")
        await store.feeds.complete(await take_batch(store, "invoices", partition_id, count=2))
        await store.feeds.retry("invoices", partition_id, error="late")
        await store.feeds.reset("invoices")
        batch = await take_batch(store, "invoices", partition_id, count=2)
        assert (_numbers(batch.events), batch.attempts) == ([1, 2], 0)

    async def test_a_consumer_can_skip_what_is_there(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        partition_id = partition_in(store, flow)
        await store.feeds.register("invoices")
        in_hand = await take_batch(store, "invoices", partition_id, count=2)
        await store.feeds.pause("invoices")
        clock.advance(_HOUR)
        await store.feeds.reset("invoices", start="now")
        found = await store.feeds.get("invoices")
        assert (found.start, found.started_at) == ("now", clock.now())
        assert found.paused_at is not None  # still
        await store.feeds.resume("invoices")
        assert (await store.feeds.lag("invoices")).events == 0
        with pytest.raises(LeaseLost):
            await store.feeds.complete(in_hand)
        await store.advance(flow.complete_step("charge"))
        assert _numbers((await take_batch(store, "invoices", partition_id)).events) == [3]

    async def test_resetting_a_new_consumer_registers_it(self, store: Store) -> None:
        await factories.add_flow(store)
        await store.feeds.reset("invoices", start="now")
        assert (await store.feeds.get("invoices")).start == "now"
        assert (await store.feeds.lag("invoices")).events == 0

    async def test_a_consumer_can_be_removed(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        for name in ("invoices", "mails"):
            await store.feeds.register(name)
        batch = await take_batch(store, "invoices", partition_in(store, flow))
        assert await store.feeds.remove("invoices")
        assert not await store.feeds.remove("invoices")
        assert [found.consumer for found in await store.feeds.list_consumers()] == ["mails"]
        with pytest.raises(LeaseLost):
            await store.feeds.complete(batch)
        assert (await store.feeds.lag("mails")).events == 2
        await store.feeds.register("invoices")
        assert (await store.feeds.lag("invoices")).events == 2  # it begins again

    async def test_while_it_runs_a_consumer_is_neither_reset_nor_removed(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        await factories.add_flow(store)
        for name in ("invoices", "mails"):
            await store.feeds.register(name, start="now")
        stale_after = timedelta(seconds=30)
        metadata = {FEED_CONSUMER: "invoices"}
        await store.replica_sets.join("any", "worker-1", stale_after=stale_after, metadata=metadata)
        for call in (other_store.feeds.reset("invoices"), store.feeds.remove("invoices")):
            with pytest.raises(UsageError):
                await call
        await store.feeds.reset("mails")
        clock.advance(stale_after - _MOMENT)
        with pytest.raises(UsageError):
            await store.feeds.reset("invoices")
        assert (await store.feeds.lag("invoices")).events == 0
        clock.advance(_MOMENT)  # it has gone silent
        await store.feeds.reset("invoices")
        assert (await store.feeds.lag("invoices")).events == 2
        assert await store.feeds.remove("invoices")

    # What it has before it, and what stops it

    async def test_the_lag_is_what_is_committed_and_not_handled(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        await store.feeds.register("invoices")
        assert await store.feeds.lag("invoices") == FeedLag(events=0, oldest_recorded_at=None)
        first = await factories.add_flow(store)
        recorded_at = clock.now()
        clock.advance(_HOUR)
        second = await factories.add_flow(store)
        assert await store.feeds.lag("invoices") == FeedLag(events=4, oldest_recorded_at=recorded_at)
        await store.feeds.complete(await take_batch(store, "invoices", partition_in(store, first), count=2, limit=2))
        assert await store.feeds.lag("invoices") == FeedLag(events=2, oldest_recorded_at=clock.now())
        async with store.begin() as uow:
            await uow.advance(second.complete_step("charge"))
            assert (await other_store.feeds.lag("invoices")).events == 2
            assert (await uow.feeds.lag("invoices")).events == 2  # not its own, which may still be rolled back
        assert (await other_store.feeds.lag("invoices")).events == 3
        await store.flow_instances.remove(second.flow_instance_id)
        assert await store.feeds.lag("invoices") == FeedLag(events=0, oldest_recorded_at=None)

    async def test_statistics_show_lags_and_failures(self, store: Store) -> None:
        first, second = await factories.add_flow(store), await factories.add_flow(store)
        await store.feeds.register("invoices")
        await store.feeds.register("mails", start="now")
        await store.feeds.complete(await take_batch(store, "invoices", partition_in(store, first), limit=1))
        await store.feeds.retry("mails", partition_in(store, second), error="late")
        statistics = await store.statistics()
        assert statistics.consumer_lags == {"invoices": 3, "mails": 0}
        assert statistics.consumer_failures == {"mails": 1}

    async def test_statistics_count_a_lag_only_so_far(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        await store.advance(flow, events=[NewEvent("noted") for _ in range(1_100)])
        await store.feeds.register("invoices")
        assert (await store.statistics()).consumer_lags == {"invoices": 1_000}
        assert (await store.feeds.lag("invoices")).events == 1_102

    async def test_a_failure_is_shown_until_the_partition_gets_on(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        partition_id = partition_in(store, flow)
        await store.feeds.register("invoices")
        assert await store.feeds.list_failing() == []
        assert await store.feeds.retry("invoices", partition_id, error="first") == 1
        clock.advance(_HOUR)
        assert await store.feeds.retry("invoices", partition_id, error="x" * 5_000) == 2
        (failure,) = await store.feeds.list_failing("invoices")
        assert (failure.consumer, failure.partition_id, failure.attempts) == ("invoices", partition_id, 2)
        assert (failure.last_error, failure.failed_at) == ("x" * 2_000, clock.now())
        batch = await take_batch(store, "invoices", partition_id)
        assert batch.attempts == 2
        await store.feeds.complete(batch)
        assert await store.feeds.list_failing() == []

    async def test_failures_are_listed_by_consumer_and_partition(self, store: Store) -> None:
        for name in ("b", "a"):
            await store.feeds.register(name)
            for partition_id in (200, 3):
                await store.feeds.retry(name, partition_id, error="late")
        first = await store.feeds.list_failing(limit=3)
        assert [(found.consumer, found.partition_id) for found in first] == [("a", 3), ("a", 200), ("b", 3)]
        second = await store.feeds.list_failing(limit=3, cursor=first.next_cursor)
        assert [(found.consumer, found.partition_id) for found in second] == [("b", 200)]
        assert [found.partition_id for found in await store.feeds.list_failing("b")] == [3, 200]


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
        assert _numbers(await store.flow_instances.history(flow.flow_instance_id)) == [3]
        flow = await store.advance(flow.complete_step("ship"))
        assert _numbers(await store.flow_instances.history(flow.flow_instance_id)) == [3, 4]
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    async def test_events_are_purged_in_batches_from_the_front(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        await store.advance(flow, events=[NewEvent("noted") for _ in range(5)])
        await read_feed(store, 7)
        clock.advance(_HOUR)
        left = []
        while await store.feeds.purge_events(clock.now(), limit=3):
            left.append(_numbers(await store.flow_instances.history(flow.flow_instance_id)))
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
        assert _numbers((await take_batch(store, "slow", partition_id, limit=1)).events) == [2]
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
