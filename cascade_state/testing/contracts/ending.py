"""How flows end, and what goes with them (C-24)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    InvalidTransition,
    LeaseLost,
)
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import ScheduleTimer
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["EndingContract"]

_NOW = timedelta(0)


class EndingContract(StoreContract):
    """Complete, fail, cancel."""

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
