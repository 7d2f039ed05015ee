from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import pytest

from cascade_state.errors import TransactionAborted, UsageError
from cascade_state.memory.locks import Blocked, LockOwner, Locks

T = TypeVar("T")
FIRST, SECOND, THIRD = ("row", 1), ("row", 2), ("row", 3)


async def finished(work: Awaitable[T]) -> T:
    async with asyncio.timeout(10):
        return await work


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def locks() -> Locks:
    return Locks(asyncio.get_running_loop())


async def test_a_lock_is_held_by_one_until_it_is_given_back(locks: Locks) -> None:
    one, other = LockOwner(), LockOwner()
    locks.take(FIRST, one)
    locks.take(FIRST, one)
    assert locks.is_free(FIRST, one)
    assert not locks.is_free(FIRST, other)
    with pytest.raises(Blocked):
        locks.take(FIRST, other)
    with pytest.raises(Blocked):
        locks.share(FIRST, other)
    locks.give_back(one)
    locks.take(FIRST, other)
    assert not one.taken


async def test_a_shared_lock_keeps_out_whoever_wants_it_alone(locks: Locks) -> None:
    one, other = LockOwner(), LockOwner()
    locks.share(FIRST, one)
    locks.share(FIRST, other)
    with pytest.raises(Blocked):
        locks.take(FIRST, one)
    locks.give_back(other)
    locks.take(FIRST, one)
    with pytest.raises(Blocked):
        locks.share(FIRST, other)
    locks.give_back(one)
    assert not locks.held


async def test_giving_back_to_a_mark_returns_to_what_was_held_before(locks: Locks) -> None:
    one, other = LockOwner(), LockOwner()
    locks.share(FIRST, one)
    mark = len(one.taken)
    locks.take(FIRST, one)
    locks.take(SECOND, one)
    locks.give_back(one, mark)
    locks.share(FIRST, other)
    locks.take(SECOND, other)
    with pytest.raises(Blocked):
        locks.take(FIRST, other)


async def test_giving_back_wakes_everybody_who_waits(locks: Locks) -> None:
    holder = LockOwner()
    locks.take(FIRST, holder)
    waiters = [asyncio.ensure_future(locks.wait(FIRST, owner)) for owner in (LockOwner(), None, LockOwner())]
    await turns()
    assert not any(waiter.done() for waiter in waiters)
    locks.give_back(holder)
    await finished(asyncio.gather(*waiters))
    assert not locks._waiting


async def test_a_cancelled_waiter_leaves_nothing_behind(locks: Locks) -> None:
    holder, waiter = LockOwner(), LockOwner()
    locks.take(FIRST, holder)
    task = asyncio.ensure_future(locks.wait(FIRST, waiter))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finished(task)
    assert waiter.waits_for is None
    assert not locks._waiting
    locks.give_back(holder)
    locks.take(FIRST, LockOwner())


async def test_a_waiter_that_is_cancelled_after_it_was_woken_holds_nothing(locks: Locks) -> None:
    holder = LockOwner()
    locks.take(FIRST, holder)
    task = asyncio.ensure_future(locks.wait(FIRST, LockOwner()))
    await turns()
    locks.give_back(holder)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finished(task)
    assert not locks.held
    assert not locks._waiting


async def test_a_circle_of_three_is_found_by_the_one_that_closes_it(locks: Locks) -> None:
    owners = [LockOwner() for _ in range(3)]
    for owner, key in zip(owners, (FIRST, SECOND, THIRD), strict=True):
        locks.take(key, owner)
    waiting = [
        asyncio.ensure_future(locks.wait(SECOND, owners[0])),
        asyncio.ensure_future(locks.wait(THIRD, owners[1])),
    ]
    await turns()
    with pytest.raises(TransactionAborted) as caught:
        await finished(locks.wait(FIRST, owners[2]))
    assert "deadlock" in str(caught.value)
    assert owners[2].waits_for is None
    locks.give_back(owners[2])
    await finished(waiting[1])
    locks.give_back(owners[1])
    await finished(waiting[0])


async def test_two_sharers_that_both_want_it_alone_are_a_circle(locks: Locks) -> None:
    one, other = LockOwner(), LockOwner()
    locks.share(FIRST, one)
    locks.share(FIRST, other)
    waiting = asyncio.ensure_future(locks.wait(FIRST, one))
    await turns()
    with pytest.raises(TransactionAborted):
        await finished(locks.wait(FIRST, other))
    locks.give_back(other)
    await finished(waiting)


async def test_a_line_of_waiters_is_no_circle(locks: Locks) -> None:
    owners = [LockOwner() for _ in range(3)]
    for owner, key in zip(owners, (FIRST, SECOND, THIRD), strict=True):
        locks.take(key, owner)
    tasks = [
        asyncio.ensure_future(locks.wait(SECOND, owners[0])),
        asyncio.ensure_future(locks.wait(THIRD, owners[1])),
    ]
    await turns()
    assert not any(task.done() for task in tasks)
    for owner in reversed(owners):
        locks.give_back(owner)
    await finished(asyncio.gather(*tasks))


def test_waiting_in_another_event_loop_is_refused() -> None:
    async def made() -> Locks:
        return Locks(asyncio.get_running_loop())

    locks = asyncio.run(made())
    locks.take(FIRST, LockOwner())
    with pytest.raises(UsageError):
        asyncio.run(locks.wait(FIRST, None))
