"""The figures of a store."""

from __future__ import annotations

from datetime import timedelta

from cascade_state.abc import Store
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.statistics import Statistics
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_deliveries, claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = ["StatisticsContract"]

_HOUR = timedelta(hours=1)


def _statuses(statistics: Statistics) -> dict[FlowStatus, int]:
    """Returns the counts that are not zero."""
    return {status: count for status, count in statistics.instances_by_status.items() if count}


class StatisticsContract(StoreContract):
    """`store.statistics()` counts what is stored and committed."""

    async def test_an_empty_store_counts_nothing(self, store: Store) -> None:
        statistics = await store.statistics()
        assert statistics.instances_by_status == {}
        assert [statistics.instances_by_status[status] for status in FlowStatus] == [0] * len(FlowStatus)
        assert (statistics.timers_pending, statistics.timers_overdue, statistics.timers_dead) == (0, 0, 0)
        assert statistics.oldest_overdue_at is None
        assert (statistics.deliveries_pending, statistics.dead_letters) == (0, 0)
        assert (dict(statistics.consumer_lags), statistics.workers_alive) == ({}, 0)
        assert statistics.estimated == frozenset()

    async def test_instances_are_counted_by_status(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        running = factories.running_flow
        for flow in (
            factories.flow_instance(definition),
            running(definition),
            running(definition),
            running(definition).suspend_for_event("ship", "parcel-77"),
            running(definition).suspend_for_timer("ship", after=_HOUR),
            running(definition).complete(),
            running(definition).fail("broken"),
            running(definition).cancel("enough"),
        ):
            await store.advance(flow)
        expected = dict.fromkeys(FlowStatus, 1)
        expected[FlowStatus.RUNNING] = 2
        assert _statuses(await store.statistics()) == expected
        assert await store.statistics(exact=True) == await store.statistics()

    async def test_a_flow_is_counted_under_the_status_it_has_now(self, store: Store) -> None:
        flow, other = await factories.add_flow(store), await factories.add_flow(store)
        flow = await store.advance(flow.suspend_for_timer("ship", after=_HOUR))
        assert _statuses(await store.statistics()) == {FlowStatus.RUNNING: 1, FlowStatus.WAITING_FOR_TIMER: 1}
        await store.advance(flow.resume().complete())
        assert _statuses(await store.statistics()) == {FlowStatus.RUNNING: 1, FlowStatus.COMPLETED: 1}
        await store.flow_instances.remove(other.flow_instance_id)
        assert _statuses(await store.statistics()) == {FlowStatus.COMPLETED: 1}

    @rule("C-41")
    async def test_timers_are_overdue_from_their_instant_on_while_nobody_holds_them(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store)
        early = await store.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
        late = await store.timers.schedule(flow.flow_instance_id, "ship", after=2 * _HOUR)

        async def figures() -> tuple[int, int, object]:
            statistics = await store.statistics()
            return statistics.timers_pending, statistics.timers_overdue, statistics.oldest_overdue_at

        clock.set(early.due_at - MOMENT)
        assert await figures() == (2, 0, None)
        clock.set(early.due_at)
        assert await figures() == (2, 1, early.due_at)
        clock.set(late.due_at)
        assert await figures() == (2, 2, early.due_at)
        (claimed,) = await claim_timers(store, limit=1)
        assert await figures() == (2, 1, late.due_at)
        clock.advance(LEASE - MOMENT)
        assert await figures() == (2, 1, late.due_at)
        clock.advance(MOMENT)
        assert await figures() == (2, 2, early.due_at)
        await store.timers.complete([claimed])
        assert await figures() == (1, 1, late.due_at)

    @rule("C-44")
    async def test_dead_timers_are_counted_apart(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        for _ in range(3):
            await store.timers.schedule(flow.flow_instance_id, "ship", due_at=clock.now())
        claimed = await claim_timers(store, limit=2)
        for timer in claimed:
            await store.timers.give_up(timer, reason="enough")
        statistics = await store.statistics()
        assert (statistics.timers_dead, statistics.timers_pending, statistics.timers_overdue) == (2, 1, 1)
        await store.timers.revive(claimed[0].timer_id)
        statistics = await store.statistics()
        assert (statistics.timers_dead, statistics.timers_pending, statistics.timers_overdue) == (1, 2, 2)

    @rule("C-34")
    async def test_deliveries_are_pending_until_they_are_acknowledged(self, store: Store, clock: FrozenClock) -> None:
        for key in ("parcel-77", "parcel-78"):
            await factories.add_flow(store, waits_for=key)
        await factories.add_flow(store, waits_for="parcel-79", expires_at=clock.now() + _HOUR)
        assert (await store.statistics()).deliveries_pending == 0
        await store.correlations.publish("parcel-77", {})
        await store.correlations.publish("parcel-78", {})
        await store.correlations.publish("parcel-80", "kept, not delivered")
        assert (await store.statistics()).deliveries_pending == 2
        (first, _) = await claim_deliveries(store)
        assert (await store.statistics()).deliveries_pending == 2
        await store.correlations.complete([first])
        assert (await store.statistics()).deliveries_pending == 1
        clock.advance(_HOUR)
        assert len(await claim_deliveries(store)) == 2  # one of them timed out
        assert (await store.statistics()).deliveries_pending == 2

    @rule("C-35")
    async def test_dead_letters_are_counted_until_they_are_published_again(
        self, store: Store, clock: FrozenClock
    ) -> None:
        for number in range(3):
            await store.correlations.publish(f"parcel-{number}", {}, expires_at=clock.now() + _HOUR)
        await store.correlations.publish("parcel-9", "still kept")
        assert (await store.statistics()).dead_letters == 0
        clock.advance(_HOUR)
        await claim_deliveries(store)
        assert (await store.statistics()).dead_letters == 3
        letters = await store.correlations.list_dead_letters()
        await store.correlations.republish(letters[0])
        assert (await store.statistics()).dead_letters == 2

    @rule("C-01")
    async def test_only_what_is_committed_is_counted(self, store: Store, other_store: Store) -> None:
        before = await store.statistics()
        async with store.begin() as uow:
            flow = await factories.add_flow(uow, waits_for="parcel-77")
            await uow.timers.schedule(flow.flow_instance_id, "ship", after=_HOUR)
            await uow.correlations.publish("parcel-77", {})
            assert await other_store.statistics() == before
        after = await other_store.statistics()
        assert _statuses(after) == {FlowStatus.WAITING_FOR_EVENT: 1}
        assert (after.timers_pending, after.deliveries_pending) == (1, 1)
