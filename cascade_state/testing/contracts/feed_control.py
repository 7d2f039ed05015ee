"""How consumers of the feed are paused, reset and removed, and what is seen of them: lags and failures."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import LeaseLost, UsageError
from cascade_state.model.events import NewEvent
from cascade_state.model.feeds import FEED_CONSUMER, FeedLag
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.feeds import numbers_of, partition_in, take_batch

__all__ = ["FeedControlContract"]

_HOUR = timedelta(hours=1)
_MOMENT = timedelta(microseconds=1)


class FeedControlContract(StoreContract):
    """`feeds` for whoever operates consumers."""

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
        assert numbers_of((await take_batch(store, "invoices", partition_id)).events) == [3]

    async def test_a_consumer_can_begin_again(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        partition_id = partition_in(store, flow)
        await store.feeds.register("invoices")
        await store.feeds.complete(await take_batch(store, "invoices", partition_id, count=2))
        await store.feeds.retry("invoices", partition_id, error="late")
        await store.feeds.reset("invoices")
        batch = await take_batch(store, "invoices", partition_id, count=2)
        assert (numbers_of(batch.events), batch.attempts) == ([1, 2], 0)

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
        assert numbers_of((await take_batch(store, "invoices", partition_id)).events) == [3]

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
