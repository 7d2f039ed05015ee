"""`FaultPlan`: chosen calls fail, in the way that was chosen, on both back ends; everything else works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from cascade_state import (
    FlowInstance,
    FlowStatus,
    InvalidArgument,
    LockNotAcquired,
    Store,
    StoreNotOpen,
    StoreUnavailable,
    TransactionAborted,
    UnitOfWork,
    UsageError,
    VersionConflict,
    open_store,
)
from cascade_state.testing import Fault, FaultKind, FaultPlan, FiredFault, factories
from cascade_state.testing.contracts.transaction_locks import TransactionLocksContract
from cascade_state.testing.contracts.transactions import TransactionsContract

KINDS: tuple[FaultKind, ...] = ("before_commit", "after_commit", "drop_connection")
_PATIENCE = 30


@pytest.fixture
async def flow(store: Store) -> FlowInstance:
    return await factories.add_flow(store)


async def _version(store: Store, flow: FlowInstance) -> int:
    return (await store.flow_instances.get(flow.flow_instance_id)).version


class TestCallsOfAStore:
    async def test_before_the_commit_nothing_is_stored(self, store: Store, flow: FlowInstance) -> None:
        faulty = FaultPlan(store, Fault("advance", "before_commit", at=2))
        flow = await faulty.advance(flow.complete_step("a"))
        with pytest.raises(StoreUnavailable, match="injected fault at advance"):
            await faulty.advance(flow.complete_step("b"))
        assert await _version(store, flow) == flow.version
        assert (await faulty.advance(flow.complete_step("b"))).version == flow.version + 1
        assert faulty.fired == (FiredFault("advance", 2, "before_commit"),)
        assert faulty.calls == ("advance",) * 3

    async def test_after_the_commit_all_is_stored(self, store: Store, flow: FlowInstance) -> None:
        faulty = FaultPlan(store, Fault("advance", "after_commit"))
        with pytest.raises(StoreUnavailable):
            await faulty.advance(flow.complete_step("a"), put_states={"a": 1})
        assert (await store.component_states.get(flow.flow_instance_id, "a")).state == 1
        with pytest.raises(VersionConflict):  # who sends it again finds out
            await faulty.advance(flow.complete_step("a"))

    async def test_a_dropped_connection_stores_nothing_and_is_replaced(self, store: Store, flow: FlowInstance) -> None:
        faulty = FaultPlan(store, Fault("*", "drop_connection", times=20))  # more than the pool has
        for _ in range(10):
            with pytest.raises(StoreUnavailable):
                await faulty.advance(flow.complete_step("a"))
            with pytest.raises(StoreUnavailable):
                await faulty.flow_instances.get(flow.flow_instance_id)
        assert await _version(store, flow) == flow.version
        async with AsyncExitStack() as stack:
            for _ in range(10):
                uow = await stack.enter_async_context(faulty.begin())
                await uow.flow_instances.get(flow.flow_instance_id)

    @pytest.mark.parametrize("kind", KINDS)
    async def test_every_kind_of_call_can_fail(self, store: Store, flow: FlowInstance, kind: FaultKind) -> None:
        faulty = FaultPlan(store, Fault("*", kind, times=None))
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "flow_instances.iterate": lambda: _listed(faulty.flow_instances.iterate()),
            "locks.hold": lambda: _entered(faulty.locks.hold("month")),
            "locks.try_acquire": lambda: faulty.locks.try_acquire("year"),
            "timers.next_due_at": faulty.timers.next_due_at,
            "now": faulty.now,
            "statistics": faulty.statistics,
            "check_schema": faulty.check_schema,
            "migrate": faulty.migrate,
        }
        for name, call in calls.items():
            with pytest.raises(StoreUnavailable):
                await call()
            assert faulty.calls[-1] == name
        assert not await store.locks.is_held("month")
        assert faulty.locks.key_of("month") == store.locks.key_of("month")
        assert faulty.calls == tuple(calls)

    async def test_without_a_fault_every_kind_of_call_works(self, store: Store, flow: FlowInstance) -> None:
        faulty = FaultPlan(store)
        assert await _listed(faulty.flow_instances.iterate()) == [flow]
        async with faulty.locks.hold("month") as lock:
            await lock.check()
            assert await faulty.locks.is_held("month")
        assert (await faulty.statistics()).instances_by_status[FlowStatus.RUNNING] == 1
        assert (faulty.url, faulty.capabilities) == (store.url, store.capabilities)
        async with faulty.listen() as hints:
            assert hints is not None
        assert faulty.fired == ()


class TestUnitsOfWork:
    @pytest.mark.parametrize("call", ["advance", "timers.next_due_at", "lock", "savepoint"])
    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_call_inside_can_fail(self, store: Store, flow: FlowInstance, call: str, kind: FaultKind) -> None:
        faulty = FaultPlan(store, Fault(call, kind))
        with pytest.raises(StoreUnavailable):
            async with faulty.begin() as uow:
                await _everything(uow, flow)
        assert [fault.call for fault in faulty.fired] == [call]
        assert await _version(store, flow) == flow.version
        assert await store.locks.list_held() == []

    async def test_who_catches_a_failure_before_or_after_a_call_may_go_on(
        self, store: Store, flow: FlowInstance
    ) -> None:
        for kind, stored in (("before_commit", 0), ("after_commit", 1)):
            kind_: Any = kind
            version = await _version(store, flow)
            faulty = FaultPlan(store, Fault("advance", kind_))
            async with faulty.begin() as uow:
                current = await uow.flow_instances.get(flow.flow_instance_id)
                with pytest.raises(StoreUnavailable):
                    await uow.advance(current.complete_step("a"))
            assert await _version(store, flow) == version + stored

    async def test_who_catches_a_dropped_connection_has_no_transaction_any_more(
        self, store: Store, flow: FlowInstance
    ) -> None:
        faulty = FaultPlan(store, Fault("timers.*", "drop_connection"))
        with pytest.raises(StoreUnavailable):
            async with faulty.begin() as uow:
                await uow.advance(flow.complete_step("a"))
                with pytest.raises(StoreUnavailable):
                    await uow.timers.next_due_at()
                for again in (uow.timers.next_due_at, lambda: uow.lock("month"), lambda: _entered(uow.savepoint())):
                    with pytest.raises(StoreUnavailable):
                        await again()
        assert await _version(store, flow) == flow.version

    async def test_a_connection_dropped_inside_a_savepoint(self, store: Store, flow: FlowInstance) -> None:
        faulty = FaultPlan(store, Fault("timers.next_due_at", "drop_connection"))
        with pytest.raises(StoreUnavailable):
            async with faulty.begin() as uow, uow.savepoint():
                await uow.timers.next_due_at()
        faulty = FaultPlan(store, Fault("timers.next_due_at", "drop_connection"))
        with pytest.raises(StoreUnavailable):
            async with faulty.begin() as uow:
                async with uow.savepoint():
                    with pytest.raises(StoreUnavailable):
                        await uow.timers.next_due_at()

    @pytest.mark.parametrize(("kind", "stored"), [("before_commit", 0), ("after_commit", 1), ("drop_connection", 0)])
    async def test_the_commit_can_fail(self, store: Store, flow: FlowInstance, kind: FaultKind, stored: int) -> None:
        faulty = FaultPlan(store, Fault("commit", kind))
        with pytest.raises(StoreUnavailable):
            async with faulty.begin() as uow:
                await uow.lock("month")
                await uow.advance(flow.complete_step("a"))
        assert await _version(store, flow) == flow.version + stored
        assert await store.locks.list_held() == []

    @pytest.mark.parametrize("kind", KINDS)
    async def test_the_beginning_can_fail(self, store: Store, flow: FlowInstance, kind: FaultKind) -> None:
        faulty = FaultPlan(store, Fault("begin", kind, times=20))
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                async with faulty.begin():
                    pytest.fail("the block must not run")
        async with faulty.begin(read_only=True) as uow:
            assert await uow.flow_instances.get(flow.flow_instance_id) == flow
            with pytest.raises(UsageError):
                await uow.advance(flow)
            await uow.rollback()

    async def test_without_a_fault_everything_works(self, store: Store, flow: FlowInstance) -> None:
        faulty = FaultPlan(store)
        async with faulty.begin(isolation="REPEATABLE READ") as uow:
            await uow.limit_idle(timedelta(minutes=1))
            assert not uow.has_settled(flow)
            await _everything(uow, flow)
            with pytest.raises(KeyError):
                async with uow.savepoint():
                    await uow.lock("year")
                    raise KeyError
            async with faulty.begin() as other:
                await other.lock("year", timeout=timedelta(0))
                with pytest.raises(LockNotAcquired):
                    await other.lock("month", timeout=timedelta(0))
        assert await _version(store, flow) == flow.version + 1
        assert faulty.calls[:1] == ("begin",)
        assert faulty.calls[-1:] == ("commit",)

    async def test_the_store_runs_again_what_failed(self, store: Store, flow: FlowInstance) -> None:
        faulty = FaultPlan(store, Fault("commit", "before_commit", times=2), Fault("begin", "drop_connection", at=3))
        attempts = 0

        async def step(uow: UnitOfWork) -> None:
            nonlocal attempts
            attempts += 1
            current = await uow.flow_instances.get(flow.flow_instance_id)
            await uow.advance(current.complete_step("a"))

        await faulty.run(step, retries=3)
        assert attempts == 3
        assert len(faulty.fired) == 3
        assert await _version(store, flow) == flow.version + 1

    @pytest.mark.postgres
    async def test_an_enlisted_one_fails_too(self, database_url: str, postgres_store: Store) -> None:
        flow = await factories.add_flow(postgres_store)
        faulty = FaultPlan(postgres_store, Fault("advance", "before_commit"), Fault("commit", "drop_connection", at=2))
        engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://", 1))
        async with engine.connect() as connection:
            with pytest.raises(StoreUnavailable):
                async with faulty.enlist(connection) as uow:
                    await uow.advance(flow.complete_step("a"))
            async with faulty.enlist(connection) as uow:
                await uow.connection.exec_driver_sql("SELECT 1")
                async with uow.session() as session:
                    assert session is not None
                stored = await uow.advance(flow.complete_step("a"))
            await connection.commit()
            async with faulty.enlist(connection) as uow:
                await uow.advance(stored.complete_step("b"))
            with pytest.raises(Exception, match="closed"):
                await connection.commit()
            await connection.invalidate()
        await engine.dispose()
        assert await _version(postgres_store, flow) == flow.version + 1


class TestChoosing:
    async def test_a_delay_ends_by_itself_or_when_it_is_told_to(self, store: Store, flow: FlowInstance) -> None:
        is_over = asyncio.Event()
        faulty = FaultPlan(
            store,
            Fault("advance", "delay", wait=is_over.wait),
            Fault("advance", "delay", at=2, duration=timedelta(milliseconds=1)),
        )
        waiting = asyncio.create_task(faulty.advance(flow.complete_step("a")))
        while not faulty.fired:  # noqa: ASYNC110 - one turn of the loop
            await asyncio.sleep(0)
        assert await _version(store, flow) == flow.version
        is_over.set()
        flow = await asyncio.wait_for(waiting, _PATIENCE)
        assert (await faulty.advance(flow.complete_step("b"))).version == flow.version + 1
        assert [fault.kind for fault in faulty.fired] == ["delay", "delay"]

    async def test_the_caller_chooses_the_error(self, memory_store: Store) -> None:
        class Crashed(BaseException):
            pass

        faulty = FaultPlan(
            memory_store,
            Fault("now", "before_commit", error=Crashed),
            Fault("now", "drop_connection", at=2, error=lambda: TransactionAborted(reason="chosen")),
        )
        with pytest.raises(Crashed):
            await faulty.now()
        with pytest.raises(TransactionAborted, match="chosen") as raised:
            await faulty.now()
        assert isinstance(raised.value.__cause__, StoreUnavailable)

    async def test_calls_are_counted_by_each_fault_for_itself(self, memory_store: Store) -> None:
        faulty = FaultPlan(
            memory_store,
            Fault("timers.*", "after_commit", at=2, times=2),
            Fault("*.next_due_at", "before_commit", at=2),  # the other one is before it
            Fault("*", "delay", at=6, times=None),
        )
        outcomes = []
        for call in [faulty.timers.next_due_at] * 3 + [faulty.timers.list_dead] * 2 + [faulty.now] * 2:
            try:
                await call()
                outcomes.append("works")
            except StoreUnavailable:
                outcomes.append("fails")
        assert outcomes == ["works", "fails", "fails", "works", "works", "works", "works"]
        assert [(fault.call, fault.number, fault.kind) for fault in faulty.fired] == [
            ("timers.next_due_at", 2, "after_commit"),
            ("timers.next_due_at", 3, "after_commit"),
            ("now", 1, "delay"),
            ("now", 2, "delay"),
        ]

    async def test_a_seed_gives_the_same_faults_again_in_whatever_order(self, memory_store: Store) -> None:
        async def fired(seed: int, calls: list[str]) -> set[FiredFault]:
            faulty = FaultPlan(memory_store, seed=seed, rate=0.3)
            for call in calls:
                try:
                    await (faulty.now() if call == "now" else faulty.timers.next_due_at())
                except StoreUnavailable:
                    pass
            assert len(set(faulty.fired)) == len(faulty.fired)
            return set(faulty.fired)

        calls = ["now", "timers"] * 50
        first = await fired(1, calls)
        assert await fired(1, calls) == first
        assert await fired(1, sorted(calls)) == first
        assert await fired(2, calls) != first
        assert 10 < len(first) < 60
        assert {fault.kind for fault in first} == set(KINDS)

    async def test_a_rate_chooses_all_or_none(self, memory_store: Store) -> None:
        for rate, expected in ((0.0, 0), (1.0, 5)):
            faulty = FaultPlan(memory_store, seed=7, rate=rate, kinds=["delay"])
            for _ in range(5):
                await faulty.now()
            assert len(faulty.fired) == expected

    @pytest.mark.parametrize(
        ("make", "argument"),
        [
            (lambda store: Fault("", "delay"), "call"),
            (lambda store: Fault("advance", _any("explode")), "kind"),
            (lambda store: Fault("advance", "delay", at=0), "at"),
            (lambda store: Fault("advance", "delay", times=0), "times"),
            (lambda store: Fault("advance", "delay", duration=timedelta(-1)), "duration"),
            (lambda store: FaultPlan(store, Fault("advanse", "delay")), "faults"),
            (lambda store: FaultPlan(store, Fault("*", "delay"), Fault("timer.*", "delay")), "faults"),
            (lambda store: FaultPlan(store, Fault("flow_instances.write", "delay")), "faults"),  # is called advance
            (lambda store: FaultPlan(store, _any("advance")), "faults"),
            (lambda store: FaultPlan(store, seed=1, rate=2), "rate"),
            (lambda store: FaultPlan(store, seed=1, kinds=[]), "kinds"),
            (lambda store: FaultPlan(store, seed=1, kinds=[_any("explode")]), "kinds"),
        ],
    )
    async def test_what_cannot_be_is_refused(
        self, memory_store: Store, make: Callable[[Any], object], argument: str
    ) -> None:
        with pytest.raises(InvalidArgument) as refused:
            make(memory_store)
        assert refused.value.argument == argument

    async def test_what_a_store_does_not_have_a_plan_does_not_have(self, memory_store: Store) -> None:
        faulty: Any = FaultPlan(memory_store)
        with pytest.raises(AttributeError):
            _ = faulty.nonsense
        async with faulty.begin() as uow:
            with pytest.raises(AttributeError):
                _ = uow.nonsense


async def test_a_step_that_survives_every_fault_at_every_place(store: Store) -> None:
    """What the how-to shows: whatever fails and wherever, the step is stored once."""
    definition = await factories.deploy_flow_definition(store)
    outcomes = set()
    for kind in KINDS:
        at = 1
        is_befallen = True
        while is_befallen:
            faulty = FaultPlan(store, Fault("*", kind, at=at))
            flow = await store.advance(factories.running_flow(definition))

            async def charge(uow: UnitOfWork, flow: FlowInstance = flow) -> None:
                current = await uow.flow_instances.get(flow.flow_instance_id)
                if "charge" not in current.completed_steps:
                    await uow.advance(current.complete_step("charge"), put_states={"charge": 1})

            await faulty.run(charge)
            stored = await store.flow_instances.get(flow.flow_instance_id)
            outcomes.add((stored.version - flow.version, tuple(stored.completed_steps)))
            is_befallen = bool(faulty.fired)
            at += 1
        assert at == 6  # begin, get, advance, commit, and one more without a fault
    assert outcomes == {(1, ("charge",))}


async def test_it_opens_and_closes_the_store_under_it(store_url: str) -> None:
    async with FaultPlan(open_store(store_url)) as faulty:
        await faulty.migrate()
        assert await faulty.timers.next_due_at() is None
    with pytest.raises(StoreNotOpen):
        faulty.begin()
    with pytest.raises(StoreNotOpen):
        await faulty.store.timers.next_due_at()


async def test_an_open_store_is_not_entered_twice(memory_store: Store) -> None:
    with pytest.raises(UsageError):
        async with FaultPlan(memory_store):
            pytest.fail("it is entered already")


class PlanWithoutFaults:
    """A plan without faults is a store like any other."""

    @pytest.fixture
    async def store(self, clock: Any) -> AsyncIterator[Store]:
        async with FaultPlan(open_store("memory://plan-without-faults", clock=clock)) as store:
            yield store

    @pytest.fixture
    def open_store_again(self, clock: Any) -> Callable[..., Store]:
        def open_again(**options: Any) -> Store:
            return FaultPlan(open_store("memory://plan-without-faults", **{"clock": clock, **options}))

        return open_again


class TestTransactions(PlanWithoutFaults, TransactionsContract):
    pass


class TestTransactionLocks(PlanWithoutFaults, TransactionLocksContract):
    pass


def _any(value: Any) -> Any:
    return value


async def _listed(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def _entered(block: Any) -> None:
    async with block:
        pass


async def _everything(uow: UnitOfWork, flow: FlowInstance) -> None:
    await uow.lock("month")
    async with uow.savepoint():
        await uow.timers.next_due_at()
    await uow.advance(flow.complete_step("a"))
