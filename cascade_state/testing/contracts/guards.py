"""Who may call when: units of work and stores out of their time, two tasks at once, read-only (C-03, C-06)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.errors import (
    CascadeStateError,
    InvalidArgument,
    StoreNotOpen,
    UnitOfWorkFinished,
    UnitOfWorkNotOpen,
    UsageError,
    VersionConflict,
)
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import OpenStore, StoreContract
from cascade_state.testing.contracts.calls import CALLS, public_methods
from cascade_state.testing.contracts.rules import rule

__all__ = ["GuardsContract"]

_WRITES = sorted(name for name, call in CALLS.items() if call.writes)
_READS = sorted(name for name, call in CALLS.items() if not call.writes)


class GuardsContract(StoreContract):
    """What is refused before it begins."""

    # C-03

    async def test_the_table_of_calls_is_complete(self) -> None:
        assert sorted(public_methods()) == sorted(CALLS)

    @rule("C-03")
    @pytest.mark.parametrize("name", sorted(CALLS))
    async def test_a_finished_unit_of_work_refuses_every_call(self, store: Store, name: str) -> None:
        async with store.begin() as uow:
            pass
        with pytest.raises(UnitOfWorkFinished):
            await CALLS[name].run(uow)

    @rule("C-03")
    @pytest.mark.parametrize("name", sorted(CALLS))
    async def test_an_unopened_unit_of_work_refuses_every_call(self, store: Store, name: str) -> None:
        with pytest.raises(UnitOfWorkNotOpen):
            await CALLS[name].run(store.begin())

    @rule("C-03")
    async def test_the_unit_of_work_itself_refuses_to_be_used_out_of_its_time(self, store: Store) -> None:
        uow = store.begin()
        with pytest.raises(UnitOfWorkNotOpen):
            await uow.rollback()
        with pytest.raises(UnitOfWorkNotOpen):
            async with uow.savepoint():
                pytest.fail("a savepoint needs an open unit of work")
        with pytest.raises(UnitOfWorkNotOpen):
            uow.session()
        with pytest.raises(UnitOfWorkNotOpen):
            _ = uow.connection
        async with uow:
            pass
        with pytest.raises(UnitOfWorkFinished):
            await uow.rollback()
        with pytest.raises(UnitOfWorkFinished):
            async with uow.savepoint():
                pytest.fail("a savepoint needs an open unit of work")
        with pytest.raises(UnitOfWorkFinished):
            uow.session()
        with pytest.raises(UnitOfWorkFinished):
            _ = uow.connection
        with pytest.raises(UnitOfWorkFinished):
            async with uow:
                pytest.fail("a unit of work is entered once")

    @rule("C-03")
    async def test_a_second_task_entering_a_unit_of_work_is_refused(self, store: Store) -> None:
        async def enter(uow: UnitOfWork) -> None:
            async with uow:
                pytest.fail("two tasks entered one unit of work")

        async with store.begin() as uow:
            flow = await factories.add_flow(uow)
            with pytest.raises(UsageError):
                await self.finished(self.started(enter(uow)))
            assert await uow.flow_instances.find(flow.flow_instance_id) == flow
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-03")
    async def test_a_call_while_another_task_is_inside_one_is_refused(self, store: Store, other_store: Store) -> None:
        flow, free = await factories.add_flow(store), await factories.add_flow(store)
        async with store.begin() as uow:
            async with other_store.begin() as holder:
                await holder.advance(flow.complete_step("charge"))
                inside = self.started(uow.advance(flow.complete_step("ship")))
                await self.blocked(inside)
                with pytest.raises(UsageError):
                    await uow.advance(free.complete_step("charge"))
                with pytest.raises(UsageError):
                    await uow.flow_instances.find(free.flow_instance_id)
            with pytest.raises(VersionConflict):
                await self.finished(inside)
            await uow.advance(free.complete_step("ship"))
        assert (await store.flow_instances.get(free.flow_instance_id)).completed_steps == {"ship"}

    @rule("C-03")
    async def test_of_tasks_that_call_at_once_one_is_served(self, store: Store) -> None:
        """Nothing has to wait for anybody else: it is enough that two tasks share a unit of work."""
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            puts = (uow.component_states.put(flow.flow_instance_id, step_id, 1) for step_id in ("charge", "ship"))
            first, second = await self.finished(asyncio.gather(*puts, return_exceptions=True))
            assert isinstance(second, UsageError), second
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == [first]

    @rule("C-03")
    @pytest.mark.parametrize("name", sorted(CALLS))
    async def test_a_store_that_is_not_open_refuses_every_call(self, open_store_again: OpenStore, name: str) -> None:
        unopened = open_store_again()
        assert isinstance(unopened, Store)
        with pytest.raises(StoreNotOpen):
            await CALLS[name].run(unopened)
        async with open_store_again() as closed:
            pass
        with pytest.raises(StoreNotOpen):
            await CALLS[name].run(closed)

    @rule("C-03")
    async def test_a_store_that_is_not_open_gives_no_unit_of_work(self, open_store_again: OpenStore) -> None:
        async with open_store_again() as closed:
            pass
        with pytest.raises(StoreNotOpen):
            closed.begin()
        with pytest.raises(StoreNotOpen):
            closed.enlist(None)  # type: ignore[arg-type]
        with pytest.raises(StoreNotOpen):
            await closed.run(lambda uow: uow.flow_instances.count())
        with pytest.raises(UsageError):
            async with closed:
                pytest.fail("a store is entered once")

    @rule("C-03")
    async def test_an_unknown_isolation_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidArgument) as caught:
            store.begin(isolation="READ WHATEVER")  # type: ignore[arg-type]
        assert caught.value.argument == "isolation"

    # C-06

    @rule("C-06")
    @pytest.mark.parametrize("name", _WRITES)
    async def test_a_read_only_unit_of_work_refuses_writes(self, store: Store, name: str) -> None:
        async with store.begin(read_only=True) as uow:
            with pytest.raises(UsageError):
                await CALLS[name].run(uow)
            assert await uow.flow_instances.count() == 0
        assert await store.flow_instances.count() == 0

    @rule("C-06")
    @pytest.mark.parametrize("name", _READS)
    async def test_a_read_only_unit_of_work_answers_reads(self, store: Store, name: str) -> None:
        async def answer(run: Callable[[Store | UnitOfWork], Awaitable[object]], on: Store | UnitOfWork) -> object:
            try:
                return await run(on)
            except CascadeStateError as error:
                return repr(error)

        async with store.begin(read_only=True) as uow:
            inside = await answer(CALLS[name].run, uow)
        assert inside == await answer(CALLS[name].run, store)
        assert "UsageError" not in repr(inside)
