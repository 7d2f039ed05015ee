"""Connections that break, tasks that are cancelled, pools that run dry: typed errors, nothing leaked, nothing lost.

What happens when the whole server goes is in `test_server_faults`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cascade_state import (
    CascadeStateError,
    Conflict,
    FlowInstance,
    Store,
    StoreUnavailable,
    TransactionAborted,
    UnitOfWork,
    open_store,
)
from cascade_state.testing import factories
from tests.postgres.fault_tools import (
    PATIENCE_SECONDS,
    LossyWire,
    Saboteur,
    count_until,
    nobody_connected,
    pools_are_whole,
)

pytestmark = pytest.mark.postgres

_LEASE = timedelta(seconds=30)
_POOL = 3


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store with few connections, so that one which is lost is missed."""
    async with open_store(
        database_url, pool_size=_POOL, pool_timeout_seconds=5.0, application_name="under test"
    ) as opened:
        yield opened


@pytest.fixture
async def saboteur(database_url: str) -> AsyncIterator[Saboteur]:
    connection = await asyncpg.connect(database_url)
    try:
        yield Saboteur(connection, "under test")
    finally:
        await connection.close()


async def _pid(uow: UnitOfWork) -> int:
    pid = (await uow.connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
    assert isinstance(pid, int)
    return pid


# A connection that ends


async def test_a_connection_that_ends_within_a_unit_of_work(store: Store, saboteur: Saboteur) -> None:
    flow = await factories.add_flow(store)
    with pytest.raises(StoreUnavailable) as caught:
        async with store.begin() as uow:
            await uow.advance(flow.complete_step("charge"))
            await saboteur.terminate(await _pid(uow))
            await uow.component_states.put(flow.flow_instance_id, "charge", 1)
    assert caught.value.__cause__ is not None
    assert await store.flow_instances.get(flow.flow_instance_id) == flow
    await pools_are_whole(store, _POOL)
    assert await saboteur.open_transactions() == []


async def test_a_connection_that_ends_before_the_commit(store: Store, saboteur: Saboteur) -> None:
    flow = await factories.add_flow(store)
    with pytest.raises(StoreUnavailable):
        async with store.begin() as uow:
            await uow.advance(flow.complete_step("charge"))
            await saboteur.terminate(await _pid(uow))
    assert await store.flow_instances.get(flow.flow_instance_id) == flow
    await pools_are_whole(store, _POOL)


async def test_a_connection_that_ends_before_the_rollback_hides_no_error(store: Store, saboteur: Saboteur) -> None:
    with pytest.raises(ZeroDivisionError):
        async with store.begin() as uow:
            await factories.add_flow(uow)
            await saboteur.terminate(await _pid(uow))
            raise ZeroDivisionError
    assert await store.flow_instances.count() == 0
    await pools_are_whole(store, _POOL)


async def test_a_connection_that_ends_within_a_savepoint(store: Store, saboteur: Saboteur) -> None:
    with pytest.raises(StoreUnavailable):
        async with store.begin() as uow:
            async with uow.savepoint():
                await factories.add_flow(uow)
                await saboteur.terminate(await _pid(uow))
                await uow.flow_instances.count()
    assert await store.flow_instances.count() == 0
    await pools_are_whole(store, _POOL)


async def test_a_connection_that_ends_while_a_statement_waits(store: Store, saboteur: Saboteur) -> None:
    flow = await factories.add_flow(store)
    async with store.begin() as holder:
        mine = await holder.advance(flow.complete_step("charge"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            for call in (_advance_alone, _advance_in_unit_of_work):
                waiting = asyncio.ensure_future(call(store, flow))
                await saboteur.terminate(await saboteur.waiting_pid())
                with pytest.raises(StoreUnavailable):
                    await waiting
    assert await store.flow_instances.get(flow.flow_instance_id) == mine
    await pools_are_whole(store, _POOL)


async def _advance_alone(store: Store, flow: FlowInstance) -> None:
    await store.advance(flow.complete_step("ship"))


async def _advance_in_unit_of_work(store: Store, flow: FlowInstance) -> None:
    async with store.begin() as uow:
        await uow.advance(flow.complete_step("ship"))


async def test_idle_connections_that_ended_are_replaced_and_nobody_notices(store: Store, saboteur: Saboteur) -> None:
    flow = await factories.add_flow(store)
    await pools_are_whole(store, _POOL)
    assert await saboteur.terminate_all() > _POOL
    assert await saboteur.connected() == []
    for _ in range(10):  # turns in which the loop learns of sockets that were closed before that answer
        await asyncio.sleep(0)
    assert await store.flow_instances.get(flow.flow_instance_id) == flow
    await _advance_in_unit_of_work(store, flow)
    await pools_are_whole(store, _POOL)


async def test_run_recovers_from_a_connection_that_ends(store: Store, saboteur: Saboteur) -> None:
    flow = await factories.add_flow(store)
    attempts = 0

    async def advance(uow: UnitOfWork) -> FlowInstance:
        nonlocal attempts
        attempts += 1
        advanced = await uow.advance(flow.complete_step("charge"))
        if attempts < 3:
            await saboteur.terminate(await _pid(uow))
        return advanced

    assert await store.run(advance) == await store.flow_instances.get(flow.flow_instance_id)
    assert attempts == 3


async def test_connections_that_end_under_load(store: Store, saboteur: Saboteur) -> None:
    flows = [await factories.add_flow(store) for _ in range(12)]
    is_over = asyncio.Event()
    counting = [asyncio.ensure_future(count_until(store, flow, is_over)) for flow in flows]
    async with asyncio.timeout(40):
        while saboteur.terminated < 25:
            await saboteur.terminate_one()
        is_over.set()
        counts = [await task for task in counting]
    assert sum(count.failures for count in counts) > 0, "nobody noticed the sabotage"
    assert sum(count.acknowledged for count in counts) > 0, "nobody got anything done"
    for flow, count in zip(flows, counts, strict=True):
        await count.check(store, flow)
    await pools_are_whole(store, _POOL)
    assert await saboteur.open_transactions() == []


async def test_a_closed_store_leaves_no_connection(database_url: str, saboteur: Saboteur) -> None:
    async with open_store(database_url, pool_size=_POOL, application_name="under test") as store:
        flow = await factories.add_flow(store)
        tasks = [asyncio.ensure_future(_advance_in_unit_of_work(store, flow)) for _ in range(8)]
        await asyncio.wait(tasks)
        assert sum(task.exception() is None for task in tasks) == 1
        await saboteur.terminate_one()
    await nobody_connected(saboteur)


class _Base(DeclarativeBase):
    pass


class _Note(_Base):
    __tablename__ = "a_table_that_nobody_made"
    note_id: Mapped[int] = mapped_column(primary_key=True)


async def test_rows_of_the_caller_that_cannot_be_stored_take_everything_back(store: Store) -> None:
    flow = await factories.add_flow(store)
    for _ in range(_POOL + 1):
        with pytest.raises(CascadeStateError):
            async with store.begin() as uow:
                await uow.advance(flow.complete_step("charge"))
                uow.session().add(_Note(note_id=1))
    assert await store.flow_instances.get(flow.flow_instance_id) == flow
    await pools_are_whole(store, _POOL)


# A commit whose outcome nobody heard


async def test_an_acknowledgement_that_is_lost_on_the_way(database_url: str) -> None:
    """The commit is done, the connection breaks before its answer: an error, and the work is there, once."""
    async with LossyWire(database_url) as wire, open_store(wire.url) as store:
        definition = await factories.deploy_flow_definition(store)
        flow = factories.running_flow(definition)
        attempts = 0

        async def add(uow: UnitOfWork) -> FlowInstance:
            nonlocal attempts
            attempts += 1
            known = await uow.flow_instances.find(flow.flow_instance_id)
            if known is not None:
                return known
            added = await uow.flow_instances.add(flow)
            wire.lose_next_commit()
            return added

        with pytest.raises(StoreUnavailable):
            async with store.begin() as uow:
                await add(uow)
        assert wire.lost == 1
        assert (await store.flow_instances.get(flow.flow_instance_id)).version == 1
        second = factories.running_flow(definition)
        flow, attempts = second, 0
        assert (await store.run(add)).flow_instance_id == second.flow_instance_id
        assert attempts == 2
        assert await store.flow_instances.count() == 2


# Cancellation under load


@pytest.mark.parametrize("seed", range(3))
async def test_tasks_cancelled_at_any_await_under_load(store: Store, saboteur: Saboteur, seed: int) -> None:
    chance = random.Random(seed)
    definition = await factories.deploy_flow_definition(store)
    acknowledged: dict[Any, int] = {}

    async def work(flow: FlowInstance, in_unit_of_work: bool) -> None:
        for number in range(1, 6):
            step = flow.complete_step(f"step-{number}")
            if in_unit_of_work:
                async with store.begin() as uow:
                    await uow.component_states.put(flow.flow_instance_id, "charge", number)
                    flow = await uow.advance(step)
            else:
                flow = await store.advance(step, put_states={"charge": number})
            acknowledged[flow.flow_instance_id] = number

    async with asyncio.timeout(40):
        for _ in range(12):
            flows = [await factories.add_flow(store, definition) for _ in range(10)]
            tasks = [asyncio.ensure_future(work(flow, number % 2 == 0)) for number, flow in enumerate(flows)]
            for task in chance.sample(tasks, 7):
                for _ in range(chance.randint(0, 30)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait(tasks)
            assert not [task for task in tasks if not task.cancelled() and task.exception()]
    await pools_are_whole(store, _POOL)
    assert await saboteur.open_transactions() == []
    async for stored in store.flow_instances.iterate():
        done = len(stored.completed_steps)
        # The step whose acknowledgement the task did not live to see may be stored or not; never half of it.
        assert done - acknowledged.get(stored.flow_instance_id, 0) in (0, 1)
        assert stored.version == 1 + done
        state = await store.component_states.find(stored.flow_instance_id, "charge")
        assert (None if state is None else state.state) == (done or None)


async def test_callers_cancelled_while_they_wait_for_a_connection(store: Store, saboteur: Saboteur) -> None:
    holders = [store.begin() for _ in range(_POOL)]
    for holder in holders:
        await holder.__aenter__()
    waiting = [asyncio.ensure_future(_count(store)) for _ in range(10)]
    for _ in range(20):
        await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting, timeout=PATIENCE_SECONDS)
    assert all(task.cancelled() for task in waiting)
    for holder in holders:
        await holder.__aexit__(None, None, None)
    await pools_are_whole(store, _POOL)
    assert await saboteur.open_transactions() == []


async def _count(store: Store) -> int:
    async with store.begin() as uow:
        return await uow.flow_instances.count()


# A pool that runs dry


async def test_a_pool_that_runs_dry_says_so_in_time(database_url: str) -> None:
    async with open_store(database_url, pool_size=1, pool_timeout_seconds=0.2) as store:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            advanced = await uow.advance(flow.complete_step("charge"))
            async with asyncio.timeout(PATIENCE_SECONDS):
                with pytest.raises(StoreUnavailable) as caught:
                    await _count(store)
            assert caught.value.__cause__ is not None
            # What is one statement needs no connection of the pool.
            assert await store.flow_instances.get(flow.flow_instance_id) == flow
        assert await store.flow_instances.get(flow.flow_instance_id) == advanced
        assert await _count(store) == 1


async def test_run_outlasts_a_pool_that_runs_dry(database_url: str) -> None:
    async with open_store(database_url, pool_size=1, pool_timeout_seconds=0.05) as store:
        holder = store.begin()
        await holder.__aenter__()
        counting = asyncio.ensure_future(store.run(lambda uow: uow.flow_instances.count(), retries=50))
        with pytest.raises(StoreUnavailable):
            await _count(store)
        await holder.__aexit__(None, None, None)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await counting == 0


async def test_units_of_work_that_wait_for_each_other(database_url: str) -> None:
    async with open_store(database_url) as store:
        first, second = [await factories.add_flow(store) for _ in range(2)]
        met = asyncio.Barrier(2)

        async def advance_both(one: FlowInstance, other: FlowInstance) -> None:
            async with store.begin() as uow:
                await uow.advance(one.complete_step("charge"))
                await met.wait()
                await uow.advance(other.complete_step("charge"))

        async with asyncio.timeout(PATIENCE_SECONDS):
            outcomes = await asyncio.gather(
                advance_both(first, second), advance_both(second, first), return_exceptions=True
            )
        errors = [outcome for outcome in outcomes if outcome is not None]
        assert len(errors) == 1
        assert isinstance(errors[0], TransactionAborted)
        assert errors[0].sqlstate == "40P01"
        for flow in (first, second):
            assert (await store.flow_instances.get(flow.flow_instance_id)).version == 2


# Passwords


async def test_a_password_is_never_shown(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.socket() as taken:  # bound but not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        urls = [
            f"postgresql://user:S3CR3T-4711@127.0.0.1:{port}/nowhere",
            f"postgresql://127.0.0.1:{port}/nowhere?user=user&password=S3CR3T-4711",
            f"postgresql://user:S3CR3T%2D4711@127.0.0.1:{port}/nowhere",
        ]
        for url in urls:
            store = open_store(url, direct_url=url)
            for text in (store.url, repr(store), repr(store.options)):
                assert "4711" not in text
            with pytest.raises(StoreUnavailable) as caught:
                async with store:
                    pytest.fail("opened a store where nobody answers")
            error: BaseException | None = caught.value
            while error is not None:
                assert "4711" not in f"{error} {error!r} {vars(error)!r}"
                error = error.__cause__ or error.__context__
    with pytest.raises(CascadeStateError) as refused:
        open_store("postgres-S3CR3T-4711://user:S3CR3T-4711@host/db")
    assert "4711" not in str(refused.value)
    assert "4711" not in caplog.text


async def test_conflicts_are_not_mistaken_for_faults(store: Store) -> None:
    flow = await factories.add_flow(store)
    tasks = [asyncio.ensure_future(_advance_alone(store, flow)) for _ in range(20)]
    await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
    errors = [error for task in tasks if (error := task.exception()) is not None]
    assert len(errors) == 19
    assert {isinstance(error, Conflict) for error in errors} == {True}
