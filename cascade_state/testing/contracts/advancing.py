"""`advance`: one flow's step, all or nothing, at its version and under its leases (C-20 … C-25)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    AlreadyExists,
    FlowDefinitionNotFound,
    FlowInstanceNotFound,
    InvalidTransition,
    LeaseLost,
    NotFound,
    VersionConflict,
)
from cascade_state.ids import new_flow_instance_id, new_timer_id
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
        assert (found.completed_steps, found.failed_steps) == ({"charge", "ship"}, frozenset())

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

    # C-23

    @rule("C-23")
    async def test_the_lease_of_a_claimed_flow_is_checked(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        (mine,) = await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        assert mine == flow  # claiming does not change the version
        assert mine.lease is not None
        advanced = await store.advance(mine.complete_step("charge"), lease=mine.lease)
        assert advanced.lease == mine.lease
        clock.advance(LEASE)
        (theirs,) = await store.flow_instances.claim("worker-2", lease_duration=LEASE)
        with pytest.raises(LeaseLost) as caught:
            await store.advance(advanced.complete_step("ship"), lease=mine.lease, put_states={"ship": 1})
        assert (caught.value.entity, caught.value.key) == ("flow instance", flow.flow_instance_id)
        assert (caught.value.token, caught.value.holder) == (mine.lease.token, "worker-1")
        assert await store.flow_instances.get(flow.flow_instance_id) == advanced
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []
        ended = await store.advance(theirs.complete_step("ship").complete(), lease=theirs.lease)
        assert ended.lease is None
        with pytest.raises(LeaseLost):
            await store.flow_instances.release([theirs])

    @rule("C-23")
    async def test_an_expired_lease_that_nobody_took_still_holds(self, store: Store, clock: FrozenClock) -> None:
        await factories.add_flow(store)
        (mine,) = await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        clock.advance(10 * LEASE)
        assert (await store.advance(mine.complete_step("charge"), lease=mine.lease)).version == mine.version + 1

    @rule("C-23")
    async def test_a_released_lease_does_not_hold(self, store: Store) -> None:
        await factories.add_flow(store)
        (mine,) = await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        await store.flow_instances.release([mine])
        with pytest.raises(LeaseLost):
            await store.advance(mine.complete_step("charge"), lease=mine.lease)

    @rule("C-23")
    async def test_without_a_lease_only_the_version_is_checked(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        (held,) = await store.flow_instances.claim("worker-1", lease_duration=LEASE)
        advanced = await store.advance(flow.complete_step("charge"))
        with pytest.raises(VersionConflict):
            await store.advance(held.complete_step("ship"), lease=held.lease)
        assert (await store.advance(advanced.complete_step("ship"), lease=held.lease)).version == 3

    @rule("C-23")
    async def test_a_lost_timer_or_delivery_refuses_the_whole_advance(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        flow = await store.advance(flow.suspend_for_timer("charge", after=_NOW))
        await store.correlations.publish("parcel-77", {})
        (timer,) = await store.timers.claim_due("worker-1", lease_duration=LEASE)
        (delivery,) = await store.correlations.claim_delivered("worker-1", lease_duration=LEASE)
        step = flow.resume().complete_step("charge").complete_step("ship").complete()
        clock.advance(LEASE)
        (timer_taken,) = await store.timers.claim_due("worker-2", lease_duration=LEASE)
        with pytest.raises(LeaseLost) as caught:
            await store.advance(step, completes=[delivery, timer], put_states={"charge": 1})
        assert (caught.value.entity, caught.value.key) == ("timer", timer.timer_id)
        (delivery_taken,) = await store.correlations.claim_delivered("worker-2", lease_duration=LEASE)
        with pytest.raises(LeaseLost) as caught:
            await store.advance(step, completes=[timer_taken, delivery], put_states={"charge": 1})
        assert (caught.value.entity, caught.value.key) == ("delivery", "parcel-77")
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []
        assert len(await store.timers.list_for_instance(flow.flow_instance_id)) == 1
        ended = await store.advance(step, completes=[timer_taken, delivery_taken])
        assert ended.is_terminal

    @rule("C-23")
    async def test_what_was_never_claimed_cannot_be_completed(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        timer = await store.timers.schedule(flow.flow_instance_id, "charge", after=_NOW)
        (delivery,) = await store.correlations.publish("parcel-77", {})
        for item in (timer, delivery):
            with pytest.raises(LeaseLost):
                await store.advance(flow, completes=[item])
        made_up = replace(timer, lease=factories.lease(token=0))
        with pytest.raises(LeaseLost):
            await store.advance(flow, completes=[made_up])
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-23")
    async def test_a_timer_of_another_flow_can_be_completed(self, store: Store) -> None:
        parent = await factories.add_flow(store)
        child = await store.advance(parent.child(await factories.deploy_flow_definition(store)).start())
        await store.timers.schedule(child.flow_instance_id, "charge", after=_NOW)
        (timer,) = await store.timers.claim_due("worker-1", lease_duration=LEASE)
        await store.advance(parent.complete_step("charge"), completes=[timer])
        assert await store.timers.find(timer.timer_id) is None

    # C-24

    @rule("C-24")
    @pytest.mark.parametrize("end", ["complete", "fail", "cancel"])
    async def test_the_timers_and_waits_of_a_flow_go_with_the_commit_that_ends_it(
        self, store: Store, clock: FrozenClock, end: str
    ) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77", step_id="ship")
        flow = await store.advance(flow.suspend_for_timer("charge", after=_NOW).suspend_for_event("pack", "box-1"))
        await store.timers.schedule(flow.flow_instance_id, "audit", after=_NOW)
        await store.correlations.publish("box-1", {})
        (timer, *_) = await store.timers.claim_due("worker-1", lease_duration=LEASE)
        (delivery,) = await store.correlations.claim_delivered("worker-1", lease_duration=LEASE)
        ends: dict[str, Callable[[FlowInstance], FlowInstance]] = {
            "complete": lambda flow: flow.resume().complete(),
            "fail": lambda flow: flow.fail({"code": 7}),
            "cancel": lambda flow: flow.cancel("no stock"),
        }
        ended = await store.advance(ends[end](flow))
        assert (ended.is_terminal, ended.waits, ended.pending_timers) == (True, {}, {})
        assert ended.completed_at == ended.updated_at == clock.now()
        assert await store.flow_instances.get(flow.flow_instance_id) == ended
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []
        for key in ("parcel-77", "box-1"):
            assert await store.correlations.list_waiting(key) == []
            assert await store.flow_instances.find_by_correlation(key) == []
        clock.advance(10 * LEASE)
        assert await store.timers.claim_due("worker-2", lease_duration=LEASE) == []
        assert await store.correlations.claim_delivered("worker-2", lease_duration=LEASE) == []
        assert await store.flow_instances.claim("worker-2", lease_duration=LEASE) == []
        with pytest.raises(LeaseLost):
            await store.timers.complete([timer])
        with pytest.raises(LeaseLost):
            await store.correlations.complete([delivery])
        assert await store.correlations.publish("parcel-77", {}) == []

    @rule("C-24")
    @pytest.mark.parametrize("end", ["complete", "fail", "cancel"])
    async def test_a_flow_that_has_ended_takes_no_transition(self, store: Store, end: str) -> None:
        flow = await factories.add_flow(store)
        ends: dict[str, Callable[[], FlowInstance]] = {
            "complete": flow.complete,
            "fail": lambda: flow.fail("boom"),
            "cancel": flow.cancel,
        }
        await store.advance(ends[end]())
        ended = await store.flow_instances.get(flow.flow_instance_id)
        transitions: list[Callable[[], FlowInstance]] = [
            ended.start,
            ended.complete,
            ended.cancel,
            ended.resume,
            lambda: ended.fail("again"),
            lambda: ended.complete_step("ship"),
            lambda: ended.fail_step("ship", "x"),
            lambda: ended.suspend_for_timer("ship", after=LEASE),
            lambda: ended.suspend_for_event("ship", "parcel-77"),
        ]
        for transition in transitions:
            with pytest.raises(InvalidTransition) as caught:
                transition()
            assert caught.value.from_status == ended.status
        with pytest.raises(InvalidTransition):
            await store.timers.schedule(flow.flow_instance_id, "ship", after=LEASE)
        with pytest.raises(InvalidTransition):
            await store.advance(ended, schedule=[ScheduleTimer("ship", after=LEASE)])
        assert await store.flow_instances.get(flow.flow_instance_id) == ended

    @rule("C-24")
    async def test_a_timer_scheduled_while_the_flow_ends_does_not_outlive_it(
        self, store: Store, other_store: Store
    ) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            await uow.advance(flow.complete())
            scheduling = self.started(other_store.timers.schedule(flow.flow_instance_id, "ship", after=LEASE))
            await self.blocked(scheduling)
        with pytest.raises(InvalidTransition):
            await self.finished(scheduling)
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []

    @rule("C-24")
    async def test_a_flow_that_ends_while_a_timer_is_scheduled_takes_it_along(
        self, store: Store, other_store: Store
    ) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            timer = await uow.timers.schedule(flow.flow_instance_id, "ship", after=LEASE)
            ending = self.started(other_store.advance(flow.complete()))
            await self.settled(ending)
        assert (await self.finished(ending)).is_terminal
        assert await store.timers.find(timer.timer_id) is None

    # C-25

    @rule("C-25")
    async def test_a_business_key_is_taken_once_per_flow_id(self, store: Store, other_store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        another = await factories.deploy_flow_definition(store)
        first = await factories.add_flow(store, definition, business_key="order-1")
        for on in (store, other_store):
            for call in (on.flow_instances.add, on.flow_instances.save, on.advance):
                given = factories.running_flow(definition, business_key="order-1").suspend_for_event(
                    "ship", "parcel-77"
                )
                with pytest.raises(AlreadyExists) as caught:
                    await call(given)
                assert (caught.value.entity, caught.value.key) == ("business key", "order-1")
                assert caught.value.existing_id == first.flow_instance_id
                assert await on.flow_instances.find(given.flow_instance_id) is None
                assert await on.correlations.list_waiting("parcel-77") == []
        await factories.add_flow(store, another, business_key="order-1")
        await factories.add_flow(store, definition, business_key="order-2")
        for _ in range(2):
            await factories.add_flow(store, definition)
        assert await store.flow_instances.count() == 5

    @rule("C-25")
    async def test_a_business_key_stays_taken_by_a_flow_that_has_ended_and_is_freed_by_its_removal(
        self, store: Store
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        first = await store.advance((await factories.add_flow(store, definition, business_key="order-1")).complete())
        with pytest.raises(AlreadyExists):
            await factories.add_flow(store, definition, business_key="order-1")
        newer = await factories.deploy_flow_definition(store, definition.flow_id, name="two")
        with pytest.raises(AlreadyExists):
            await factories.add_flow(store, newer, business_key="order-1")
        await store.flow_instances.remove(first.flow_instance_id)
        again = await factories.add_flow(store, definition, business_key="order-1")
        assert await store.flow_instances.find_by_business_key(definition.flow_id, "order-1") == again

    @rule("C-25")
    async def test_an_id_is_taken_once(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        given = factories.running_flow(definition, business_key="order-1")
        first = await store.flow_instances.add(given)
        for again in (given, replace(given, business_key=None), replace(given, business_key="order-2")):
            with pytest.raises(AlreadyExists) as caught:
                await store.flow_instances.add(again)
            assert caught.value.existing_id == first.flow_instance_id
        assert await store.flow_instances.get(given.flow_instance_id) == first
        assert await store.flow_instances.find_by_business_key(definition.flow_id, "order-2") is None

    @rule("C-25")
    @pytest.mark.parametrize("commits", [True, False])
    async def test_of_two_concurrent_adds_of_one_business_key_one_succeeds(
        self, store: Store, other_store: Store, commits: bool
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        async with store.begin() as uow:
            mine = await factories.add_flow(uow, definition, business_key="order-1")
            theirs = self.started(factories.add_flow(other_store, definition, business_key="order-1"))
            await self.blocked(theirs)
            if not commits:
                await uow.rollback()
        if commits:
            with pytest.raises(AlreadyExists) as caught:
                await self.finished(theirs)
            assert caught.value.existing_id == mine.flow_instance_id
        else:
            stored = await self.finished(theirs)
            assert await store.flow_instances.find_by_business_key(definition.flow_id, "order-1") == stored
        assert await store.flow_instances.count() == 1

    @rule("C-25")
    async def test_add_many_reports_each_item_and_stores_the_others(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        taken = await factories.add_flow(store, definition, business_key="taken")
        first = factories.running_flow(definition, business_key="order-1").suspend_for_event("ship", "parcel-77")
        unknown = replace(definition, flow_id="nowhere")
        items = [
            first,
            factories.running_flow(definition, business_key="taken"),
            factories.running_flow(definition, business_key="order-1"),
            replace(factories.running_flow(definition), flow_instance_id=first.flow_instance_id),
            factories.running_flow(unknown),
            factories.running_flow(definition).suspend_for_timer("charge", after=LEASE),
        ]
        results = await store.flow_instances.add_many(items)
        assert [type(result.error) for result in results] == [
            type(None),
            AlreadyExists,
            AlreadyExists,
            AlreadyExists,
            FlowDefinitionNotFound,
            type(None),
        ]
        assert all((result.instance is None) is (result.error is not None) for result in results)
        errors = [result.error for result in results[1:4]]
        holders = [error.existing_id for error in errors if isinstance(error, AlreadyExists)]
        assert holders == [taken.flow_instance_id, first.flow_instance_id, first.flow_instance_id]
        stored = [result.instance for result in results if result.instance is not None]
        assert [item.flow_instance_id for item in stored] == [items[0].flow_instance_id, items[5].flow_instance_id]
        for item in stored:
            assert await store.flow_instances.get(item.flow_instance_id) == item
            assert len(await store.flow_instances.history(item.flow_instance_id)) == 3
        assert len(await store.correlations.list_waiting("parcel-77")) == 1
        assert len(await store.timers.list_for_instance(items[5].flow_instance_id)) == 1
        assert await store.flow_instances.count() == 3

    @rule("C-25")
    async def test_add_many_keeps_the_order_of_more_items_than_travel_at_once(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        items = [factories.running_flow(definition, business_key=f"order-{number}") for number in range(1100)]
        items[1050] = factories.running_flow(definition, business_key="order-3")
        results = await store.flow_instances.add_many(items)
        assert [number for number, result in enumerate(results) if result.error is not None] == [1050]
        error = results[1050].error
        assert isinstance(error, AlreadyExists)
        assert error.existing_id == items[3].flow_instance_id
        for item, result in zip(items, results, strict=True):
            assert result.instance is None or result.instance.flow_instance_id == item.flow_instance_id
        assert await store.flow_instances.count() == 1099
        assert await store.flow_instances.add_many([]) == []

    @rule("C-25")
    async def test_add_many_is_part_of_its_unit_of_work(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        await factories.add_flow(store, definition, business_key="taken")
        items = [factories.running_flow(definition, business_key=key) for key in ("taken", "free")]
        async with store.begin() as uow:
            results = await uow.flow_instances.add_many(items)
            assert [result.error is None for result in results] == [False, True]
            assert await uow.flow_instances.count() == 2
            await uow.rollback()
        assert await store.flow_instances.count() == 1

    # unknown definitions and flows

    async def test_a_new_flow_needs_its_definition(self, store: Store) -> None:
        definition = factories.flow_definition(version=1)
        for call in (store.flow_instances.add, store.flow_instances.save, store.advance):
            given = factories.running_flow(definition)
            with pytest.raises(FlowDefinitionNotFound) as caught:
                await call(given)
            assert caught.value.key == f"{definition.flow_id} version 1"
            assert await store.flow_instances.find(given.flow_instance_id) is None

    async def test_an_unknown_flow_is_not_found(self, store: Store) -> None:
        unknown = new_flow_instance_id()
        assert await store.flow_instances.find(unknown) is None
        assert await store.flow_instances.find_by_business_key("nowhere", "order-1") is None
        assert await store.flow_instances.history(unknown) == []
        assert await store.flow_instances.remove(unknown) is False
        for call in (store.flow_instances.get, store.flow_instances.export):
            with pytest.raises(NotFound) as caught:
                await call(unknown)
            assert isinstance(caught.value, FlowInstanceNotFound)
            assert caught.value.key == unknown

    async def test_a_caller_may_choose_the_id(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        for chosen in (new_flow_instance_id(), factories.flow_instance().flow_instance_id):
            given = factories.flow_instance(definition, flow_instance_id=chosen).start()
            flow = await store.advance(given)
            assert (flow.flow_instance_id, flow.root_id) == (chosen, chosen)
            assert (await store.flow_instances.get(chosen)) == flow
