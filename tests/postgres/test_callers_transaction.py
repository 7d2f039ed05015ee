"""The caller's own transaction: nothing of ours may run outside it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from cascade_state import StoreUnavailable, UsageError, open_store
from cascade_state.testing import factories

pytestmark = pytest.mark.postgres


def _engine(url: str, **options: Any) -> Any:
    return create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1), **options)


async def test_enlist_refuses_a_connection_without_transactions(database_url: str) -> None:
    engine = _engine(database_url, isolation_level="AUTOCOMMIT")
    async with open_store(database_url) as store:
        flow = await factories.add_flow(store)
        async with engine.connect() as connection:
            with pytest.raises(UsageError):
                async with store.enlist(connection) as uow:
                    await uow.advance(flow.complete_step("a"))
        assert (await store.flow_instances.get(flow.flow_instance_id)).version == 1
    await engine.dispose()


async def test_enlist_refuses_a_closed_connection(database_url: str) -> None:
    engine = _engine(database_url)
    async with open_store(database_url) as store:
        async with engine.connect() as connection:
            pass
        with pytest.raises(UsageError, match="open connection"):
            async with store.enlist(connection):
                pass
    await engine.dispose()


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_nothing_runs_behind_the_end_of_the_callers_transaction(database_url: str, end: str) -> None:
    engine = _engine(database_url)
    async with open_store(database_url) as store:
        flow = await factories.add_flow(store)
        async with AsyncSession(engine) as session, store.enlist(session) as uow:
            await getattr(session, end)()
            with pytest.raises(UsageError):
                await uow.advance(flow.complete_step("a"))
        async with engine.connect() as connection, store.enlist(connection) as uow:
            await getattr(connection, end)()
            with pytest.raises(UsageError):
                await uow.advance(flow.complete_step("a"))
        assert (await store.flow_instances.get(flow.flow_instance_id)).version == 1
    await engine.dispose()


async def test_the_callers_next_transaction_is_not_the_one_that_was_enlisted(database_url: str) -> None:
    engine = _engine(database_url)
    async with open_store(database_url) as store:
        flow = await factories.add_flow(store)
        async with engine.connect() as connection, store.enlist(connection) as uow:
            await uow.lock("mine")
            await connection.rollback()
            await connection.execute(text("SELECT 1"))
            with pytest.raises(UsageError):
                await uow.advance(flow.complete_step("a"))
        assert (await store.flow_instances.get(flow.flow_instance_id)).version == 1
    await engine.dispose()


@pytest.mark.parametrize("end", ["commit", "ROLLBACK", "COMMIT"])
async def test_a_unit_of_work_whose_transaction_was_ended_says_so(database_url: str, end: str) -> None:
    async with open_store(database_url) as store:
        flow = await factories.add_flow(store)
        with pytest.raises(UsageError, match="was ended"):
            async with store.begin() as uow:
                await uow.advance(flow.complete_step("a"))
                await (uow.connection.commit() if end == "commit" else uow.connection.execute(text(end)))
        async with store.begin() as uow:  # its connection is as good as ever
            assert (await uow.flow_instances.get(flow.flow_instance_id)).version == (1 if end == "ROLLBACK" else 2)


@pytest.mark.parametrize("is_noticed", [True, False])
async def test_who_swallows_that_the_transaction_could_not_begin_has_not_committed(
    database_url: str, is_noticed: bool
) -> None:
    """With a limit on idleness the transaction begins with the first call, which can fail for that."""
    async with open_store(database_url) as store:
        flow = await factories.add_flow(store)
        with pytest.raises(StoreUnavailable):
            async with store.begin(idle_limit=timedelta(seconds=30)) as uow:
                driver: Any = uow._transaction.driver  # type: ignore[attr-defined]
                admin = await asyncpg.connect(database_url)
                await admin.execute("SELECT pg_terminate_backend($1, 5000)", driver.get_server_pid())
                await admin.close()
                while is_noticed and not driver.is_closed():  # noqa: ASYNC110 - the driver wakes nobody
                    await asyncio.sleep(0)
                with pytest.raises(StoreUnavailable):
                    await uow.advance(flow.complete_step("a"))
        assert (await store.advance(flow.complete_step("a"))).version == 2


async def test_who_is_cancelled_before_the_transaction_begins_has_not_committed(database_url: str) -> None:
    async with open_store(database_url) as store:
        flow = await factories.add_flow(store)
        with pytest.raises(StoreUnavailable):
            async with store.begin(idle_limit=timedelta(seconds=30)) as uow:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await uow.advance(flow.complete_step("a"))
        assert (await store.advance(flow.complete_step("a"))).version == 2


async def test_nothing_runs_behind_a_commit_on_the_connection_of_a_unit_of_work(database_url: str) -> None:
    async with open_store(database_url) as store:
        flow = await factories.add_flow(store)
        with pytest.raises(UsageError):
            async with store.begin() as uow:
                await uow.connection.commit()
                await uow.advance(flow.complete_step("a"))
        assert (await store.flow_instances.get(flow.flow_instance_id)).version == 1


async def test_a_snapshot_that_the_server_gives_by_default_loses_no_event(
    database_url: str,
) -> None:
    engine = _engine(database_url)
    async with open_store(database_url) as store, open_store(database_url) as other:
        flow = await factories.add_flow(store)
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await connection.exec_driver_sql("SELECT count(*) FROM flow_instances")
            await other.correlations.publish("parcel-1", {}, event_id="e")
            async with store.enlist(connection) as uow:
                await uow.advance(flow.suspend_for_event("a", "parcel-1"))
            await connection.commit()
            rows = await connection.exec_driver_sql("SELECT status FROM correlations")
            assert [row.status for row in rows] == ["NEW"]  # left to the next claim
    await engine.dispose()


async def test_a_default_isolation_of_the_database_does_not_reach_our_own_connections(database_url: str) -> None:
    engine = _engine(database_url)
    name = database_url.partition("?")[0].rpartition("/")[2]
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'"
        )
    async with open_store(database_url) as store, store.begin() as uow:
        result = await uow.connection.exec_driver_sql("SHOW transaction_isolation")
        assert result.scalar_one() == "read committed"
    await engine.dispose()
