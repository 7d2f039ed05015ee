"""Hints: what a listener hears once it is committed, and what it never hears."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cascade_state.abc import HintListener, Store
from cascade_state.errors import InvalidArgument, StoreNotOpen, UsageError
from cascade_state.ids import partition_of, partition_of_key
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import PATIENCE, OpenStore, StoreContract
from cascade_state.testing.contracts.claiming import claim_deliveries, claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = ["HintsContract"]

_PATIENCE = timedelta(seconds=PATIENCE)
_NOW = timedelta(0)
_HOUR = timedelta(hours=1)


class HintsContract(StoreContract):
    """A hint follows each commit after which something may be claimable; it comes from any store on the same data."""

    def _partition(self, store: Store, flow: FlowInstance) -> int:
        return partition_of(flow.flow_instance_id, store.options.partition_count)

    async def _hears(self, hints: HintListener, *partitions: int) -> None:
        """Checks that the listener hears of these partitions, and of no other."""
        missing = set(partitions)
        while missing:
            heard = await hints.wait(_PATIENCE)
            assert heard, "no hint came"
            assert heard <= set(partitions)
            missing -= heard

    async def _hears_nothing(self, hints: HintListener, store: Store) -> None:
        """Checks that nothing was hinted: a hint that follows would have come after it."""
        flow = await factories.add_flow(store)
        await store.timers.schedule(flow.flow_instance_id, "marker", after=_HOUR)
        assert await hints.wait(_PATIENCE) == {self._partition(store, flow)}

    @rule("Hints")
    async def test_a_scheduled_timer_is_hinted_to_every_listener(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store)
        async with store.listen() as here, other_store.listen() as there, other_store.listen() as again:
            for hints in (here, there, again):
                assert hints.is_listening
                assert await hints.wait(_NOW) == frozenset()
            await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
            for hints in (here, there, again):
                await self._hears(hints, self._partition(store, flow))
                assert await hints.wait(_NOW) == frozenset()

    @rule("Hints")
    async def test_whatever_may_have_become_claimable_is_hinted(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        partition = self._partition(store, flow)
        timer = await store.timers.schedule(flow.flow_instance_id, "ship", after=_NOW, max_attempts=1)
        async with other_store.listen() as hints:
            await store.correlations.publish("parcel-77", {})
            await self._hears(hints, partition)
            (delivery,) = await claim_deliveries(store)
            await store.correlations.release([delivery])
            await self._hears(hints, partition)
            (delivery,) = await claim_deliveries(store)
            await store.correlations.retry(delivery, after=_NOW, error="down")
            await self._hears(hints, partition)
            (claimed,) = await claim_timers(store)
            await store.timers.release([claimed])
            await self._hears(hints, partition)
            await store.timers.reschedule(timer.timer_id, timer.due_at + _HOUR)
            await self._hears(hints, partition)
            await store.timers.reschedule(timer.timer_id, timer.due_at)
            await self._hears(hints, partition)
            assert await claim_timers(store) == []  # its one attempt is used up: it dies
            await store.timers.revive(timer.timer_id)
            await self._hears(hints, partition)
            (claimed,) = await claim_timers(store)
            await store.timers.complete([claimed])
            flow = await store.flow_instances.get(flow.flow_instance_id)
            await store.advance(flow.resume().suspend_for_timer("ship", after=_HOUR))
            await self._hears(hints, partition)

    @rule("Hints")
    async def test_an_early_event_is_hinted_when_somebody_waits(self, store: Store, other_store: Store) -> None:
        await store.correlations.publish("parcel-77", {})
        flow = await factories.add_flow(store)
        async with other_store.listen() as hints:
            await store.advance(flow.suspend_for_event("ship", "parcel-77"))
            await self._hears(hints, self._partition(store, flow))

    @rule("Hints", "C-01")
    async def test_a_unit_of_work_hints_when_it_commits_and_only_then(self, store: Store, other_store: Store) -> None:
        dropped, kept = [await factories.add_flow(store) for _ in range(2)]
        async with other_store.listen() as hints:
            async with store.begin() as uow:
                await uow.timers.schedule(dropped.flow_instance_id, "ship", after=_NOW)
                await uow.rollback()
            async with store.begin() as uow:
                await uow.timers.schedule(kept.flow_instance_id, "ship", after=_NOW)
                assert await hints.wait(_NOW) == frozenset()
            await self._hears(hints, self._partition(store, kept))

    @rule("Hints")
    async def test_a_claim_hints_nothing(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.correlations.publish("parcel-77", {})
        await store.timers.schedule(flow.flow_instance_id, "ship", after=_NOW)
        async with other_store.listen() as hints:
            while await hints.wait(timedelta(milliseconds=100)):
                pass  # what was committed just before may still be on its way
            (delivery,) = await claim_deliveries(store)
            (timer,) = await claim_timers(store)
            await store.timers.complete([timer])
            await store.correlations.complete([delivery])
            await self._hears_nothing(hints, store)

    @rule("Hints")
    async def test_every_change_of_a_replica_set_is_hinted_and_no_heartbeat_that_changes_nothing(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        names = ("shipping", "billing")
        shipping, billing = (partition_of_key(name, store.options.partition_count) for name in names)
        assert shipping != billing

        async def join(worker_id: str, replica_set: str = "shipping") -> None:
            await store.replica_sets.join(replica_set, worker_id, stale_after=_HOUR)

        async def beat(worker_id: str) -> None:
            await store.replica_sets.beat("shipping", worker_id, stale_after=_HOUR)

        async with other_store.listen("members") as hints, other_store.listen() as work:
            for worker_id in ("a", "b"):
                await join(worker_id)
                await self._hears(hints, shipping)
            await beat("a")  # hands over
            await self._hears(hints, shipping)
            for worker_id in ("a", "b"):
                await beat(worker_id)
            await join("c", "billing")
            await self._hears(hints, billing)
            assert await store.replica_sets.leave("shipping", "b")
            await self._hears(hints, shipping)
            assert not await store.replica_sets.leave("shipping", "b")
            await join("d")
            await self._hears(hints, shipping)
            clock.advance(_HOUR / 2)
            await beat("a")  # hands over
            await self._hears(hints, shipping)
            clock.advance(_HOUR / 2)
            await beat("a")  # finds that d has gone silent
            await self._hears(hints, shipping)
            await self._hears_nothing(work, store)

    @rule("Hints", "C-01")
    async def test_a_join_in_a_unit_of_work_is_hinted_when_it_commits_and_only_then(
        self, store: Store, other_store: Store
    ) -> None:
        dropped, kept = (partition_of_key(name, store.options.partition_count) for name in ("billing", "shipping"))
        assert dropped != kept
        async with other_store.listen("members") as hints:
            async with store.begin() as uow:
                await uow.replica_sets.join("billing", "a", stale_after=_HOUR)
                await uow.rollback()
            async with store.begin() as uow:
                await uow.replica_sets.join("shipping", "a", stale_after=_HOUR)
                assert await hints.wait(_NOW) == frozenset()
            await self._hears(hints, kept)

    @rule("Hints")
    async def test_who_stops_listening_hears_no_more(self, store: Store) -> None:
        hints = store.listen()
        async with hints:
            pass
        flow = await factories.add_flow(store)
        async with store.listen() as later:
            await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
            await self._hears(later, self._partition(store, flow))
        assert await hints.wait(_NOW) == frozenset()
        with pytest.raises(UsageError):
            await hints.__aenter__()

    @rule("Hints", "Errors")
    async def test_what_cannot_be_listened_to_is_refused(self, store: Store, open_store_again: OpenStore) -> None:
        with pytest.raises(UsageError):
            store.listen("weather")  # type: ignore[arg-type]
        async with store.listen() as hints:
            with pytest.raises(InvalidArgument):
                await hints.wait(timedelta(seconds=-1))
        closed = open_store_again()
        with pytest.raises(StoreNotOpen):
            closed.listen()  # type: ignore[attr-defined]

    @rule("Hints", "C-51")
    async def test_now_is_what_the_clock_says(self, store: Store, clock: FrozenClock) -> None:
        clock.advance(_HOUR)
        assert await store.now() == clock.now()
