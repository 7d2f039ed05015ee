"""The contests: what is measured, for each contender."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeAlias
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.contenders import Bare, EventRow, FlowRow, Orm, ResultRow, StateRow, TimerRow, identity
from benchmarks.measuring import Contest, Lane
from cascade_state import FlowDefinition, FlowInstance, StepDefinition, Store
from cascade_state.ids import partition_of
from cascade_state.postgres.statements.timers import COMPLETE_ALL

__all__ = ["Contests"]

Call: TypeAlias = Callable[[Any], Awaitable[Any]]  # a call on a store, or on what records it

_DOCUMENT = {
    "customer": "c-1042",
    "items": [{"sku": f"A-{number}", "count": number} for number in range(8)],
    "note": "x" * 120,
}
_LEASE = timedelta(minutes=5)
_BATCH = 100


class Contests:
    """All contests on one migrated database."""

    def __init__(self, store: Store, bare: Bare, orm: Orm, operations: int) -> None:
        self._store = store
        self._bare = bare
        self._orm = orm
        self._operations = operations  # of one lane in one round
        self._definition: FlowDefinition

    async def set_up(self) -> None:
        """Deploys the definition that all flows run."""
        definition = FlowDefinition(
            flow_id="bench",
            steps=tuple(StepDefinition(step_id=f"s{number}", component_type="x") for number in range(3)),
        )
        self._definition = await self._store.flow_definitions.deploy(definition)

    def all(self) -> Sequence[Contest]:
        """Returns the contests in the order of the table."""
        return (
            Contest("get", self._store_get, self._bare_get, self._orm_get),
            Contest("put", self._store_put, self._bare_put, self._orm_put),
            Contest("advance: first", self._store_first, self._bare_first, self._orm_first),
            Contest("advance: step", self._store_step, self._bare_step, self._orm_step),
            Contest("advance: last", self._store_last, self._bare_last, self._orm_last),
            Contest("add_many (100)", self._store_add_many, self._bare_add_many, self._orm_add_many),
            Contest("publish (nobody waits)", self._store_publish, self._bare_publish),
            Contest("claim and complete (100)", self._store_claim, self._bare_claim, self._orm_claim),
        )

    # Flows to work on

    def _new(self) -> FlowInstance:
        return FlowInstance.create(self._definition, trigger_data=_DOCUMENT).start()

    async def _flows(self, count: int) -> list[FlowInstance]:
        results = await self._store.flow_instances.add_many([self._new() for _ in range(count)])
        return [result.instance for result in results if result.instance is not None]

    def _stepped(self, flow: FlowInstance, number: int) -> FlowInstance:
        return flow.complete_step(f"s{number}", {"receipt": f"r-{number}"})

    _states: ClassVar = {"s0": _DOCUMENT, "s1": {"attempts": 1}}

    async def _send(self, lane: int, sends: Sequence[tuple[str, list[Any]]]) -> int:
        connection = self._bare.connections[lane]
        for text, arguments in sends:
            records = await connection.fetch(text, *arguments)
            assert records
        return len(sends)

    def _sending(self, sends: Sequence[Sequence[tuple[str, list[Any]]]]) -> Lane:
        return lambda lane: self._send(lane, sends[lane])

    # get

    async def _store_get(self, tasks: int) -> Lane:
        flows = await self._flows(tasks)

        async def lane(number: int) -> int:
            for _ in range(self._operations):
                await self._store.flow_instances.get(flows[number].flow_instance_id)
            return self._operations

        return lane

    async def _bare_get(self, tasks: int) -> Lane:
        flows = await self._flows(tasks)
        sends = [await self._bare.sends(_get_call(flow)) for flow in flows]
        return self._sending([one * self._operations for one in sends])

    async def _orm_get(self, tasks: int) -> Lane:
        flows = await self._flows(tasks)

        async def lane(number: int) -> int:
            key = identity(flows[number].flow_instance_id)
            for _ in range(self._operations // 4):
                async with self._orm.session() as session:
                    row = await session.get_one(FlowRow, key)
                    results = await session.scalars(
                        select(ResultRow).where(
                            ResultRow.__table__.c.partition_id == row.partition_id,
                            ResultRow.__table__.c.flow_instance_id == row.flow_instance_id,
                        )
                    )
                    results.all()
            return self._operations // 4

        return lane

    # put

    async def _store_put(self, tasks: int) -> Lane:
        flows = await self._flows(tasks)

        async def lane(number: int) -> int:
            for _ in range(self._operations):
                await self._store.component_states.put(flows[number].flow_instance_id, "s0", _DOCUMENT)
            return self._operations

        return lane

    async def _bare_put(self, tasks: int) -> Lane:
        flows = await self._flows(tasks)
        sends = [await self._bare.sends(_put_call(flow)) for flow in flows]
        return self._sending([one * self._operations for one in sends])

    async def _orm_put(self, tasks: int) -> Lane:
        flows = await self._flows(tasks)

        async def lane(number: int) -> int:
            for _ in range(self._operations // 4):
                async with self._orm.session.begin() as session:
                    await _merge_state(session, flows[number], "s0", _DOCUMENT)
            return self._operations // 4

        return lane

    # advance

    async def _store_first(self, tasks: int) -> Lane:
        async def lane(number: int) -> int:
            for _ in range(self._operations):
                await self._store.advance(self._new(), put_states=self._states)
            return self._operations

        return lane

    async def _bare_first(self, tasks: int) -> Lane:
        return self._sending(
            [await self._advances([self._new() for _ in range(self._operations)]) for _ in range(tasks)]
        )

    async def _advances(self, flows: Sequence[FlowInstance]) -> list[tuple[str, list[Any]]]:
        """Returns what the store would send to advance these flows, as they are."""
        sends = []
        for flow in flows:
            sends += await self._bare.sends(self._advance_call(flow))
        return sends

    def _advance_call(self, flow: FlowInstance) -> Call:
        return lambda store: store.advance(flow, put_states=self._states)

    async def _orm_first(self, tasks: int) -> Lane:
        async def lane(number: int) -> int:
            for _ in range(self._operations // 4):
                async with self._orm.session.begin() as session:
                    await self._orm_insert(session, self._new())
            return self._operations // 4

        return lane

    async def _store_step(self, tasks: int) -> Lane:
        return await self._store_steps(tasks, lambda flow, number: self._stepped(flow, number))

    async def _store_steps(self, tasks: int, change: Callable[[FlowInstance, int], FlowInstance]) -> Lane:
        flows = await self._flows(tasks)

        async def lane(number: int) -> int:
            flow = flows[number]
            for step in range(self._operations):
                flow = await self._store.advance(change(flow, step % 3), put_states=self._states)
            return self._operations

        return lane

    async def _bare_step(self, tasks: int) -> Lane:
        sends = []
        for flow in await self._flows(tasks):
            chain, current = [], flow
            for step in range(self._operations):
                current = self._stepped(current, step % 3)
                chain.append(current)
                current = current.as_stored(datetime.now(UTC))
            sends.append(await self._advances(chain))
        return self._sending(sends)

    async def _orm_step(self, tasks: int) -> Lane:
        flows = await self._flows(tasks)

        async def lane(number: int) -> int:
            for step in range(self._operations // 4):
                await self._orm_advance(flows[number], f"s{step % 3}", "RUNNING")
            return self._operations // 4

        return lane

    async def _store_last(self, tasks: int) -> Lane:
        flows = await self._flows(tasks * self._operations)

        async def lane(number: int) -> int:
            for flow in flows[number::tasks]:
                await self._store.advance(self._stepped(flow, 0).complete(), put_states=self._states)
            return self._operations

        return lane

    async def _bare_last(self, tasks: int) -> Lane:
        flows = await self._flows(tasks * self._operations)
        sends = await self._advances([self._stepped(flow, 0).complete() for flow in flows])
        return self._sending([sends[number::tasks] for number in range(tasks)])

    async def _orm_last(self, tasks: int) -> Lane:
        flows = await self._flows(tasks * (self._operations // 4))

        async def lane(number: int) -> int:
            for flow in flows[number::tasks]:
                await self._orm_advance(flow, "s0", "COMPLETED")
            return self._operations // 4

        return lane

    async def _orm_advance(self, flow: FlowInstance, step_id: str, status: str) -> None:
        """The same step as a unit of work of mapped objects."""
        now = datetime.now(UTC)
        partition_id, flow_instance_id = identity(flow.flow_instance_id)
        async with self._orm.session.begin() as session:
            row = await session.get_one(FlowRow, (partition_id, flow_instance_id))
            row.status, row.updated_at = status, now
            row.event_count += 1
            if status == "COMPLETED":
                row.completed_at = now
            result = await session.get(ResultRow, (partition_id, flow_instance_id, step_id))
            if result is None:
                result = ResultRow(
                    partition_id=partition_id, flow_instance_id=flow_instance_id, step_id=step_id, attempt=0
                )
                session.add(result)
            result.status, result.outputs, result.completed_at = "COMPLETED", {"receipt": "r"}, now
            result.attempt += 1
            session.add(_orm_event(row, "step.completed", now))
            for state_step, state in self._states.items():
                await _merge_state(session, flow, state_step, state)

    async def _orm_insert(self, session: Any, flow: FlowInstance) -> None:
        now = datetime.now(UTC)
        partition_id, flow_instance_id = identity(flow.flow_instance_id)
        row = FlowRow(
            partition_id=partition_id,
            flow_instance_id=flow_instance_id,
            root_id=flow.root_id,
            flow_id=flow.flow_id,
            flow_version=flow.flow_version,
            status="RUNNING",
            trigger_data=_DOCUMENT,
            search_attributes={},
            event_count=1,
            created_at=now,
            updated_at=now,
        )
        session.add(row)
        await session.flush()  # the rows below refer to it
        session.add(_orm_event(row, "flow_instance.created", now))
        for step_id, state in self._states.items():
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

    # add_many

    async def _store_add_many(self, tasks: int) -> Lane:
        async def lane(number: int) -> int:
            for _ in range(self._rounds):
                await self._store.flow_instances.add_many([self._new() for _ in range(_BATCH)])
            return self._rounds * _BATCH

        return lane

    async def _bare_add_many(self, tasks: int) -> Lane:
        sends: list[list[tuple[str, list[Any]]]] = [[] for _ in range(tasks)]
        for lane_sends in sends:
            for _ in range(self._rounds):
                lane_sends += await self._bare.sends(_add_call([self._new() for _ in range(_BATCH)]))

        async def lane(number: int) -> int:
            return await self._send(number, sends[number]) * _BATCH

        return lane

    async def _orm_add_many(self, tasks: int) -> Lane:
        async def lane(number: int) -> int:
            async with self._orm.session.begin() as session:
                for _ in range(_BATCH):
                    await self._orm_insert(session, self._new())
            return _BATCH

        return lane

    @property
    def _rounds(self) -> int:
        return max(1, self._operations // 50)

    # publish

    async def _store_publish(self, tasks: int) -> Lane:
        async def lane(number: int) -> int:
            for _ in range(self._operations):
                await _publish_call()(self._store)
            return self._operations

        return lane

    async def _bare_publish(self, tasks: int) -> Lane:
        sends = [
            [await self._bare.sends(_publish_call(), count=2) for _ in range(self._operations)] for _ in range(tasks)
        ]

        async def lane(number: int) -> int:
            connection = self._bare.connections[number]
            for statements in sends[number]:
                for text, arguments in statements:
                    await connection.fetch(text, *arguments)
            return self._operations

        return lane

    # claim and complete

    async def _due(self, count: int) -> None:
        """Makes timers that are due, on flows that wait for nothing else."""
        due_at = datetime.now(UTC) - timedelta(minutes=1)
        flows = [
            FlowInstance.create(self._definition).start().suspend_for_timer("s0", due_at=due_at) for _ in range(count)
        ]
        for start in range(0, count, 1000):
            await self._store.flow_instances.add_many(flows[start : start + 1000])

    async def _store_claim(self, tasks: int) -> Lane:
        await self._due(tasks * self._rounds * _BATCH)

        async def lane(number: int) -> int:
            total = 0
            for _ in range(self._rounds):
                timers = await self._store.timers.claim_due(f"w{number}", limit=_BATCH, lease_duration=_LEASE)
                await self._store.timers.complete(timers)
                total += len(timers)
            return total

        return lane

    async def _bare_claim(self, tasks: int) -> Lane:
        await self._due(tasks * self._rounds * _BATCH)
        claims = [await self._bare.sends(_claim_call(f"w{number}")) for number in range(tasks)]

        async def lane(number: int) -> int:
            connection = self._bare.connections[number]
            ((text, arguments),) = claims[number]
            total = 0
            for _ in range(self._rounds):
                rows = await connection.fetch(text, *arguments)
                held = {
                    "held_partition_id": [str(partition_of(row["timer_id"], 256)) for row in rows],
                    "held_timer_id": [str(row["timer_id"]) for row in rows],
                    "held_token": [str(row["lease_token"]) for row in rows],
                    "held_count": len(rows),
                }
                done, complete_arguments = self._bare.ready(COMPLETE_ALL, held)
                await connection.fetch(done, *complete_arguments)
                total += len(rows)
            return total

        return lane

    async def _orm_claim(self, tasks: int) -> Lane:
        await self._due(tasks * _BATCH)

        async def lane(number: int) -> int:
            now = datetime.now(UTC)
            timer = TimerRow.__table__.c
            async with self._orm.session.begin() as session:
                due = select(TimerRow).where(timer.due_at <= now, timer.status == "PENDING")
                due = due.order_by(timer.due_at, timer.timer_id).limit(_BATCH).with_for_update(skip_locked=True)
                rows = (await session.scalars(due)).all()
                for row in rows:
                    row.status, row.lease_holder, row.lease_expires_at = "CLAIMED", f"w{number}", now + _LEASE
                    row.lease_token += 1
            async with self._orm.session.begin() as session:
                for row in rows:
                    await session.delete(row)
            return len(rows)

        return lane


def _get_call(flow: FlowInstance) -> Call:
    return lambda store: store.flow_instances.get(flow.flow_instance_id)


def _put_call(flow: FlowInstance) -> Call:
    return lambda store: store.component_states.put(flow.flow_instance_id, "s0", _DOCUMENT)


def _add_call(flows: list[FlowInstance]) -> Call:
    return lambda store: store.flow_instances.add_many(flows)


def _publish_call() -> Call:
    key = f"parcel-{uuid4()}"  # nobody waits for it, and a broadcast is not kept
    return lambda store: store.correlations.publish(key, {"status": "delivered"}, mode="broadcast")


def _claim_call(holder: str) -> Call:
    return lambda store: store.timers.claim_due(holder, limit=_BATCH, lease_duration=_LEASE)


def _orm_event(row: FlowRow, event_type: str, now: datetime) -> EventRow:
    return EventRow(
        partition_id=row.partition_id,
        flow_instance_id=row.flow_instance_id,
        sequence=row.event_count,
        event_type=event_type,
        payload={},
        recorded_at=now,
    )


async def _merge_state(session: AsyncSession, flow: FlowInstance, step_id: str, state: Any) -> None:
    partition_id, flow_instance_id = identity(flow.flow_instance_id)
    row = await session.get(StateRow, (partition_id, flow_instance_id, step_id))
    if row is None:
        row = StateRow(partition_id=partition_id, flow_instance_id=flow_instance_id, step_id=step_id, version=0)
        session.add(row)
    row.state, row.updated_at = state, datetime.now(UTC)
    row.version += 1
