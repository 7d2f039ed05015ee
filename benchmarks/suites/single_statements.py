"""Operations that are one small statement."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import uuid4

from sqlalchemy import select

from benchmarks.bench import DOCUMENT, Bench
from benchmarks.contenders import ORM, FlowRow, ResultRow, StateRow, identity, merge_state
from benchmarks.registry import BARE, Operation, benchmark
from cascade_state import FlowInstance

Call: TypeAlias = Callable[[Any, FlowInstance], Awaitable[Any]]  # a call on a store, or on what records it

_GROUP = "single statements"
_FAR = timedelta(days=1)


async def _flows(bench: Bench, count: int) -> list[FlowInstance]:
    flows = await bench.stored_flows(count)
    for flow in flows:
        await bench.store.component_states.put(flow.flow_instance_id, "s0", DOCUMENT)
    return flows


async def _sends(bench: Bench, call: Call, flow: FlowInstance) -> list[tuple[str, list[Any]]]:
    return await bench.bare.sends(lambda store: call(store, flow))


async def _ours(bench: Bench, tasks: int, call: Call) -> Operation:
    flows = await _flows(bench, tasks)

    async def operation(lane: int, index: int) -> None:
        await call(bench.store, flows[lane])

    return operation


async def _bare(bench: Bench, tasks: int, call: Call) -> Operation:
    sends = [await _sends(bench, call, flow) for flow in await _flows(bench, tasks)]
    return bench.bare.sending([one * bench.operations for one in sends])


def _get(store: Any, flow: FlowInstance) -> Awaitable[Any]:
    result: Awaitable[Any] = store.flow_instances.get(flow.flow_instance_id)
    return result


@benchmark(_GROUP, "get")
async def get(bench: Bench, tasks: int) -> Operation:
    """Reads a flow."""
    return await _ours(bench, tasks, _get)


@get.against(BARE)
async def _bare_get(bench: Bench, tasks: int) -> Operation:
    return await _bare(bench, tasks, _get)


@get.against(ORM, share=0.25)
async def _orm_get(bench: Bench, tasks: int) -> Operation:
    flows = await _flows(bench, tasks)

    async def operation(lane: int, index: int) -> None:
        partition_id, flow_instance_id = key = identity(flows[lane].flow_instance_id)
        result = ResultRow.__table__.c
        async with bench.orm.session() as session:
            await session.get_one(FlowRow, key)
            results = select(ResultRow).where(
                result.partition_id == partition_id, result.flow_instance_id == flow_instance_id
            )
            (await session.scalars(results)).all()

    return operation


def _put(store: Any, flow: FlowInstance) -> Awaitable[Any]:
    result: Awaitable[Any] = store.component_states.put(flow.flow_instance_id, "s0", DOCUMENT)
    return result


@benchmark(_GROUP, "put")
async def put(bench: Bench, tasks: int) -> Operation:
    """Stores a component state over the one before."""
    return await _ours(bench, tasks, _put)


@put.against(BARE)
async def _bare_put(bench: Bench, tasks: int) -> Operation:
    return await _bare(bench, tasks, _put)


@put.against(ORM, share=0.25)
async def _orm_put(bench: Bench, tasks: int) -> Operation:
    flows = await _flows(bench, tasks)

    async def operation(lane: int, index: int) -> None:
        async with bench.orm.session.begin() as session:
            await merge_state(session, flows[lane], "s0", DOCUMENT)

    return operation


def _find_state(store: Any, flow: FlowInstance) -> Awaitable[Any]:
    result: Awaitable[Any] = store.component_states.find(flow.flow_instance_id, "s0")
    return result


@benchmark(_GROUP, "find a component state")
async def find_state(bench: Bench, tasks: int) -> Operation:
    """Reads a component state."""
    return await _ours(bench, tasks, _find_state)


@find_state.against(BARE)
async def _bare_find_state(bench: Bench, tasks: int) -> Operation:
    return await _bare(bench, tasks, _find_state)


@find_state.against(ORM, share=0.25)
async def _orm_find_state(bench: Bench, tasks: int) -> Operation:
    flows = await _flows(bench, tasks)

    async def operation(lane: int, index: int) -> None:
        async with bench.orm.session() as session:
            await session.get(StateRow, (*identity(flows[lane].flow_instance_id), "s0"))

    return operation


def _schedule(store: Any, flow: FlowInstance) -> Awaitable[Any]:
    result: Awaitable[Any] = store.timers.schedule(flow.flow_instance_id, "s0", after=_FAR)
    return result


@benchmark(_GROUP, "schedule")
async def schedule(bench: Bench, tasks: int) -> Operation:
    """Schedules a timer."""
    return await _ours(bench, tasks, _schedule)


@schedule.against(BARE)
async def _bare_schedule(bench: Bench, tasks: int) -> Operation:
    flows = await _flows(bench, tasks)
    sends = [
        [one for _ in range(bench.operations) for one in await _sends(bench, _schedule, flow)]  # a timer id each
        for flow in flows
    ]
    return bench.bare.sending(sends)


@benchmark(_GROUP, "publish (nobody waits)")
async def publish(bench: Bench, tasks: int) -> Operation:
    """Publishes an event that is not kept."""

    async def operation(lane: int, index: int) -> None:
        await _publish()(bench.store)

    return operation


@publish.against(BARE)
async def _bare_publish(bench: Bench, tasks: int) -> Operation:
    sends = [[await bench.bare.sends(_publish(), count=2) for _ in range(bench.operations)] for _ in range(tasks)]

    async def operation(lane: int, index: int) -> None:
        for text, arguments in sends[lane][index]:
            await bench.bare.connections[lane].fetch(text, *arguments)

    return operation


def _publish() -> Callable[[Any], Awaitable[Any]]:
    key = f"parcel-{uuid4()}"
    return lambda store: store.correlations.publish(key, {"status": "delivered"}, mode="broadcast")
