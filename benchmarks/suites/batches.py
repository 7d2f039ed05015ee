"""Work in batches: many new flows, and due timers claimed and completed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select

from benchmarks.bench import Bench
from benchmarks.contenders import ORM, TimerRow
from benchmarks.registry import BARE, TASKS, Benchmark, Operation, benchmark
from benchmarks.suites.steps import orm_insert
from cascade_state import FlowInstance
from cascade_state.ids import partition_of
from cascade_state.postgres.statements.parameters import columns
from cascade_state.postgres.statements.timers import COMPLETE_ALL, HELD_COLUMNS

_GROUP = "batches"
_BATCH = 100
_LEASE = timedelta(minutes=5)
_SHARE = 0.04  # an operation is a hundred items; sixty-four tasks of them would be more than a round is worth


# Many new flows


@benchmark(_GROUP, "add_many (100)", tasks=TASKS[:2], share=_SHARE)
async def add_many(bench: Bench, tasks: int) -> Operation:
    """Stores a hundred new flows."""

    async def operation(lane: int, index: int) -> int:
        results = await bench.store.flow_instances.add_many([bench.new_flow() for _ in range(_BATCH)])
        return len(results)

    return operation


@add_many.against(BARE)
async def _bare_add_many(bench: Bench, tasks: int) -> Operation:
    sends = [
        [
            one
            for _ in range(bench.operations)
            for one in await bench.bare.sends(_add_call([bench.new_flow() for _ in range(_BATCH)]))
        ]
        for _ in range(tasks)
    ]
    return bench.bare.sending(sends, items=_BATCH)


@add_many.against(ORM, share=0.25)
async def _orm_add_many(bench: Bench, tasks: int) -> Operation:
    async def operation(lane: int, index: int) -> int:
        async with bench.orm.session.begin() as session:
            for _ in range(_BATCH):
                await orm_insert(session, bench.new_flow())
        return _BATCH

    return operation


def _add_call(flows: list[FlowInstance]) -> Callable[[Any], Awaitable[Any]]:
    return lambda store: store.flow_instances.add_many(flows)


# Due timers


async def due_timers(bench: Bench, count: int) -> None:
    """Makes timers that are due, on flows that wait for nothing else."""
    due_at = datetime.now(UTC) - timedelta(minutes=1)
    for start in range(0, count, 1000):
        flows = [
            FlowInstance.create(bench.definition).start().suspend_for_timer("s0", due_at=due_at)
            for _ in range(min(1000, count - start))
        ]
        await bench.add(flows)


def _register_claims(batch: int, share: float) -> Benchmark:
    """Registers the claim and completion of so many due timers at once, and the same SQL on bare asyncpg."""

    @benchmark(_GROUP, f"claim and complete ({batch})", tasks=TASKS[:2], share=share)
    async def claim(bench: Bench, tasks: int) -> Operation:
        await due_timers(bench, tasks * bench.operations * batch)

        async def operation(lane: int, index: int) -> int:
            timers = await bench.store.timers.claim_due(f"w{lane}", limit=batch, lease_duration=_LEASE)
            await bench.store.timers.complete(timers)
            return len(timers)

        return operation

    @claim.against(BARE)
    async def bare_claim(bench: Bench, tasks: int) -> Operation:
        await due_timers(bench, tasks * bench.operations * batch)
        claims = [await bench.bare.sends(_claim_call(f"w{lane}", batch)) for lane in range(tasks)]

        async def operation(lane: int, index: int) -> int:
            connection = bench.bare.connections[lane]
            ((text, arguments),) = claims[lane]
            records = await connection.fetch(text, *arguments)
            rows = [(partition_of(row["timer_id"], 256), row["timer_id"], row["lease_token"]) for row in records]
            held = {**columns("held", tuple(HELD_COLUMNS), rows), "held_count": len(rows)}
            done, complete_arguments = bench.bare.ready(COMPLETE_ALL, held)
            await connection.fetch(done, *complete_arguments)
            return len(rows)

        return operation

    return claim


_register_claims(1, 1.0)
_register_claims(10, 0.25)
claim = _register_claims(_BATCH, _SHARE)
_register_claims(500, 0.02)


@claim.against(ORM, share=0.5)
async def _orm_claim(bench: Bench, tasks: int) -> Operation:
    await due_timers(bench, tasks * bench.operations * _BATCH)

    async def operation(lane: int, index: int) -> int:
        now = datetime.now(UTC)
        timer = TimerRow.__table__.c
        async with bench.orm.session.begin() as session:
            due = select(TimerRow).where(timer.due_at <= now, timer.status == "PENDING")
            due = due.order_by(timer.due_at, timer.timer_id).limit(_BATCH).with_for_update(skip_locked=True)
            rows = (await session.scalars(due)).all()
            for row in rows:
                row.status, row.lease_holder, row.lease_expires_at = "CLAIMED", f"w{lane}", now + _LEASE
                row.lease_token += 1
        async with bench.orm.session.begin() as session:
            for row in rows:
                await session.delete(row)
        return len(rows)

    return operation


def _claim_call(holder: str, batch: int) -> Callable[[Any], Awaitable[Any]]:
    return lambda store: store.timers.claim_due(holder, limit=batch, lease_duration=_LEASE)
