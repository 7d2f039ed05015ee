"""A whole scenario of the demo in one process and without waiting: on a store whose clock the test moves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from cascade_state import Store
from cascade_state.demo.components import Component, standard_components
from cascade_state.demo.definition_files import load_definitions
from cascade_state.demo.effects import Effects, ListedEffects
from cascade_state.demo.engine import Engine
from cascade_state.demo.invariants import Evidence
from cascade_state.demo.loop import Worker
from cascade_state.demo.scenario import Scenario
from cascade_state.demo.world import World
from cascade_state.testing.clock import FrozenClock

ROUNDS = 400  # far more than any scenario here needs


async def no_pause(seconds: float) -> None:
    """Answers from outside come at once."""


def instant_components(
    pause: Callable[[float], Awaitable[None]] = no_pause,
) -> dict[str, Component]:
    return standard_components(timedelta(0), pause)


async def deployed_world(store: Store, clock: FrozenClock, *, flow_count: int = 30, seed: int = 1) -> World:
    """Returns a world that has begun: everything is deployed and added, nothing is done."""
    for definition in load_definitions().values():
        await store.flow_definitions.deploy(definition)
    world = World(store, Scenario.make(flow_count=flow_count, seed=seed, slow_seconds=0.0), clock=clock)
    await world.begin()
    return world


async def play(world: World, worker: Worker, clock: FrozenClock) -> None:
    """Lets worker and world take turns until every flow has ended; time moves only when both are idle."""
    total = sum(1 for _ in world.scenario.all_flows())
    for _ in range(ROUNDS):
        done = await worker.run_until_idle()
        done += await world.observe()
        if world.ended == total:
            return
        if not done:
            clock.advance(timedelta(milliseconds=250))
    raise AssertionError(f"{world.ended} of {total} flows ended after {ROUNDS} rounds")


async def collected(world: World, effects: Effects) -> Evidence:
    store = world.store
    return Evidence(
        scenario=world.scenario,
        flows=[flow async for flow in store.flow_instances.iterate()],
        history=world.history,
        effects=await effects.list_all(),
        statistics=await store.statistics(),
    )


async def played_evidence(store: Store, clock: FrozenClock, *, flow_count: int = 30, seed: int = 1) -> Evidence:
    """Returns the evidence of a whole scenario, played by one worker."""
    world = await deployed_world(store, clock, flow_count=flow_count, seed=seed)
    effects = ListedEffects()
    worker = new_worker(store, effects, instant_components())
    await play(world, worker, clock)
    return await collected(world, effects)


def new_worker(store: Store, effects: Effects, components: Mapping[str, Component], name: str = "worker-1") -> Worker:
    return Worker(store, Engine(store, effects, components, worker=name), name=name)
