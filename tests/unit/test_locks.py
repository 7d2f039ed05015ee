"""Names of locks and their numbers; what the locks of a memory store do beyond the contract."""

from __future__ import annotations

import asyncio

import pytest

from cascade_state import StoreNotOpen, open_store
from cascade_state.memory.locks import ADVISORY, LockOwner, Locks
from cascade_state.model.locks import (
    LockName,
    advisory_lock_key,
    check_lock_name,
    lock_name_from_text,
    lock_name_text,
)
from cascade_state.testing.contracts.locks import in_queue

_PATIENCE = 20


def test_a_million_names_have_a_million_numbers() -> None:
    numbers = {advisory_lock_key("orders", ("backfill", number)) for number in range(1_000_000)}
    assert len(numbers) == 1_000_000
    assert all(-(2**63) <= number < 2**63 for number in numbers)


def test_the_schema_is_part_of_the_number() -> None:
    assert len({advisory_lock_key(schema, "month") for schema in (None, "a", "b")}) == 3


@pytest.mark.parametrize("name", ["month", "", 'a"b\\', "größe", ("a",), ("a", 1), ("a", "1"), ("\n", -(2**63))])
def test_a_name_is_read_as_it_was_written(name: LockName) -> None:
    assert lock_name_from_text(lock_name_text(name)) == name


def test_kinds_of_text_and_number_do_not_matter() -> None:
    class Month(str):
        __slots__ = ()

    class Year(int):
        pass

    name = check_lock_name((Month("may"), Year(2024)))
    assert name == ("may", 2024)
    assert [type(part) for part in name] == [str, int]


async def test_a_unit_of_work_that_waits_is_turned_away_when_its_store_closes() -> None:
    async with open_store("memory://turned away") as store:
        async with store.locks.hold("month"):
            async with open_store("memory://turned away") as closing:
                uow = await closing.begin().__aenter__()
                waiting = asyncio.create_task(uow.lock("month"))
                await in_queue(store, 1)
            with pytest.raises(StoreNotOpen):
                await asyncio.wait_for(waiting, _PATIENCE)
            assert len(await store.locks.list_held()) == 1


async def test_a_lock_that_is_handed_over_cannot_be_taken_in_between() -> None:
    async with open_store("memory://") as store:
        lock = await store.locks.try_acquire("month")
        assert lock is not None
        waiting = asyncio.create_task(store.locks.try_acquire("month", timeout=None))
        await asyncio.sleep(0)
        await lock.release()
        assert await store.locks.try_acquire("month") is None
        got = await asyncio.wait_for(waiting, _PATIENCE)
        assert got is not None


async def test_a_lock_that_comes_with_the_end_of_the_time_is_not_lost() -> None:
    locks = Locks(asyncio.get_running_loop())
    first, second = LockOwner(), LockOwner()
    assert await locks.acquire((7, "month"), first, shared=False, seconds=0)
    waiting = asyncio.create_task(locks.acquire((7, "month"), second, shared=False, seconds=0.01))
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()

    def give_back_too_late() -> None:
        """In one turn of the loop the lock is handed over, and the time is over."""
        end = loop.time() + 0.01
        while loop.time() < end:
            pass
        locks.give_back(first)

    loop.call_at(loop.time() + 0.005, give_back_too_late)
    granted = await asyncio.wait_for(waiting, _PATIENCE)
    assert granted is ((ADVISORY, (7, "month")) in locks.held)
