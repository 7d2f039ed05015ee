"""The memory store: a mix of what an engine does, and a step with its unit of work, by one task."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

from benchmarks.bench import Bench
from benchmarks.registry import TASKS, Operation, benchmark
from cascade_state import FlowDefinition, FlowInstance, ScheduleTimer, StepDefinition, Store, open_store

_GROUP = "memory store"
_LEASE = timedelta(seconds=30)
_DUE = [ScheduleTimer("s0", after=timedelta(0))]
_opened: WeakKeyDictionary[Bench, tuple[Store, FlowDefinition]] = WeakKeyDictionary()


async def _store_of(bench: Bench) -> tuple[Store, FlowDefinition]:
    if bench not in _opened:
        store: Any = await bench.enter(open_store("memory://"))
        definition = FlowDefinition(flow_id="bench", steps=(StepDefinition(step_id="s0", component_type="x"),))
        _opened[bench] = store, await store.flow_definitions.deploy(definition)
    return _opened[bench]


@benchmark(_GROUP, "operations: get, put, advance, claim, complete", tasks=TASKS[:1], counts_round_trips=False)
async def mix(bench: Bench, tasks: int) -> Operation:
    """Does each once, on a flow of the lane; counts five operations."""
    store, definition = await _store_of(bench)
    flow = await store.advance(FlowInstance.create(definition).start())

    async def operation(lane: int, index: int) -> int:
        nonlocal flow
        found = await store.flow_instances.get(flow.flow_instance_id)
        await store.component_states.put(flow.flow_instance_id, "s0", {"attempts": index})
        flow = await store.advance(found.complete_step("s0", {"receipt": "r-1"}), schedule=_DUE)
        timers = await store.timers.claim_due("w", limit=1, lease_duration=_LEASE)
        await store.timers.complete(timers)
        return 5

    return operation


@benchmark(_GROUP, "advance alone", tasks=TASKS[:1], counts_round_trips=False)
async def step(bench: Bench, tasks: int) -> Operation:
    """Stores one step after another of one flow."""
    store, definition = await _store_of(bench)
    flow = await store.advance(FlowInstance.create(definition).start())

    async def operation(lane: int, index: int) -> None:
        nonlocal flow
        flow = await store.advance(flow.complete_step("s0", {"receipt": "r-1"}))

    return operation
