"""The demo's engine on the memory store, under a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from cascade_state import Delivery, FlowInstance, FlowInstanceFilter, FlowStatus, Store, Timer, open_store
from cascade_state.demo.components import Call, Component, Outcome
from cascade_state.demo.definition_files import load_definitions
from cascade_state.demo.effects import ListedEffects
from cascade_state.demo.invariants import check_all
from cascade_state.testing.clock import FrozenClock
from tests.unit.demo_runs import (
    collected,
    deployed_world,
    instant_components,
    new_worker,
    play,
    played_evidence,
)


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
async def store(clock: FrozenClock) -> AsyncIterator[Store]:
    async with open_store("memory://", clock=clock) as opened:
        yield opened


class Crash(BaseException):
    """The process dies while a component is at work: nothing after it is run, nothing is released."""


class Crashing(Component):
    """A component that lets the process die at its first call; afterwards it is the one that it stands for."""

    def __init__(self, component_type: str) -> None:
        self._component = instant_components()[component_type]
        self.crashed = False

    async def run(self, call: Call) -> Outcome:
        if not self.crashed:
            self.crashed = True
            raise Crash
        return await self._component.run(call)

    async def on_delivery(self, call: Call, delivery: Delivery) -> Outcome:
        return await self._component.on_delivery(call, delivery)

    async def on_timer(self, call: Call, timer: Timer) -> Outcome:
        return await self._component.on_timer(call, timer)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_flow_of_every_definition_ends_as_planned(store: Store, clock: FrozenClock, seed: int) -> None:
    evidence = await played_evidence(store, clock, seed=seed)

    problems = {verdict.name: verdict.problems for verdict in check_all(evidence) if not verdict.holds}
    assert problems == {}
    assert {flow.flow_id for flow in evidence.flows} == {"order", "approval", "review", "import"}
    assert {flow.status for flow in evidence.flows} == {FlowStatus.COMPLETED, FlowStatus.FAILED}


async def test_a_batch_import_commits_each_of_a_few_hundred_steps(store: Store, clock: FrozenClock) -> None:
    evidence = await played_evidence(store, clock)

    (batch,) = [flow for flow in evidence.flows if flow.flow_id == "import"]
    assert len(batch.completed_steps) >= 200
    assert batch.version > len(batch.completed_steps)


@pytest.mark.parametrize("component_type", ["service", "event", "timer", "children", "majority", "verify"])
async def test_what_a_worker_held_when_it_died_is_finished_by_its_successor(
    store: Store, clock: FrozenClock, component_type: str
) -> None:
    world = await deployed_world(store, clock)
    effects = ListedEffects()
    crashing = Crashing(component_type)
    components = {**instant_components(), component_type: crashing}
    with pytest.raises(Crash):
        await play(world, new_worker(store, effects, components), clock)

    await play(world, new_worker(store, effects, instant_components(), "worker-2"), clock)

    assert crashing.crashed
    verdicts = check_all(await collected(world, effects))
    assert [verdict for verdict in verdicts if not verdict.holds] == []


async def test_a_flow_with_a_ready_step_stays_running_while_another_step_waits(
    store: Store, clock: FrozenClock
) -> None:
    definitions = [await store.flow_definitions.deploy(item) for item in load_definitions().values()]
    approval = next(item for item in definitions if item.flow_id == "approval")
    flow = FlowInstance.create(
        approval, business_key="document", trigger_data={"remind_seconds": 60, "reviewers": {"ada": {}}}
    )
    await store.flow_instances.add(flow)
    components = {**instant_components(), "children": Crashing("children")}

    with pytest.raises(Crash):
        await new_worker(store, ListedEffects(), components).run_until_idle()

    left = await store.flow_instances.get(flow.flow_instance_id)
    assert set(left.pending_timers) == {"remind"}
    assert left.status is FlowStatus.RUNNING
    assert [step.step_id for step in left.ready_steps(approval)] == ["reviews"]


async def test_a_worker_leaves_the_flows_of_a_living_worker_alone(store: Store, clock: FrozenClock) -> None:
    await deployed_world(store, clock)
    held = await store.flow_instances.claim("other", limit=1000, lease_duration=timedelta(minutes=1))

    claimed = await new_worker(store, ListedEffects(), instant_components()).run_until_idle()

    assert claimed == 0
    untouched = FlowInstanceFilter(statuses=(FlowStatus.INITIALIZING,))
    assert await store.flow_instances.count(untouched) == len(held)
