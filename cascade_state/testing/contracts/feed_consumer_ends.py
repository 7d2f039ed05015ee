"""FeedConsumer: how it stops, how it loses a partition, and what wakes it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.coordination import ReplicaSet
from cascade_state.errors import UsageError
from cascade_state.ids import partition_of
from cascade_state.model.events import FlowEvent
from cascade_state.testing.contracts.base import OpenStore, StoreContract
from cascade_state.testing.contracts.feed_consumers import (
    Journal,
    advanced,
    effects_in,
    is_caught_up,
    quick_consumer,
    running,
    some_flows,
    until,
    until_handled,
)
from cascade_state.testing.contracts.rules import rule

__all__ = ["FeedConsumerEndsContract"]


class FeedConsumerEndsContract(StoreContract):
    """`FeedConsumer` when it stops, is cancelled or has lost what it worked on."""

    @rule("ORC-07")
    async def test_stopping_lets_the_handler_finish(self, store: Store) -> None:
        flows = await some_flows(store, 1)
        journal = Journal()
        journal.gate = asyncio.Event()
        consumer = quick_consumer(store, journal)
        run = self.started(consumer.run())
        await self.finished(journal.entered.wait())
        stop = self.started(consumer.stop())
        await asyncio.sleep(0)
        assert not stop.done()
        journal.gate.set()
        await self.finished(stop)
        await self.finished(run)
        assert await effects_in(store, flows) == {flows[0].flow_instance_id: [1, 2]}
        assert (await store.statistics()).workers_alive == 0

    @rule("ORC-07")
    async def test_a_handler_that_outlasts_the_grace_period_is_cancelled(self, store: Store) -> None:
        flows = await some_flows(store, 1)
        journal = Journal()
        journal.gate = asyncio.Event()
        consumer = quick_consumer(store, journal, grace_period=timedelta(milliseconds=50))
        run = self.started(consumer.run())
        await self.finished(journal.entered.wait())
        await self.finished(consumer.stop())
        await self.finished(run)
        assert await effects_in(store, flows) == {flows[0].flow_instance_id: []}
        assert await store.feeds.list_failing() == []

    async def test_a_handler_may_stop_its_consumer(self, store: Store) -> None:
        flows = await some_flows(store, 1)
        journal = Journal()

        async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
            await journal(events, uow)
            await consumer.stop()

        consumer = quick_consumer(store, handle)
        await self.finished(consumer.run())
        assert await effects_in(store, flows) == {flows[0].flow_instance_id: [1, 2]}

    @rule("ORC-07")
    async def test_a_cancelled_run_leaves_nothing_behind(self, store: Store) -> None:
        flows = await some_flows(store, 1)
        journal = Journal()
        journal.gate = asyncio.Event()
        run = self.started(quick_consumer(store, journal).run())
        await self.finished(journal.entered.wait())
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.finished(run)
        assert await effects_in(store, flows) == {flows[0].flow_instance_id: []}
        assert (await store.statistics()).workers_alive == 0
        assert await self.observer.open_transactions() == []
        journal.gate = None
        async with running(quick_consumer(store, journal)):
            await until_handled(store, flows, 2)

    @rule("ORC-06")
    async def test_who_is_cancelled_while_joining_has_not_joined(self, store: Store) -> None:
        others = quick_consumer(store, Journal()).members
        await store.replica_sets.join(others, "another", stale_after=timedelta(seconds=30))

        async def operation() -> None:
            async with ReplicaSet(store, others).join() as member:
                await asyncio.sleep(0)
                assert member.is_alive

        async def check(completed: bool) -> None:
            assert [worker.worker_id for worker in await store.replica_sets.list_workers()] == ["another"]
            owners = {(item.owner, item.next_owner) for item in await store.replica_sets.list_assignments(others)}
            assert owners == {("another", None)}

        assert await self.cancelled_at_every_await(operation, check) >= 2

    async def test_what_a_handler_does_that_swallows_its_cancellation_is_refused(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cascade_state.coordination.feed_run._CANCEL_SECONDS", 0.05)
        flows = await some_flows(store, 1)
        entered, gate = asyncio.Event(), asyncio.Event()
        left = asyncio.Event()

        async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
            entered.set()
            while not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    continue
            await uow.component_states.put(flows[0].flow_instance_id, "event-1", "late")
            left.set()

        consumer = quick_consumer(store, handle, grace_period=timedelta(0))
        run = self.started(consumer.run())
        await self.finished(entered.wait())
        await self.finished(consumer.stop())
        await self.finished(run)
        gate.set()
        await self.finished(left.wait())
        await until(lambda: self._has_no_transactions())
        assert await effects_in(store, flows) == {flows[0].flow_instance_id: []}
        assert (await store.feeds.lag("invoices")).events == 2

    async def test_it_runs_once_at_a_time(self, store: Store) -> None:
        flows = await some_flows(store, 1)
        consumer = quick_consumer(store, Journal())
        await consumer.stop()
        await self.finished(consumer.run())  # it was told to stop before it began
        async with running(consumer):
            await until_handled(store, flows, 2)
            with pytest.raises(UsageError):
                await consumer.run()

    # Losing a partition

    @rule("Feed")
    async def test_a_partition_that_is_taken_away_in_the_middle_stores_nothing(
        self, store: Store, other_store: Store
    ) -> None:
        flows = await some_flows(store, 1)
        journal = Journal()
        journal.gate = asyncio.Event()
        consumer = quick_consumer(store, journal)
        async with running(consumer):
            await self.finished(journal.entered.wait())
            (worker,) = await other_store.replica_sets.list_workers(consumer.members)
            # Whoever comes now gets all, with new generations; the worker itself has not heard of it.
            await other_store.replica_sets.leave(consumer.members, worker.worker_id)
            journal.gate.set()
            await until_handled(store, flows, 2)  # once it has joined again
        assert len(journal.calls) >= 2
        assert await effects_in(store, flows) == {flows[0].flow_instance_id: [1, 2]}
        assert await store.feeds.list_failing() == []

    @rule("Feed")
    async def test_a_checkpoint_that_was_moved_in_the_middle_stores_nothing(
        self, store: Store, other_store: Store
    ) -> None:
        flows = await some_flows(store, 1)
        partition_id = partition_of(flows[0].flow_instance_id, 256)
        await store.feeds.register("invoices")

        async def is_there() -> bool:
            return (await store.feeds.find_news("invoices", [partition_id])).ready != ()

        await until(is_there)
        batch = await store.feeds.read_batch("invoices", partition_id)
        assert batch is not None
        calls = 0

        async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
            nonlocal calls
            calls += 1
            await uow.component_states.put(flows[0].flow_instance_id, f"event-{calls}", {})
            if calls == 1:
                await other_store.feeds.complete(batch)

        async with running(quick_consumer(store, handle, strict=True)):
            await until(lambda: is_caught_up(store))
        assert calls == 1
        assert await effects_in(store, flows) == {flows[0].flow_instance_id: []}

    # Waking up

    async def test_the_poll_is_enough_alone(self, open_store_again: OpenStore) -> None:
        async with open_store_again(hints=False) as store:
            flows = await some_flows(store, 3)
            async with running(quick_consumer(store, Journal())):
                await until_handled(store, flows, 2)
                await until_handled(store, await advanced(store, flows, "charge"), 3)

    async def test_a_hint_is_enough_alone(self, store: Store, other_store: Store) -> None:
        flows = await some_flows(store, 3)
        async with running(quick_consumer(store, Journal(), poll_interval=timedelta(hours=1))):
            await until_handled(store, flows, 2)
            await until_handled(store, await advanced(other_store, flows, "charge"), 3)

    async def _has_no_transactions(self) -> bool:
        return await self.observer.open_transactions() == []
