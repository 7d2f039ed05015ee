"""Steps of flows: `advance`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.bench import DOCUMENT, STATES, STEP_IDS, Bench
from benchmarks.contenders import ORM, EventRow, FlowRow, ResultRow, StateRow, TimerRow, WaitRow, identity, merge_state
from benchmarks.registry import BARE, Benchmark, Operation, benchmark
from cascade_state import FlowInstance, ScheduleTimer
from cascade_state.ids import new_timer_id, partition_of_key

Change: TypeAlias = Callable[[FlowInstance, int], FlowInstance]

_GROUP = "steps"
_FAR = timedelta(days=1)
_TIMER = (ScheduleTimer("s2", after=_FAR),)


def _stepped(flow: FlowInstance, index: int) -> FlowInstance:
    return flow.complete_step(STEP_IDS[index % 3], {"receipt": f"r-{index}"})


def _waiting(flow: FlowInstance, index: int) -> FlowInstance:
    """A step is done, another waits for an event, and what waited before goes on."""
    running = flow.resume("s2") if flow.waits else flow
    return _stepped(running, index % 2).suspend_for_event("s2", f"parcel-{flow.flow_instance_id}-{index}")


# A new flow


@benchmark(_GROUP, "advance: first (two states)")
async def first(bench: Bench, tasks: int) -> Operation:
    """Stores a new flow."""

    async def operation(lane: int, index: int) -> None:
        await bench.store.advance(bench.new_flow(), put_states=STATES)

    return operation


@first.against(BARE)
async def _bare_first(bench: Bench, tasks: int) -> Operation:
    sends = [await _advances(bench, [bench.new_flow() for _ in range(bench.operations)]) for _ in range(tasks)]
    return bench.bare.sending(sends)


@first.against(ORM, share=0.25)
async def _orm_first(bench: Bench, tasks: int) -> Operation:
    async def operation(lane: int, index: int) -> None:
        async with bench.orm.session.begin() as session:
            await orm_insert(session, bench.new_flow())

    return operation


async def _advances(bench: Bench, flows: list[FlowInstance], **extras: Any) -> list[tuple[str, list[Any]]]:
    """Returns what the store would send to advance these flows, as they are."""
    sends = []
    for flow in flows:
        sends += await bench.bare.sends(partial(_advance, flow=flow, **extras))
    return sends


def _advance(store: Any, flow: FlowInstance, **extras: Any) -> Awaitable[Any]:
    advancing: Awaitable[Any] = store.advance(flow, put_states=STATES, **extras)
    return advancing


# A stored flow


def _register(name: str, change: Change, **extras: Any) -> Benchmark:
    """Registers a kind of step, done again and again on one flow per lane."""

    async def ours(bench: Bench, tasks: int) -> Operation:
        flows = await bench.stored_flows(tasks)

        async def operation(lane: int, index: int) -> None:
            flows[lane] = await bench.store.advance(change(flows[lane], index), put_states=STATES, **extras)

        return operation

    async def orm(bench: Bench, tasks: int) -> Operation:
        flows = await bench.stored_flows(tasks)

        async def operation(lane: int, index: int) -> None:
            changed = change(flows[lane], index)
            await _orm_advance(bench, changed, STEP_IDS[index % 2], schedules=bool(extras))

        return operation

    made = benchmark(_GROUP, name)(ours)
    made.against(ORM, share=0.25)(orm)
    return made


def _against_bare(made: Benchmark, change: Change, **extras: Any) -> None:
    @made.against(BARE)
    async def bare(bench: Bench, tasks: int) -> Operation:
        sends = []
        for flow in await bench.stored_flows(tasks):
            chain, current = [], flow
            for index in range(bench.operations):
                current = change(current, index)
                chain.append(current)
                current = current.as_stored(datetime.now(UTC))
            sends.append(await _advances(bench, chain, **extras))
        return bench.bare.sending(sends)


step = _register("advance: step (two states)", _stepped)
_against_bare(step, _stepped)
step_with_timer = _register("advance: step (two states, a timer)", _stepped, schedule=_TIMER)
_against_bare(step_with_timer, _stepped, schedule=_TIMER)
# A transaction of two statements, so there is no single statement to hold against it.
step_with_wait = _register("advance: step (two states, a timer, a wait)", _waiting, schedule=_TIMER)


@benchmark(_GROUP, "advance: last (two states)")
async def last(bench: Bench, tasks: int) -> Operation:
    """Stores the end of a flow."""
    flows = await bench.stored_flows(tasks * bench.operations)

    async def operation(lane: int, index: int) -> None:
        flow = flows[lane * bench.operations + index]
        await bench.store.advance(_stepped(flow, 0).complete(), put_states=STATES)

    return operation


@last.against(BARE)
async def _bare_last(bench: Bench, tasks: int) -> Operation:
    flows = await bench.stored_flows(tasks * bench.operations)
    sends = await _advances(bench, [_stepped(flow, 0).complete() for flow in flows])
    return bench.bare.sending([sends[lane::tasks] for lane in range(tasks)])


@last.against(ORM, share=0.25)
async def _orm_last(bench: Bench, tasks: int) -> Operation:
    flows = await bench.stored_flows(tasks * bench.operations)

    async def operation(lane: int, index: int) -> None:
        await _orm_advance(bench, _stepped(flows[lane * bench.operations + index], 0).complete(), "s0")

    return operation


# The same as units of work of mapped objects


async def _orm_advance(bench: Bench, flow: FlowInstance, step_id: str, *, schedules: bool = False) -> None:
    now = datetime.now(UTC)
    partition_id, flow_instance_id = identity(flow.flow_instance_id)
    async with bench.orm.session.begin() as session:
        row = await session.get_one(FlowRow, (partition_id, flow_instance_id))
        row.status, row.updated_at = flow.status.value, now
        row.waits = dict(flow.waits) or None
        row.event_count += 1
        if flow.is_terminal:
            row.completed_at = now
        result = await session.get(ResultRow, (partition_id, flow_instance_id, step_id))
        if result is None:
            result = ResultRow(partition_id=partition_id, flow_instance_id=flow_instance_id, step_id=step_id, attempt=0)
            session.add(result)
        result.status, result.outputs, result.completed_at = "COMPLETED", {"receipt": "r"}, now
        result.attempt += 1
        session.add(_orm_event(row, "step.completed", now))
        for state_step, state in STATES.items():
            await merge_state(session, flow, state_step, state)
        if schedules:
            session.add(_orm_timer(flow, now))
        for wait_step, key in flow.waits.items():
            session.add(_orm_wait(flow, wait_step, key, now))


async def orm_insert(session: AsyncSession, flow: FlowInstance) -> None:
    """Adds a new flow with its first event and component states."""
    now = datetime.now(UTC)
    partition_id, flow_instance_id = identity(flow.flow_instance_id)
    row = FlowRow(
        partition_id=partition_id,
        flow_instance_id=flow_instance_id,
        root_id=flow.root_id,
        flow_id=flow.flow_id,
        flow_version=flow.flow_version,
        status="RUNNING",
        trigger_data=DOCUMENT,
        search_attributes={},
        event_count=1,
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    await session.flush()  # the rows below refer to it
    session.add(_orm_event(row, "flow_instance.created", now))
    for step_id, state in STATES.items():
        session.add(
            StateRow(
                partition_id=partition_id,
                flow_instance_id=flow_instance_id,
                step_id=step_id,
                state=state,
                version=1,
                updated_at=now,
            )
        )


def _orm_event(row: FlowRow, event_type: str, now: datetime) -> EventRow:
    return EventRow(
        partition_id=row.partition_id,
        flow_instance_id=row.flow_instance_id,
        sequence=row.event_count,
        event_type=event_type,
        payload={},
        recorded_at=now,
    )


def _orm_timer(flow: FlowInstance, now: datetime) -> TimerRow:
    partition_id, flow_instance_id = identity(flow.flow_instance_id)
    return TimerRow(
        partition_id=partition_id,
        timer_id=new_timer_id(flow_instance_id),
        flow_instance_id=flow_instance_id,
        step_id="s2",
        due_at=now + _FAR,
        status="PENDING",
        attempts=0,
        max_attempts=20,
        payload={},
    )


def _orm_wait(flow: FlowInstance, step_id: str, key: str, now: datetime) -> WaitRow:
    partition_id, flow_instance_id = identity(flow.flow_instance_id)
    return WaitRow(
        partition_id=partition_of_key(key, 256),
        correlation_key=key,
        flow_instance_id=flow_instance_id,
        step_id=step_id,
        flow_partition_id=partition_id,
        status="WAITING",
        created_at=now,
    )
