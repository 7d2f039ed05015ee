"""Removing flows: one, and whole families that ended long ago (C-28)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import AlreadyExists, FlowInstanceNotFound, LeaseLost, UsageError
from cascade_state.model.events import NewEvent
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["RemovingContract"]

_SECOND = timedelta(seconds=1)


class RemovingContract(StoreContract):
    """remove and purge."""

    async def _full_flow(self, store: Store) -> FlowInstance:
        """Returns a stored flow with results, states, timers, a wait and a delivery."""
        flow = await factories.add_flow(store, business_key="order-1", waits_for="parcel-77", step_id="ship")
        flow = flow.suspend_for_event("pack", "box-1").suspend_for_timer("remind", after=timedelta(0))
        flow = await store.advance(flow, put_states={"charge": 1}, events=[NewEvent("noted")])
        await store.timers.schedule(flow.flow_instance_id, "audit", after=LEASE)
        await store.correlations.publish("box-1", {})
        return flow

    async def _assert_gone(self, store: Store, flow: FlowInstance) -> None:
        assert await store.flow_instances.find(flow.flow_instance_id) is None
        assert await store.flow_instances.find_by_business_key(flow.flow_id, "order-1") is None
        assert await store.flow_instances.history(flow.flow_instance_id) == []
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []
        assert await store.component_states.find(flow.flow_instance_id, "charge") is None
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []
        for key in ("parcel-77", "box-1"):
            assert await store.correlations.list_waiting(key) == []
            assert await store.flow_instances.find_by_correlation(key) == []
        assert await store.timers.claim_due("worker-9", lease_duration=LEASE) == []
        assert await store.correlations.claim_delivered("worker-9", lease_duration=LEASE) == []

    @rule("C-28")
    async def test_remove_takes_everything_along(self, store: Store, other_store: Store, clock: FrozenClock) -> None:
        flow = await self._full_flow(store)
        (timer,) = await store.timers.claim_due("worker-1", lease_duration=LEASE)
        (delivery,) = await store.correlations.claim_delivered("worker-1", lease_duration=LEASE)
        kept = await factories.add_flow(store, waits_for="another")
        assert await store.flow_instances.remove(flow.flow_instance_id) is True
        clock.advance(10 * LEASE)
        for on in (store, other_store):
            await self._assert_gone(on, flow)
        with pytest.raises(LeaseLost):
            await store.timers.complete([timer])
        with pytest.raises(LeaseLost):
            await store.correlations.complete([delivery])
        with pytest.raises(FlowInstanceNotFound):
            await store.component_states.put(flow.flow_instance_id, "charge", 1)
        with pytest.raises(FlowInstanceNotFound):
            await store.timers.schedule(flow.flow_instance_id, "charge", after=LEASE)
        assert await store.flow_instances.remove(flow.flow_instance_id) is False
        assert await store.correlations.publish("parcel-77", {}) == []
        assert await store.flow_instances.get(kept.flow_instance_id) == kept
        assert len(await store.correlations.list_waiting("another")) == 1

    @rule("C-28")
    async def test_remove_is_one_transaction(self, store: Store, other_store: Store) -> None:
        flow = await self._full_flow(store)
        async with store.begin() as uow:
            assert await uow.flow_instances.remove(flow.flow_instance_id)
            assert await uow.flow_instances.find(flow.flow_instance_id) is None
            assert await uow.component_states.list_for_instance(flow.flow_instance_id) == []
            assert await other_store.flow_instances.get(flow.flow_instance_id) == flow
            assert len(await other_store.component_states.list_for_instance(flow.flow_instance_id)) == 1
            await uow.rollback()
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        assert len(await store.component_states.list_for_instance(flow.flow_instance_id)) == 1
        assert len(await store.timers.list_for_instance(flow.flow_instance_id)) == 2
        assert len(await store.correlations.list_waiting("parcel-77")) == 1
        assert len(await store.correlations.claim_delivered("worker-1", lease_duration=LEASE)) == 1
        assert len(await store.flow_instances.history(flow.flow_instance_id)) == 6

    @rule("C-28")
    async def test_a_removed_id_can_be_used_again_from_the_beginning(self, store: Store) -> None:
        flow = await self._full_flow(store)
        definition = await store.flow_definitions.get(flow.flow_id)
        async with store.begin() as uow:
            await uow.flow_instances.remove(flow.flow_instance_id)
            again = factories.flow_instance(definition, business_key="order-1", flow_instance_id=flow.flow_instance_id)
            stored = await uow.advance(again.start().suspend_for_event("ship", "parcel-77"))
        assert await store.flow_instances.get(flow.flow_instance_id) == stored
        assert (stored.version, stored.step_results) == (1, {})
        assert [event.sequence for event in await store.flow_instances.history(flow.flow_instance_id)] == [1, 2, 3]
        assert len(await store.correlations.list_waiting("parcel-77")) == 1

    @rule("C-28")
    async def test_children_stay(self, store: Store) -> None:
        parent = await factories.add_flow(store)
        definition = await store.flow_definitions.get(parent.flow_id)
        child = await store.advance(parent.child(definition).start())
        await store.flow_instances.remove(parent.flow_instance_id)
        assert await store.flow_instances.get(child.flow_instance_id) == child
        assert (await store.advance(child.complete_step("charge"))).parent_id == parent.flow_instance_id

    @rule("C-28")
    async def test_remove_waits_for_who_writes_the_flow(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            await uow.advance(flow.suspend_for_event("ship", "parcel-77"), put_states={"charge": 1})
            removing = self.started(other_store.flow_instances.remove(flow.flow_instance_id))
            await self.blocked(removing)
        assert await self.finished(removing) is True
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []
        assert await store.correlations.list_waiting("parcel-77") == []

    @rule("C-28")
    async def test_what_is_written_beside_a_removal_does_not_outlive_the_flow(
        self, store: Store, other_store: Store
    ) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            await uow.flow_instances.remove(flow.flow_instance_id)
            putting = self.started(other_store.component_states.put(flow.flow_instance_id, "charge", 1))
            await self.blocked(putting)
        with pytest.raises(FlowInstanceNotFound):
            await self.finished(putting)
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []

    # purge

    async def _ended(self, store: Store, clock: FrozenClock, flow: FlowInstance) -> FlowInstance:
        clock.advance(_SECOND)
        return await store.advance(flow.complete())

    @rule("C-28")
    async def test_purge_removes_what_ended_before_an_instant(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        flows = [await factories.add_flow(store, definition) for _ in range(4)]
        ended = [await self._ended(store, clock, flow) for flow in flows]
        running = await factories.add_flow(store, definition)
        before = ended[2].completed_at
        assert before is not None
        assert await store.flow_instances.purge(before, dry_run=True) == 2
        assert await store.flow_instances.count() == 5
        assert await store.flow_instances.purge(before) == 2  # strictly before
        left = {flow.flow_instance_id async for flow in store.flow_instances.iterate()}
        assert left == {flow.flow_instance_id for flow in (*ended[2:], running)}
        assert await store.flow_instances.purge(before) == 0
        assert await store.flow_instances.purge(clock.now() + LEASE) == 2
        assert await store.flow_instances.count() == 1

    @rule("C-06")
    async def test_a_dry_run_is_no_write(self, store: Store, clock: FrozenClock) -> None:
        await store.advance((await factories.add_flow(store)).complete())
        clock.advance(LEASE)
        async with store.begin(read_only=True) as uow:
            assert await uow.flow_instances.purge(clock.now(), dry_run=True) == 1
            with pytest.raises(UsageError):
                await uow.flow_instances.purge(clock.now())
        assert await store.flow_instances.count() == 1

    @rule("C-28")
    async def test_purge_takes_everything_along(self, store: Store, clock: FrozenClock) -> None:
        flow = await self._full_flow(store)
        await self._ended(store, clock, flow.resume())
        clock.advance(_SECOND)
        assert await store.flow_instances.purge(clock.now()) == 1
        await self._assert_gone(store, flow)

    @rule("C-28")
    async def test_purge_goes_oldest_first_and_at_most_to_its_limit(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        flows = [await factories.add_flow(store, definition) for _ in range(5)]
        ended = [await self._ended(store, clock, flow) for flow in reversed(flows)]
        later = clock.now() + _SECOND
        assert await store.flow_instances.purge(later, limit=2, dry_run=True) == 2
        assert await store.flow_instances.purge(later, limit=2) == 2
        left = {flow.flow_instance_id async for flow in store.flow_instances.iterate()}
        assert left == {flow.flow_instance_id for flow in ended[2:]}
        assert [await store.flow_instances.purge(later, limit=2) for _ in range(3)] == [2, 1, 0]

    @rule("C-28")
    async def test_purge_can_be_limited_to_some_statuses(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        completed = await store.advance((await factories.add_flow(store, definition)).complete())
        failed = await store.advance((await factories.add_flow(store, definition)).fail("boom"))
        cancelled = await store.advance((await factories.add_flow(store, definition)).cancel())
        clock.advance(_SECOND)
        statuses = [FlowStatus.COMPLETED, FlowStatus.CANCELLED]
        assert await store.flow_instances.purge(clock.now(), statuses=statuses) == 2
        assert await store.flow_instances.find(completed.flow_instance_id) is None
        assert await store.flow_instances.find(cancelled.flow_instance_id) is None
        assert await store.flow_instances.get(failed.flow_instance_id) == failed

    @rule("C-28")
    async def test_a_family_is_purged_as_a_whole_or_not_at_all(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        root = await factories.add_flow(store, definition)
        child = await store.advance(root.child(definition).start())
        grandchild = await store.advance(child.child(definition).start())
        alone = await self._ended(store, clock, await factories.add_flow(store, definition))
        root = await self._ended(store, clock, root)
        child = await self._ended(store, clock, child)
        clock.advance(_SECOND)
        assert await store.flow_instances.purge(clock.now()) == 1
        assert await store.flow_instances.find(alone.flow_instance_id) is None
        grandchild = await self._ended(store, clock, grandchild)
        assert await store.flow_instances.purge(grandchild.completed_at or clock.now()) == 0
        clock.advance(_SECOND)
        assert await store.flow_instances.purge(clock.now(), statuses=[FlowStatus.FAILED]) == 0
        assert await store.flow_instances.purge(clock.now(), dry_run=True) == 3
        assert await store.flow_instances.purge(clock.now()) == 3
        assert await store.flow_instances.count() == 0

    @rule("C-28")
    async def test_purge_passes_over_what_another_transaction_holds(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        held = await self._ended(store, clock, await factories.add_flow(store, definition))
        free = await self._ended(store, clock, await factories.add_flow(store, definition))
        clock.advance(_SECOND)
        async with store.begin() as uow:
            held = await uow.flow_instances.save(held)
            assert await self.finished(other_store.flow_instances.purge(clock.now())) == 1
        assert await store.flow_instances.get(held.flow_instance_id) == held
        assert await store.flow_instances.find(free.flow_instance_id) is None

    @rule("C-28", "C-25")
    async def test_a_purged_business_key_is_free(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        await self._ended(store, clock, await factories.add_flow(store, definition, business_key="order-1"))
        with pytest.raises(AlreadyExists):
            await factories.add_flow(store, definition, business_key="order-1")
        clock.advance(_SECOND)
        assert await store.flow_instances.purge(clock.now()) == 1
        await factories.add_flow(store, definition, business_key="order-1")
