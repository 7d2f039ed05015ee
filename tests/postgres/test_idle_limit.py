"""Units of work with a limit on idleness: it travels with a BEGIN that is put off until there is something to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text

from cascade_state import InvalidArgument, Store, StoreUnavailable, Timer, UnitOfWork, UsageError, open_store
from cascade_state.coordination import Worker
from cascade_state.testing import factories
from tests.wire import Wire

pytestmark = pytest.mark.postgres

_LIMIT = timedelta(seconds=40)
_PATIENCE = 30
_SHOW = "SHOW idle_in_transaction_session_timeout"


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    async with Wire(database_url) as wire:
        yield wire


@pytest.fixture
async def store(wire: Wire) -> AsyncIterator[Store]:
    async with open_store(wire.url, pool_size=1) as store:
        await factories.add_flow(store)
        async with store.begin():  # the connection of the pool is there
            pass
        yield store


async def test_one_that_nobody_uses_costs_nothing(wire: Wire, store: Store) -> None:
    before = wire.round_trips
    async with store.begin(idle_limit=_LIMIT) as uow:
        assert uow.is_untouched
    with pytest.raises(ZeroDivisionError):
        async with store.begin(idle_limit=_LIMIT):
            raise ZeroDivisionError
    assert wire.round_trips == before


async def test_the_limit_costs_nothing_and_ends_with_the_transaction(wire: Wire, store: Store) -> None:
    async with store.begin() as uow:
        usual = (await uow.connection.exec_driver_sql(_SHOW)).scalar()
    flow = await factories.add_flow(store)
    for _ in range(4):  # a statement is prepared when a connection first sees it
        before = wire.round_trips
        async with store.begin(idle_limit=_LIMIT) as uow:
            await uow.component_states.put(flow.flow_instance_id, "charge", 1)
            assert not uow.is_untouched
    assert wire.round_trips - before == 1 + 2
    async with store.begin(idle_limit=_LIMIT, isolation="SERIALIZABLE") as uow:
        assert (await uow.connection.exec_driver_sql(_SHOW)).scalar() == "40s"
        assert (await uow.connection.exec_driver_sql("SHOW transaction_isolation")).scalar() == "serializable"
    async with store.begin() as uow:
        assert (await uow.connection.exec_driver_sql(_SHOW)).scalar() == usual


async def _by_repository(uow: UnitOfWork) -> None:
    await uow.component_states.list_for_instance((await factories.add_flow(uow)).flow_instance_id)


async def _by_savepoint(uow: UnitOfWork) -> None:
    async with uow.savepoint():
        await factories.add_flow(uow)


async def _by_connection(uow: UnitOfWork) -> None:
    await uow.connection.exec_driver_sql("CREATE TABLE mine ()")


async def _by_session(uow: UnitOfWork) -> None:
    async with uow.session() as session:
        await session.execute(text("CREATE TABLE mine ()"))


async def _by_driver(uow: UnitOfWork) -> None:
    driver: Any = (await uow.connection.get_raw_connection()).driver_connection
    await driver.execute("CREATE TABLE mine ()")


@pytest.mark.parametrize("use", [_by_repository, _by_savepoint, _by_connection, _by_session, _by_driver])
async def test_whoever_uses_it_first_is_inside_the_transaction(
    store: Store, use: Callable[[UnitOfWork], Awaitable[None]]
) -> None:
    flows = await store.flow_instances.count()
    with pytest.raises(ZeroDivisionError):
        async with store.begin(idle_limit=_LIMIT) as uow:
            await use(uow)
            assert not uow.is_untouched
            raise ZeroDivisionError
    assert await store.flow_instances.count() == flows
    async with store.begin() as uow:
        assert (await uow.connection.execute(text("SELECT to_regclass('mine')"))).scalar() is None


async def test_what_a_session_has_not_sent_yet_is_a_use(store: Store) -> None:
    async with store.begin(idle_limit=_LIMIT) as uow:
        async with uow.session():
            assert not uow.is_untouched


async def test_nothing_begins_behind_a_commit_on_its_connection(store: Store) -> None:
    with pytest.raises(UsageError):
        async with store.begin(idle_limit=_LIMIT) as uow:
            await uow.connection.commit()
            assert not uow.is_untouched
            await factories.add_flow(uow)


async def test_a_limit_is_a_duration(store: Store) -> None:
    with pytest.raises(InvalidArgument):
        store.begin(idle_limit=timedelta(0))


@pytest.mark.parametrize("is_by_driver", [False, True])
async def test_a_begin_that_was_put_off_and_fails_leaves_no_connection_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_by_driver: bool
) -> None:
    """Cancelled within BEGIN, the server is in a transaction that SQLAlchemy knows nothing of."""
    execute = asyncpg.Connection.execute
    begun = asyncio.Event()

    async def begin_and_hang(connection: Any, query: str, *arguments: Any, **options: Any) -> Any:
        done = await execute(connection, query, *arguments, **options)
        if query.startswith("BEGIN"):
            begun.set()
            await asyncio.Event().wait()
        return done

    async def work() -> None:
        async with store.begin(idle_limit=_LIMIT) as uow:
            await (_by_driver if is_by_driver else _by_repository)(uow)

    with monkeypatch.context() as patched:
        patched.setattr(asyncpg.Connection, "execute", begin_and_hang)
        task = asyncio.create_task(work())
        async with asyncio.timeout(_PATIENCE):
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    async with store.begin(idle_limit=_LIMIT) as uow:  # on the only connection of the pool
        await factories.add_flow(uow)


async def test_a_connection_that_broke_before_its_begin_is_an_unavailable_store(store: Store) -> None:
    with pytest.raises(StoreUnavailable):
        async with store.begin(idle_limit=_LIMIT) as uow:
            driver: Any = (await uow.connection.get_raw_connection()).driver_connection
            driver.terminate()
            await factories.add_flow(uow)
    await factories.add_flow(store)


async def test_a_worker_acknowledges_what_used_nothing_without_a_transaction(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers that only talk to others cost their share of a claim and of an acknowledgement."""
    flow = await factories.add_flow(store)
    timers = [await store.timers.schedule(flow.flow_instance_id, "ship", after=timedelta(0)) for _ in range(3)]
    execute = asyncpg.Connection.execute
    handled: list[UUID] = []
    sent: list[str] = []
    is_over = asyncio.Event()

    async def logged(connection: Any, query: str, *arguments: Any, **options: Any) -> Any:
        sent.append(query)
        return await execute(connection, query, *arguments, **options)

    async def on_timer(timer: Timer, uow: UnitOfWork) -> None:
        assert uow.is_untouched
        handled.append(timer.timer_id)
        if len(handled) == len(timers):
            is_over.set()

    monkeypatch.setattr(asyncpg.Connection, "execute", logged)
    worker = Worker(store, on_timer=on_timer, handle_signals=False)
    async with asyncio.timeout(_PATIENCE):
        task = asyncio.create_task(worker.run())
        await is_over.wait()
        await worker.stop()
        await task
    assert sorted(handled) == sorted(timer.timer_id for timer in timers)
    assert (await store.statistics()).timers_pending == 0
    assert not [query for query in sent if query.startswith(("BEGIN", "COMMIT"))]
