"""`advance`: one flow's step, all or nothing, at its version (C-20 … C-22)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    FlowInstanceNotFound,
    LeaseLost,
    VersionConflict,
)
from cascade_state.ids import new_timer_id
from cascade_state.model.events import NewEvent
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.timers import ScheduleTimer
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["AdvancingContract"]

_NOW = timedelta(0)


class AdvancingContract(StoreContract):
    """What a step writes, and when it is refused."""

    # C-20

    @rule("C-20")
    async def test_an_advance_writes_everything_at_once(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77", step_id="ship")
        flow = await store.advance(flow.suspend_for_timer("charge", after=_NOW), put_states={"old": 1, "kept": 2})
        extra = await store.timers.schedule(flow.flow_instance_id, "extra", after=LEASE)
        await store.correlations.publish("parcel-77", {"status": "delivered"})
        (timer,) = await store.timers.claim_due("worker-1", lease_duration=LEASE)
        (delivery,) = await store.correlations.claim_delivered("worker-1", lease_duration=LEASE)
        clock.advance(timedelta(seconds=1))
        step = (
            flow.resume()
            .complete_step("charge", {"receipt": "r-1"})
            .fail_step("ship", {"code": 7})
            .suspend_for_event("confirm", "confirmation-1", expires_at=clock.now() + LEASE)
            .suspend_for_timer("remind", after=LEASE)
        )
        advanced = await store.advance(
            step,
            put_states={"charge": {"attempts": 1}},
            remove_states=["old"],
            schedule=[ScheduleTimer("audit", due_at=clock.now(), payload={"n": 1})],
            cancel=[extra.timer_id],
            completes=[timer, delivery],
            events=[NewEvent("audited", {"by": "me"})],
        )
        assert advanced.version == flow.version + 1
        assert not advanced.changes
        assert (advanced.updated_at, advanced.created_at) == (clock.now(), flow.created_at)
        assert advanced.status is FlowStatus.WAITING_FOR_EVENT
        assert advanced.waits == {"confirm": "confirmation-1"}
        assert advanced.step_results["charge"].completed_at == clock.now()
        for on in (store, other_store):
            assert await on.flow_instances.get(flow.flow_instance_id) == advanced
            states = await on.component_states.list_for_instance(flow.flow_instance_id)
            assert {state.step_id: state.state for state in states} == {"charge": {"attempts": 1}, "kept": 2}
            timers = await on.timers.list_for_instance(flow.flow_instance_id)
            assert [(item.step_id, item.due_at) for item in timers] == [
                ("audit", clock.now()),
                ("remind", clock.now() + LEASE),
            ]
            assert timers[1].timer_id == advanced.pending_timers["remind"]
            assert await on.correlations.list_waiting("parcel-77") == []
            (wait,) = await on.correlations.list_waiting("confirmation-1")
            assert (wait.step_id, wait.created_at, wait.expires_at) == ("confirm", clock.now(), clock.now() + LEASE)
            assert await on.flow_instances.find_by_correlation("parcel-77") == []
            assert await on.flow_instances.find_by_correlation("confirmation-1") == [advanced]
            history = await on.flow_instances.history(flow.flow_instance_id)
            assert [event.sequence for event in history] == list(range(1, 11))
            assert [event.event_type for event in history[4:]] == [
                "flow_instance.resumed",
                "step.completed",
                "step.failed",
                "flow_instance.suspended_for_event",
                "flow_instance.suspended_for_timer",
                "audited",
            ]
            assert history[-1].payload == {"by": "me"}
        with pytest.raises(LeaseLost):
            await store.timers.complete([timer])
        with pytest.raises(LeaseLost):
            await store.correlations.complete([delivery])

    @rule("C-20")
    async def test_a_new_flow_is_inserted_with_all_that_happened_before(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        given = (
            factories.flow_instance(definition, trigger_data={"sku": "A-7"}, business_key="order-1")
            .start()
            .complete_step("charge", {"receipt": "r-1"})
            .suspend_for_event("ship", "parcel-77")
        )
        assert (given.created_at, given.version) == (None, 0)
        flow = await store.advance(given, put_states={"charge": 1}, schedule=[ScheduleTimer("ship", after=LEASE)])
        assert (flow.version, flow.created_at, flow.updated_at) == (1, clock.now(), clock.now())
        assert flow == replace(
            given,
            version=1,
            created_at=clock.now(),
            updated_at=clock.now(),
            step_results={"charge": replace(given.step_results["charge"], completed_at=clock.now())},
        )
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        assert (await store.component_states.get(flow.flow_instance_id, "charge")).state == 1
        assert len(await store.timers.list_for_instance(flow.flow_instance_id)) == 1
        assert len(await store.correlations.list_waiting("parcel-77")) == 1
        assert [event.sequence for event in await store.flow_instances.history(flow.flow_instance_id)] == [1, 2, 3, 4]

    @rule("C-20")
    @pytest.mark.parametrize("call", ["add", "save", "advance", "add_many"])
    async def test_every_way_to_store_a_new_flow_gives_the_same(self, store: Store, call: str) -> None:
        definition = await factories.deploy_flow_definition(store)
        given = factories.running_flow(definition, business_key="order-1").suspend_for_event("ship", "parcel-77")
        if call == "add_many":
            (result,) = await store.flow_instances.add_many([given])
            assert result.error is None
            flow = result.instance
        elif call == "advance":
            flow = await store.advance(given)
        else:
            flow = await getattr(store.flow_instances, call)(given)
        assert flow is not None
        assert flow.version == 1
        assert await store.flow_instances.get(given.flow_instance_id) == flow
        assert await store.flow_instances.find_by_correlation("parcel-77") == [flow]
        assert len(await store.flow_instances.history(flow.flow_instance_id)) == 3

    @rule("C-20")
    async def test_an_advance_without_changes_still_counts(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        clock.advance(LEASE)
        saved = await store.flow_instances.save(flow)
        assert saved == replace(flow, version=flow.version + 1, updated_at=clock.now())
        assert await store.flow_instances.get(flow.flow_instance_id) == saved
        assert len(await store.flow_instances.history(flow.flow_instance_id)) == 2

    @rule("C-20")
    async def test_a_repeated_step_overwrites_its_result_and_counts_attempts(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store)
        flow = await store.advance(flow.fail_step("charge", {"code": 7}))
        clock.advance(LEASE)
        flow = await store.advance(flow.complete_step("charge", {"receipt": "r-1"}).complete_step("ship"))
        found = await store.flow_instances.get(flow.flow_instance_id)
        assert found == flow
        result = found.step_results["charge"]
        assert (result.attempt, result.error, result.completed_at) == (2, None, clock.now())
        assert found.completed_steps == {"charge", "ship"}
        assert found.failed_steps == frozenset()

    @rule("C-20")
    async def test_a_step_that_waits_anew_loses_its_earlier_wait_and_timer(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77", step_id="ship")
        flow = await store.advance(flow.suspend_for_timer("ship", after=LEASE))
        first_timer = flow.pending_timers["ship"]
        flow = await store.advance(flow.suspend_for_event("ship", "parcel-78").suspend_for_timer("ship", after=LEASE))
        assert flow.waits == {"ship": "parcel-78"}
        assert await store.correlations.list_waiting("parcel-77") == []
        assert len(await store.correlations.list_waiting("parcel-78")) == 1
        assert await store.timers.find(first_timer) is None
        timers = await store.timers.list_for_instance(flow.flow_instance_id)
        assert [timer.timer_id for timer in timers] == [flow.pending_timers["ship"]]
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-20")
    async def test_what_was_added_and_dropped_between_two_commits_leaves_only_history(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        step = flow.suspend_for_event("ship", "parcel-77").suspend_for_timer("ship", after=LEASE).resume()
        flow = await store.advance(step.complete_step("ship"))
        assert (flow.waits, flow.pending_timers, flow.status) == ({}, {}, FlowStatus.RUNNING)
        assert await store.correlations.list_waiting("parcel-77") == []
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []
        assert len(await store.flow_instances.history(flow.flow_instance_id)) == 6

    @rule("C-20")
    async def test_cancelling_a_timer_that_is_gone_does_not_matter(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        timer = await store.timers.schedule(flow.flow_instance_id, "charge", after=LEASE)
        await store.timers.cancel(timer.timer_id)
        unknown = new_timer_id(flow.flow_instance_id)
        assert (await store.advance(flow, cancel=[timer.timer_id, unknown])).version == 2

    @rule("C-20")
    async def test_advances_of_one_unit_of_work_build_on_each_other(self, store: Store) -> None:
        async with store.begin() as uow:
            flow = await factories.add_flow(uow)
            flow = await uow.advance(flow.complete_step("charge"), put_states={"charge": 1})
            flow = await uow.advance(flow.suspend_for_event("ship", "parcel-77"))
            flow = await uow.advance(flow.resume().complete_step("ship").complete(), remove_states=["charge"])
        assert flow.version == 4
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []
        assert await store.correlations.list_waiting("parcel-77") == []
        history = await store.flow_instances.history(flow.flow_instance_id)
        assert [event.sequence for event in history] == list(range(1, 8))

    @rule("C-20", "C-21")
    async def test_a_flow_of_many_steps_keeps_them_all(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        for number in range(60):
            flow = await store.advance(flow.complete_step(f"step-{number}", {"number": number}))
        found = await store.flow_instances.get(flow.flow_instance_id)
        assert found == flow
        assert found.completed_steps == {f"step-{number}" for number in range(60)}
        assert found.step_output("step-59", "number") == 59
        history = await store.flow_instances.history(flow.flow_instance_id)
        assert [event.sequence for event in history] == list(range(1, 63))

    # C-22

    @rule("C-22")
    async def test_a_stale_version_is_refused_and_writes_nothing(self, store: Store, other_store: Store) -> None:
        stale = await factories.add_flow(store, waits_for="parcel-77")
        kept = await store.timers.schedule(stale.flow_instance_id, "kept", after=LEASE)
        due = await store.timers.schedule(stale.flow_instance_id, "due", after=_NOW)
        (claimed,) = await store.timers.claim_due("worker-1", lease_duration=LEASE)
        current = await store.advance(stale, put_states={"kept": 1})
        with pytest.raises(VersionConflict) as caught:
            await other_store.advance(
                stale.resume().complete_step("charge").suspend_for_event("ship", "parcel-78"),
                put_states={"charge": 1},
                remove_states=["kept"],
                schedule=[ScheduleTimer("charge", after=LEASE)],
                cancel=[kept.timer_id],
                completes=[claimed],
                events=[NewEvent("noted")],
            )
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
        assert (caught.value.entity, caught.value.key) == ("flow instance", stale.flow_instance_id)
        assert await store.flow_instances.get(stale.flow_instance_id) == current
        states = await store.component_states.list_for_instance(stale.flow_instance_id)
        assert [state.step_id for state in states] == ["kept"]
        timers = await store.timers.list_for_instance(stale.flow_instance_id)
        assert {timer.timer_id for timer in timers} == {kept.timer_id, due.timer_id}
        assert len(await store.correlations.list_waiting("parcel-77")) == 1
        assert await store.correlations.list_waiting("parcel-78") == []
        assert len(await store.flow_instances.history(stale.flow_instance_id)) == 3
        await store.timers.complete([claimed])

    @rule("C-22")
    async def test_a_version_from_the_future_is_refused_too(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        with pytest.raises(VersionConflict) as caught:
            await store.advance(replace(flow, version=7).complete_step("charge"))
        assert (caught.value.expected_version, caught.value.actual_version) == (7, 1)

    @rule("C-22")
    async def test_of_two_concurrent_advances_of_one_version_exactly_one_succeeds(
        self, store: Store, other_store: Store
    ) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            mine = await uow.advance(flow.complete_step("charge"), put_states={"by": "mine"})
            theirs = self.started(other_store.advance(flow.complete_step("ship"), put_states={"by": "theirs"}))
            await self.blocked(theirs)
        with pytest.raises(VersionConflict) as caught:
            await self.finished(theirs)
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
        assert await store.flow_instances.get(flow.flow_instance_id) == mine
        assert (await store.component_states.get(flow.flow_instance_id, "by")).state == "mine"
        assert len(await store.flow_instances.history(flow.flow_instance_id)) == 3

    @rule("C-22")
    @pytest.mark.parametrize("with_wait", [False, True])
    async def test_of_many_racing_advances_exactly_one_succeeds(
        self, store: Store, other_store: Store, with_wait: bool
    ) -> None:
        flow = await factories.add_flow(store)
        racers = []
        for number in range(6):
            step = flow.complete_step(f"step-{number}")
            if with_wait:
                step = step.suspend_for_event("ship", f"parcel-{number}")
            on = (store, other_store)[number % 2]
            racers.append(on.advance(step, put_states={f"step-{number}": 1}))
        results = await self.finished(asyncio.gather(*racers, return_exceptions=True))
        (winner,) = [result for result in results if isinstance(result, FlowInstance)]
        assert sum(isinstance(result, VersionConflict) for result in results) == 5
        assert await store.flow_instances.get(flow.flow_instance_id) == winner
        states = await store.component_states.list_for_instance(flow.flow_instance_id)
        assert {state.step_id for state in states} == winner.completed_steps
        waiting = [await store.correlations.list_waiting(f"parcel-{number}") for number in range(6)]
        assert sum(map(len, waiting)) == with_wait

    @rule("C-22")
    async def test_a_removed_flow_cannot_be_advanced(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        await store.flow_instances.remove(flow.flow_instance_id)
        with pytest.raises(FlowInstanceNotFound) as caught:
            await store.advance(flow.complete_step("charge"), put_states={"charge": 1})
        assert caught.value.key == flow.flow_instance_id
        assert await store.flow_instances.find(flow.flow_instance_id) is None
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []

    @rule("C-22")
    async def test_a_flow_that_is_removed_meanwhile_cannot_be_advanced(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            await uow.flow_instances.remove(flow.flow_instance_id)
            advancing = self.started(other_store.advance(flow.complete_step("charge")))
            await self.blocked(advancing)
        with pytest.raises(FlowInstanceNotFound):
            await self.finished(advancing)
