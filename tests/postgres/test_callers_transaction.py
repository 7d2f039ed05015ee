"""The caller's own transaction: nothing of ours may run outside it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from cascade_state import UsageError, open_store
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
