"""Our rows inside the caller's own transaction, and the caller's SQL inside ours (C-04), where there is SQL."""

from __future__ import annotations

from typing import Any

import pytest

from cascade_state.abc import Store
from cascade_state.errors import AlreadyExists, TransactionAborted, UnitOfWorkFinished, UsageError, VersionConflict
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.rules import requires, rule

__all__ = ["EnlistingContract"]

_CREATE = "CREATE TABLE callers_orders (order_id text PRIMARY KEY)"
_INSERT = "INSERT INTO callers_orders VALUES ('order-1')"
_COUNT = "SELECT count(*) FROM callers_orders"


async def _engine(store: Store) -> Any:
    """Returns an engine on the store's database, with the caller's own table in it."""
    async with store.begin() as uow:
        await uow.connection.exec_driver_sql(_CREATE)
        return uow.connection.engine


async def _orders(store: Store) -> int:
    async with store.begin() as uow:
        return int((await uow.connection.exec_driver_sql(_COUNT)).scalar_one())


class EnlistingContract(StoreContract):
    """The caller's transaction decides."""

    @rule("C-04")
    @requires("caller_sql")
    async def test_our_rows_persist_with_the_callers_commit(self, store: Store, other_store: Store) -> None:
        engine = await _engine(store)
        async with engine.connect() as connection:
            await connection.exec_driver_sql(_INSERT)
            async with store.enlist(connection) as uow:
                flow = await factories.add_flow(uow)
            assert await other_store.flow_instances.find(flow.flow_instance_id) is None
            await connection.commit()
        assert await other_store.flow_instances.get(flow.flow_instance_id) == flow
        assert await _orders(store) == 1

    @rule("C-04")
    @requires("caller_sql")
    async def test_our_rows_vanish_with_the_callers_rollback(self, store: Store) -> None:
        engine = await _engine(store)
        async with engine.connect() as connection:
            await connection.exec_driver_sql(_INSERT)
            async with store.enlist(connection) as uow:
                flow = await factories.add_flow(uow)
            await connection.rollback()
        assert await store.flow_instances.find(flow.flow_instance_id) is None
        assert await _orders(store) == 0

    @rule("C-04")
    @requires("caller_sql")
    @pytest.mark.parametrize("commits", [True, False])
    async def test_our_call_may_be_the_first_of_the_callers_transaction(self, store: Store, commits: bool) -> None:
        engine = await _engine(store)
        async with engine.connect() as connection:
            async with store.enlist(connection) as uow:
                flow = await factories.add_flow(uow)
            await connection.exec_driver_sql(_INSERT)
            await (connection.commit() if commits else connection.rollback())
        assert (await store.flow_instances.find(flow.flow_instance_id) is not None) is commits
        assert await _orders(store) == commits

    @rule("C-04")
    @requires("caller_sql")
    @pytest.mark.parametrize("commits", [True, False])
    async def test_a_session_can_be_enlisted(self, store: Store, commits: bool) -> None:
        engine = await _engine(store)
        async with store.begin() as uow:
            session_class = type(uow.session())
        async with session_class(engine) as session:
            async with store.enlist(session) as uow:
                flow = await factories.add_flow(uow)
            await (await session.connection()).exec_driver_sql(_INSERT)
            await (session.commit() if commits else session.rollback())
        assert (await store.flow_instances.find(flow.flow_instance_id) is not None) is commits
        assert await _orders(store) == commits

    @rule("C-04")
    @requires("caller_sql")
    async def test_a_conflict_inside_a_savepoint_leaves_the_callers_transaction_usable(self, store: Store) -> None:
        engine = await _engine(store)
        stale = await factories.add_flow(store, business_key="order-1")
        current = await store.advance(stale.complete_step("charge"))
        definition = await store.flow_definitions.get(stale.flow_id)
        async with engine.connect() as connection:
            await connection.exec_driver_sql(_INSERT)
            async with store.enlist(connection) as uow:
                with pytest.raises(VersionConflict):
                    async with uow.savepoint():
                        lost = await factories.add_flow(uow, definition)
                        await uow.advance(stale.complete_step("ship"))
                with pytest.raises(AlreadyExists):
                    async with uow.savepoint():
                        await uow.advance(factories.running_flow(definition, business_key="order-1"))
                kept = await uow.advance(current.complete_step("ship"))
            await connection.commit()
        assert await _orders(store) == 1
        assert await store.flow_instances.get(kept.flow_instance_id) == kept
        assert await store.flow_instances.find(lost.flow_instance_id) is None

    @rule("C-04")
    @requires("caller_sql")
    async def test_an_exception_that_leaves_the_block_is_the_callers_to_decide_upon(self, store: Store) -> None:
        engine = await _engine(store)
        stale = await factories.add_flow(store)
        await store.advance(stale.complete_step("charge"))
        async with engine.connect() as connection:
            await connection.exec_driver_sql(_INSERT)
            with pytest.raises(VersionConflict):
                async with store.enlist(connection) as uow:
                    flow = await factories.add_flow(uow)
                    await uow.advance(stale.complete_step("ship"))
            assert connection.in_transaction()
            await connection.commit()
        assert await _orders(store) == 1
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-05")
    @requires("caller_sql")
    async def test_what_is_enlisted_is_not_repeated(self, store: Store) -> None:
        engine = await _engine(store)
        entered = 0
        async with engine.connect() as connection:
            with pytest.raises(TransactionAborted):
                async with store.enlist(connection) as uow:
                    entered += 1
                    await factories.add_flow(uow)
                    raise TransactionAborted(reason="for the test")
            await connection.rollback()
        assert entered == 1
        assert await store.flow_instances.count() == 0

    @rule("C-03", "C-04")
    @requires("caller_sql")
    async def test_an_enlisted_unit_of_work_ends_with_its_block(self, store: Store) -> None:
        engine = await _engine(store)
        async with engine.connect() as connection:
            async with store.enlist(connection) as uow:
                pass
            with pytest.raises(UnitOfWorkFinished):
                await uow.flow_instances.count()

    @rule("C-04")
    @requires("caller_sql")
    async def test_the_callers_sql_commits_and_rolls_back_with_ours(self, store: Store) -> None:
        await _engine(store)
        async with store.begin() as uow:
            await factories.add_flow(uow)
            await uow.connection.exec_driver_sql(_INSERT)
            await uow.rollback()
        assert (await _orders(store), await store.flow_instances.count()) == (0, 0)
        async with store.begin() as uow:
            await factories.add_flow(uow)
            async with uow.session() as session:
                await (await session.connection()).exec_driver_sql(_INSERT)
        assert (await _orders(store), await store.flow_instances.count()) == (1, 1)

    @rule("C-04")
    async def test_a_back_end_without_sql_says_so(self, store: Store) -> None:
        if store.capabilities.caller_sql:
            async with store.begin() as uow:
                assert uow.connection.in_transaction()
            return
        async with store.begin() as uow:
            with pytest.raises(UsageError):
                _ = uow.connection
            with pytest.raises(UsageError):
                uow.session()
