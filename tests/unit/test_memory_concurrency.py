"""Many tasks on one memory store: nothing lost, nothing twice, nobody stuck, no lock left."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from cascade_state import FlowDefinition, FlowInstance, StepDefinition, Store, open_store
from cascade_state.errors import Conflict, TransactionAborted, VersionConflict
from cascade_state.memory.store import MemoryStore

LEASE = timedelta(seconds=30)
DEFINITION = FlowDefinition(flow_id="order", steps=(StepDefinition(step_id="a", component_type="x"),))
SEEDS = pytest.mark.parametrize("seed", range(5))


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with MemoryStore("memory://", open_store("memory://").options) as store:
        yield store
        assert not store._data.locks.held
        assert not store._data.locks._waiting
        assert not store._data.snapshots


async def flows(store: Store, count: int) -> list[FlowInstance]:
    definition = await store.flow_definitions.deploy(DEFINITION)
    return [await store.advance(FlowInstance.create(definition).start()) for _ in range(count)]


async def together(*work: Any) -> None:
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for item in work:
            group.create_task(item)


@SEEDS
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
async def test_money_is_neither_made_nor_lost(store: MemoryStore, seed: int, isolation: Any) -> None:
    chance = random.Random(seed)
    accounts = [flow.flow_instance_id for flow in await flows(store, 4)]
    for account in accounts:
        await store.component_states.put(account, "balance", 100)

    async def transfer() -> bool:
        source, target = chance.sample(accounts, 2)  # in any order: circles are wanted
        async with store.begin(isolation=isolation) as uow:
            for account, amount in ((source, -1), (target, 1)):
                state = await uow.component_states.get(account, "balance")
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                await uow.component_states.put(account, "balance", state.state + amount, expected_version=state.version)
            if chance.random() < 0.1:
                await uow.rollback()
        return True

    outcomes: Counter[str] = Counter()

    async def clerk() -> None:
        for _ in range(40):
            try:
                await transfer()
                outcomes["done"] += 1
            except (VersionConflict, TransactionAborted) as error:
                outcomes[type(error).__name__] += 1
            await asyncio.sleep(0)

    await together(*(clerk() for _ in range(8)))

    balances = [(await store.component_states.get(account, "balance")).state for account in accounts]
    assert sum(balances) == 400
    assert outcomes["done"] > 0
    assert outcomes.total() == 320


@SEEDS
async def test_each_timer_fires_once_however_its_holders_end(store: MemoryStore, seed: int) -> None:
    chance = random.Random(seed)
    (flow,) = await flows(store, 1)
    for number in range(60):
        await store.timers.schedule(flow.flow_instance_id, f"{number}", after=timedelta(0))
    fired: Counter[str] = Counter()

    async def worker(name: str) -> None:
        while await store.timers.next_due_at() is not None:
            committed = []
            try:
                async with store.begin() as uow:
                    timers = await uow.timers.claim_due(name, limit=5, lease_duration=LEASE)
                    await asyncio.sleep(0)
                    for timer in timers:
                        if chance.random() < 0.5:
                            await uow.timers.complete([timer])
                            committed.append(timer.step_id)
                        else:
                            await uow.timers.release([timer])
                    if chance.random() < 0.3:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                committed = []
            fired.update(committed)
            await asyncio.sleep(0)

    await together(*(worker(f"w{number}") for number in range(6)))
    assert fired == Counter({f"{number}": 1 for number in range(60)})


@SEEDS
async def test_each_event_is_delivered_once_in_any_interleaving(store: MemoryStore, seed: int) -> None:
    chance = random.Random(seed)
    waiting = await flows(store, 40)

    async def in_some_transaction(call: Any) -> None:
        """Runs `call` by itself or in units of work, some of which are rolled back first."""
        for _ in range(chance.randrange(3)):
            async with store.begin() as uow:
                await call(uow)
                await asyncio.sleep(0)
                await uow.rollback()
        if chance.random() < 0.5:
            await call(store)
        else:
            async with store.begin() as uow:
                await call(uow)
                await asyncio.sleep(0)

    def wait(number: int) -> Any:
        step = waiting[number].suspend_for_event("a", f"key-{number % 4}")

        async def call(on: Any) -> None:
            await on.advance(step)

        return in_some_transaction(call)

    def publish(number: int) -> Any:
        async def call(on: Any) -> None:
            await on.correlations.publish(f"key-{number % 4}", number, event_id=f"e{number}", mode="fifo")

        return in_some_transaction(call)

    work = [make(number) for number in range(40) for make in (wait, publish)]
    chance.shuffle(work)
    await together(*work)

    deliveries = await store.correlations.claim_delivered("w", lease_duration=LEASE)
    assert Counter(delivery.payload for delivery in deliveries) == Counter(range(40))
    assert len({delivery.flow_instance_id for delivery in deliveries}) == 40
    assert all(delivery.correlation_key == f"key-{delivery.payload % 4}" for delivery in deliveries)


@SEEDS
async def test_tasks_that_are_cancelled_anywhere_leave_no_trace(store: MemoryStore, seed: int) -> None:
    chance = random.Random(seed)
    stored = await flows(store, 3)

    async def work() -> None:
        while True:
            try:
                async with store.begin() as uow, uow.savepoint():
                    flow = await uow.flow_instances.get(chance.choice(stored).flow_instance_id)
                    await uow.advance(flow.complete_step("a"), put_states={"a": 1})
                    await asyncio.sleep(0)
                    await uow.component_states.put(chance.choice(stored).flow_instance_id, "b", 1)
            except (Conflict, TransactionAborted):
                await asyncio.sleep(0)

    async with asyncio.timeout(60):
        for _ in range(60):
            tasks = [asyncio.ensure_future(work()) for _ in range(4)]
            for _ in range(chance.randrange(40)):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results), results
            assert not store._data.locks.held
    for flow in stored:
        found = await store.flow_instances.get(flow.flow_instance_id)
        assert found.step_results.get("a") is None or found.step_results["a"].attempt == found.version - 1
        history = await store.flow_instances.history(flow.flow_instance_id, limit=10_000)
        assert [event.sequence for event in history] == list(range(1, len(history) + 1))
        assert len(history) == found.version + 1
