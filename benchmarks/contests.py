"""The contests: what is measured, for each contender."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select

from benchmarks.contenders import Bare, FlowRow, Orm, ResultRow, StateRow, TimerRow, identity
from benchmarks.measuring import Contest, Lane
from cascade_state import FlowDefinition, FlowInstance, StepDefinition, Store
from cascade_state.model import documents
from cascade_state.model.advance import Limits, plan_advance
from cascade_state.postgres.advance_values import ADD, ADVANCE
from cascade_state.postgres.component_states import PUT
from cascade_state.postgres.direct import Statement
from cascade_state.postgres.flow_instances import FIND
from cascade_state.postgres.statements import timers as timer_statements

__all__ = ["Contests"]

_LIMITS = Limits()
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

    _states = {"s0": _DOCUMENT, "s1": {"attempts": 1}}

    async def _send(self, lane: int, sends: Sequence[tuple[str, list[Any]]]) -> int:
        connection = self._bare.connections[lane]
        for text, arguments in sends:
            records = await connection.fetch(text, *arguments)
            assert records
        return len(sends)

    def _sending(self, sends: Sequence[Sequence[tuple[str, list[Any]]]]) -> Lane:
        return lambda lane: self._send(lane, sends[lane])

    def _ready(self, prepared: tuple[Statement, Any]) -> tuple[str, list[Any]]:
        return self._bare.ready(*prepared)

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
        send = [self._ready(FIND.prepare((flow.flow_instance_id,), self._bare.executor)) for flow in flows]
        return self._sending([[one] * self._operations for one in send])

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
        text = documents.dump(_DOCUMENT, "state")
        send = [
            self._ready(PUT.prepare(((flow.flow_instance_id, "s0", text, None, None),), self._bare.executor))
            for flow in flows
        ]
        return self._sending([[one] * self._operations for one in send])

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
            [
                [
                    self._ready(ADD.prepare((self._plan(self._new()),), self._bare.executor))
                    for _ in range(self._operations)
                ]
                for _ in range(tasks)
            ]
        )

    async def _orm_first(self, tasks: int) -> Lane:
        async def lane(number: int) -> int:
            for _ in range(self._operations // 4):
                async with self._orm.session.begin() as session:
                    self._orm_insert(session, self._new())
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
                plan = self._plan(self._stepped(current, step % 3))
                chain.append(self._ready(ADVANCE.prepare((plan,), self._bare.executor)))
                current = plan.stored(datetime.now(UTC))
            sends.append(chain)
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
        plans = [self._plan(self._stepped(flow, 0).complete()) for flow in flows]
        sends = [self._ready(ADVANCE.prepare((plan,), self._bare.executor)) for plan in plans]
        return self._sending([sends[number::tasks] for number in range(tasks)])

    async def _orm_last(self, tasks: int) -> Lane:
        flows = await self._flows(tasks * (self._operations // 4))

        async def lane(number: int) -> int:
            for flow in flows[number::tasks]:
                await self._orm_advance(flow, "s0", "COMPLETED")
            return self._operations // 4

        return lane

    def _plan(self, flow: FlowInstance) -> Any:
        return plan_advance(flow, limits=_LIMITS, put_states=self._states)

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

    def _orm_insert(self, session: Any, flow: FlowInstance) -> None:
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
        session.add_all([row, _orm_event(row, "flow_instance.created", now)])
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
        def batch() -> tuple[str, list[Any]]:
            plans = [plan_advance(self._new(), limits=_LIMITS) for _ in range(_BATCH)]
            return self._ready(ADD.prepare(plans, self._bare.executor))

        sends = [[batch() for _ in range(self._rounds)] for _ in range(tasks)]

        async def lane(number: int) -> int:
            return await self._send(number, sends[number]) * _BATCH

        return lane

    async def _orm_add_many(self, tasks: int) -> Lane:
        async def lane(number: int) -> int:
            async with self._orm.session.begin() as session:
                for _ in range(_BATCH):
                    self._orm_insert(session, self._new())
            return _BATCH

        return lane

    @property
    def _rounds(self) -> int:
        return max(1, self._operations // 50)

    # publish

    async def _store_publish(self, tasks: int) -> Lane:
        async def lane(number: int) -> int:
            for _ in range(self._operations):
                await self._store.correlations.publish(_fresh_key(), {"status": "delivered"}, mode="broadcast")
            return self._operations

        return lane

    async def _bare_publish(self, tasks: int) -> Lane:
        from benchmarks.publishing import publication

        sends = [[publication(self._bare, _fresh_key()) for _ in range(self._operations)] for _ in range(tasks)]

        async def lane(number: int) -> int:
            connection = self._bare.connections[number]
            for (store_text, store_arguments), (match_text, match_arguments) in sends[number]:
                await connection.fetch(store_text, *store_arguments)
                await connection.fetch(match_text, *match_arguments)
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
        claim = timer_statements.CLAIM_DUE
        values = {"limit": _BATCH, "lease_duration": _LEASE, "now": None}

        async def lane(number: int) -> int:
            connection, executor = self._bare.connections[number], self._bare.executor
            text, arguments = self._bare.ready(claim, {**values, "holder": f"w{number}"})
            total = 0
            for _ in range(self._rounds):
                rows = [row for row in await connection.fetch(text, *arguments) if row["timer_id"] is not None]
                held = timer_statements.held_values(
                    executor, [(row["timer_id"], row["lease_token"], row["lease_holder"]) for row in rows]
                )
                done, complete_arguments = self._bare.ready(timer_statements.COMPLETE, held)
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
