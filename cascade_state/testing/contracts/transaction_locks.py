"""Locks that end with a unit of work (LCK-06, LCK-11, LCK-16, LCK-17)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    LockNotAcquired,
    TransactionAborted,
    UnitOfWorkFinished,
    UnitOfWorkNotOpen,
    UsageError,
)
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.locks import in_queue, is_free
from cascade_state.testing.contracts.rules import rule

__all__ = ["TransactionLocksContract"]

_NOW = timedelta(0)
_MOMENT = timedelta(milliseconds=20)


class TransactionLocksContract(StoreContract):
    """`uow.lock`."""

    @rule("LCK-17")
    async def test_it_is_held_to_the_end_however_that_comes(self, store: Store, other_store: Store) -> None:
        async with store.begin() as uow:
            await uow.lock("month")
            assert not await is_free(other_store, "month")
            assert await other_store.locks.is_held("month")
        assert await is_free(other_store, "month")
        async with store.begin() as uow:
            await uow.lock("month", timeout=_NOW)
            await uow.rollback()
            assert await is_free(other_store, "month")
        with pytest.raises(KeyError):
            async with store.begin() as uow:
                await uow.lock("month")
                raise KeyError
        assert await other_store.locks.list_held() == []

    @rule("LCK-17")
    async def test_units_of_work_and_held_locks_exclude_each_other(self, store: Store, other_store: Store) -> None:
        async with store.locks.hold("month"), store.begin() as uow, other_store.begin() as other:
            for one in (uow, other):
                with pytest.raises(LockNotAcquired):
                    await one.lock("month", timeout=_NOW)
            await uow.lock("year")
            with pytest.raises(LockNotAcquired):
                await other.lock("year", timeout=_MOMENT)
        assert await is_free(store, "year")

    @rule("LCK-17")
    async def test_it_is_listed_by_its_store_with_its_name(self, store: Store) -> None:
        async with store.begin() as uow:
            await uow.lock(("backfill", 2024, 1), shared=True)
            (info,) = await store.locks.list_held()
        assert (info.lock_name, info.mode, info.granted) == (("backfill", 2024, 1), "shared", True)
        assert info.since is not None

    @rule("LCK-06", "LCK-17")
    async def test_without_the_lock_the_unit_of_work_goes_on(self, store: Store, other_store: Store) -> None:
        async with store.locks.hold("month"):
            async with other_store.begin() as uow:
                before = await factories.add_flow(uow)
                for timeout in (_NOW, _MOMENT):
                    with pytest.raises(LockNotAcquired) as refused:
                        await uow.lock("month", timeout=timeout)
                    assert refused.value.lock_name == "month"
                    assert refused.value.waited >= timeout.total_seconds()
                after = await factories.add_flow(uow)
        for flow in (before, after):
            assert await store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("LCK-02", "LCK-17")
    @pytest.mark.parametrize("timeout", [None, timedelta(minutes=1)])
    async def test_who_waits_gets_it_with_the_commit(
        self, store: Store, other_store: Store, timeout: timedelta | None
    ) -> None:
        async def work() -> None:
            async with other_store.begin() as waiting:
                await waiting.lock("month", timeout=timeout)
                assert await waiting.flow_instances.find(flow.flow_instance_id) == flow

        async with store.begin() as uow:
            await uow.lock("month")
            flow = await factories.add_flow(uow)
            working = self.started(work())
            await self.blocked(working)
        await self.finished(working)
        assert await other_store.locks.list_held() == []

    @rule("LCK-06")
    async def test_a_wait_that_is_cancelled_leaves_nothing(self, store: Store, other_store: Store) -> None:
        async def work() -> None:
            async with other_store.begin() as waiting:
                await waiting.lock("month")

        async with store.locks.hold("month"):
            working = self.started(work())
            await self.blocked(working)
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await self.finished(working)
            assert [info.granted for info in await store.locks.list_held()] == [True]
        assert await is_free(other_store, "month")

    @rule("LCK-06")
    async def test_cancelled_at_any_await_nothing_is_held(self, store: Store, other_store: Store) -> None:
        async def operation() -> None:
            async with store.begin() as uow:
                await uow.lock("free")
                with pytest.raises(LockNotAcquired):
                    await uow.lock("month", timeout=timedelta(milliseconds=2))

        async def check(completed: bool) -> None:
            (info,) = await other_store.locks.list_held()
            assert info.lock_name == "month"

        async with other_store.locks.hold("month"):
            assert await self.cancelled_at_every_await(operation, check) > 0

    @rule("LCK-11")
    async def test_a_unit_of_work_takes_a_lock_once(self, store: Store) -> None:
        async with store.begin() as uow:
            await uow.lock("month", shared=True)
            for shared in (True, False):
                with pytest.raises(UsageError):
                    await uow.lock("month", shared=shared, timeout=_NOW)
            await uow.lock(("month",))

    @rule("LCK-17")
    async def test_a_savepoint_that_is_undone_gives_it_back(self, store: Store, other_store: Store) -> None:
        async with store.begin() as uow:
            await uow.lock("year")
            with pytest.raises(KeyError):
                async with uow.savepoint():
                    await uow.lock("month")
                    raise KeyError
            assert await is_free(other_store, "month")
            assert not await is_free(other_store, "year")
            async with uow.savepoint():
                await uow.lock("month")
            assert not await is_free(other_store, "month")

    @rule("LCK-17")
    async def test_units_of_work_that_wait_for_each_other_are_found(self, store: Store, other_store: Store) -> None:
        async def work(one: Store, first: str, second: str, met: asyncio.Barrier) -> str:
            async with one.begin() as uow:
                await uow.lock(first)
                await met.wait()
                await uow.lock(second)
            return first

        met = asyncio.Barrier(2)
        working = [work(store, "a", "b", met), work(other_store, "b", "a", met)]
        results = await self.finished(asyncio.gather(*working, return_exceptions=True))
        assert {type(result) for result in results} == {TransactionAborted, str}
        assert await store.locks.list_held() == []

    @rule("LCK-17")
    async def test_a_lock_and_a_row_in_a_circle_are_found(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store)
        met = asyncio.Barrier(2)

        async def lock_then_row() -> None:
            async with store.begin() as uow:
                await uow.lock("month")
                await met.wait()
                await uow.advance(flow.complete_step("a"))

        async def row_then_lock() -> None:
            async with other_store.begin() as uow:
                await uow.advance(flow.complete_step("a"))
                await met.wait()
                await uow.lock("month")

        results = await self.finished(asyncio.gather(lock_then_row(), row_then_lock(), return_exceptions=True))
        assert {type(result) for result in results} == {TransactionAborted, type(None)}
        assert await store.locks.list_held() == []

    @rule("LCK-16")
    async def test_units_of_work_share_a_lock(self, store: Store, other_store: Store) -> None:
        async with store.begin() as one:
            await one.lock("month", shared=True)
            async with other_store.begin() as other:
                await other.lock("month", shared=True, timeout=_NOW)
                waiting = self.started(store.locks.try_acquire("month", timeout=None))
                await in_queue(store, 1)
            assert not waiting.done()
        lock = await self.finished(waiting)
        assert lock is not None
        await lock.release()

    @rule("LCK-17")
    async def test_a_read_only_unit_of_work_may_lock(self, store: Store, other_store: Store) -> None:
        async with store.begin(read_only=True) as uow:
            await uow.lock("month")
            assert not await is_free(other_store, "month")

    @rule("LCK-17", "C-02")
    async def test_above_read_committed_a_lock_is_no_write(self, store: Store, other_store: Store) -> None:
        """Who only locked has changed nothing, so a serializable neighbour can still commit."""
        async with store.begin(isolation="SERIALIZABLE") as uow:
            flow = await factories.add_flow(uow)
            async with other_store.begin() as other:
                await other.lock("month")
            await uow.lock("month", timeout=_NOW)
        assert await other_store.flow_instances.get(flow.flow_instance_id) == flow

    @rule("C-03")
    async def test_a_unit_of_work_out_of_its_time_takes_no_lock(self, store: Store) -> None:
        uow = store.begin()
        with pytest.raises(UnitOfWorkNotOpen):
            await uow.lock("month")
        async with uow:
            pass
        with pytest.raises(UnitOfWorkFinished):
            await uow.lock("month")
