"""Locks that outlive a transaction: one holder at a time, nothing left behind (LCK-01 to LCK-05, LCK-07 to LCK-14)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import pytest

from cascade_state.abc import HeldLock, Store
from cascade_state.errors import (
    CascadeStateError,
    InvalidArgument,
    LockLost,
    LockNotAcquired,
    StoreNotOpen,
)
from cascade_state.model.locks import LockName
from cascade_state.testing.contracts.base import PATIENCE, OpenStore, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["LocksContract", "attempted_block", "held_lock", "in_queue", "is_free"]

_MOMENT = timedelta(milliseconds=40)
_NO_NAMES: tuple[Any, ...] = (
    *("", "x" * 513, "a\x00b", "\ud800", 7, None, b"a", ["a", 1], ()),
    *(("a", None), ("a", 1.0), ("a", True), ("a", ("b",)), ("x" * 509,), ("m", 2**63), ("m", -(2**63) - 1)),
)


async def in_queue(store: Store, count: int) -> None:
    """Returns when so many wait for locks."""
    waiting = -1
    async with asyncio.timeout(PATIENCE):
        while waiting != count:
            await asyncio.sleep(0)
            waiting = sum(not info.granted for info in await store.locks.list_held())


async def is_free(store: Store, name: LockName) -> bool:
    """Returns whether the lock can be had, by having it for a moment."""
    lock = await store.locks.try_acquire(name)
    return lock is not None and await lock.release()


async def held_lock(store: Store, name: LockName, **options: Any) -> HeldLock:
    """Returns a lock that is free."""
    lock = await store.locks.try_acquire(name, **options)
    assert lock is not None
    return lock


def attempted_block(store: Store) -> Callable[..., Awaitable[None]]:
    """Returns `hold` in the form of a call."""

    async def block(name: LockName, **options: Any) -> None:
        async with store.locks.hold(name, **options):
            pytest.fail("the block must not run")

    return block


class LocksContract(StoreContract):
    """`store.locks`."""

    # One at a time

    @rule("LCK-01")
    async def test_of_many_at_once_one_gets_it(
        self, store: Store, other_store: Store, open_store_again: OpenStore
    ) -> None:
        async with open_store_again() as third:
            stores = [store, other_store, third]
            attempts = [one.locks.try_acquire("month", timeout=_MOMENT) for one in stores]
            locks = [lock for lock in await self.finished(asyncio.gather(*attempts)) if lock is not None]
            assert len(locks) == 1
            assert await locks[0].release()

    @rule("LCK-01", "LCK-02")
    async def test_holders_never_meet(self, store: Store, other_store: Store) -> None:
        inside = visits = 0

        async def visit(one: Store) -> None:
            nonlocal inside, visits
            for _ in range(4):
                async with one.locks.hold("room"):
                    inside += 1
                    assert inside == 1
                    visits += 1
                    await asyncio.sleep(0)
                    inside -= 1

        await self.finished(asyncio.gather(*(visit(one) for one in (store, other_store, store, other_store))))
        assert visits == 16

    @rule("LCK-02")
    async def test_who_waits_gets_it_when_it_is_released(self, store: Store, other_store: Store) -> None:
        lock = await held_lock(store, "month")
        assert await other_store.locks.try_acquire("month", timeout=_MOMENT) is None
        waiting = self.started(other_store.locks.try_acquire("month", timeout=None))
        await self.blocked(waiting)
        await lock.release()
        got = await self.finished(waiting)
        assert got is not None
        assert await store.locks.try_acquire("month") is None
        await got.release()

    @rule("LCK-02")
    async def test_who_waits_is_served_in_turn(self, store: Store, other_store: Store) -> None:
        lock: HeldLock | None = await held_lock(store, "month")
        waiting = []
        for count in range(3):
            waiting.append(self.started((store, other_store)[count % 2].locks.try_acquire("month", timeout=None)))
            await in_queue(store, count + 1)
        for place, waiter in enumerate(waiting):
            assert lock is not None
            await lock.release()
            lock = await self.finished(waiter)
            assert [other.done() for other in waiting[place + 1 :]] == [False] * (2 - place)
            assert not await is_free(store, "month")
        assert lock is not None
        await lock.release()

    @rule("LCK-03")
    async def test_a_lock_ends_with_the_store_that_holds_it(self, store: Store, open_store_again: OpenStore) -> None:
        async with open_store_again() as holder:
            lock = await held_lock(holder, "month")
            assert not await is_free(store, "month")
        assert await self.finished(store.locks.try_acquire("month", timeout=timedelta(seconds=PATIENCE))) is not None
        with pytest.raises(LockLost) as lost:
            await lock.check()
        assert lost.value.lock_name == "month"
        assert not await lock.release()

    @rule("LCK-03")
    async def test_a_store_that_closes_turns_away_who_waits(self, store: Store, open_store_again: OpenStore) -> None:
        async with store.locks.hold("month"):
            async with open_store_again() as closing:
                waiting = self.started(closing.locks.try_acquire("month", timeout=None))
                await in_queue(store, 1)
            with pytest.raises(StoreNotOpen):
                await self.finished(waiting)
            assert [info.granted for info in await store.locks.list_held()] == [True]
        with pytest.raises(StoreNotOpen):
            await closing.locks.try_acquire("month")

    # A block

    @rule("LCK-04")
    async def test_the_error_of_a_block_passes_unchanged_and_the_lock_is_free(self, store: Store) -> None:
        error = KeyError("the caller's own")
        with pytest.raises(KeyError) as raised:
            async with store.locks.hold("month"):
                raise error
        assert raised.value is error
        assert await is_free(store, "month")

    @rule("LCK-04")
    async def test_a_cancelled_block_frees_the_lock(self, store: Store, other_store: Store) -> None:
        inside = asyncio.Event()

        async def work() -> None:
            async with store.locks.hold("month"):
                inside.set()
                await asyncio.Event().wait()

        working = self.started(work())
        await self.finished(inside.wait())
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.finished(working)
        assert await is_free(other_store, "month")

    @rule("LCK-09")
    async def test_a_block_has_the_lock(self, store: Store) -> None:
        async with store.locks.hold("month", timeout=_MOMENT) as lock:
            await lock.check()
            assert (lock.lock_name, lock.key, lock.shared) == ("month", store.locks.key_of("month"), False)
            assert "month" in repr(lock)
        assert not await lock.release()

    @rule("LCK-09")
    async def test_a_lock_is_itself_a_block(self, store: Store) -> None:
        async with await held_lock(store, "month") as lock:
            await lock.check()
        assert await is_free(store, "month")

    @rule("LCK-10")
    async def test_a_block_without_the_lock_does_not_run(self, store: Store, other_store: Store) -> None:
        async with store.locks.hold("month"):
            with pytest.raises(LockNotAcquired) as refused:
                async with other_store.locks.hold("month", timeout=_MOMENT):
                    pytest.fail("the block must not run")
        assert refused.value.lock_name == "month"
        assert refused.value.waited >= _MOMENT.total_seconds()

    # Names

    @rule("LCK-05")
    async def test_different_names_do_not_meet(self, store: Store, other_store: Store) -> None:
        names: list[LockName] = ["a", "A", "a ", ("a",), ("a", 1), ("a", "1"), ("a", -1), "ü", "u\u0308", '["a",1]']
        async with AsyncExitStack() as stack:
            for place, name in enumerate(names):
                one = (store, other_store)[place % 2]
                await stack.enter_async_context(one.locks.hold(name, timeout=timedelta(0)))
            assert len({info.key for info in await store.locks.list_held()}) == len(names)

    @rule("LCK-13")
    async def test_the_number_of_a_name_is_the_documented_hash(self, store: Store) -> None:
        for name in ("backfill", ("backfill", 2024, 1), "größe", 'quo"te'):
            text = json.dumps(name, ensure_ascii=False, separators=(",", ":"))
            hashed = blake2b(f"cascade_state/{store.options.schema or ''}/lock/{text}".encode(), digest_size=8)
            assert store.locks.key_of(name) == int.from_bytes(hashed.digest(), "big", signed=True)

    @rule("LCK-13")
    async def test_names_at_the_limits_can_be_locked(self, store: Store) -> None:
        for name in ("x" * 512, "ü" * 256, ("m", 2**63 - 1, -(2**63)), ("",)):
            async with store.locks.hold(name) as lock:
                assert lock.lock_name == name
                (info,) = await store.locks.list_held()
                assert info.lock_name == name

    @rule("LCK-13")
    async def test_what_cannot_be_a_name_is_refused(self, store: Store) -> None:
        async with store.begin() as uow:
            for name in _NO_NAMES:
                for call in (store.locks.try_acquire, store.locks.is_held, uow.lock, attempted_block(store)):
                    with pytest.raises(InvalidArgument) as refused:
                        await call(name)
                    assert refused.value.argument == "name"
                with pytest.raises(InvalidArgument):
                    store.locks.key_of(name)

    @rule("LCK-13")
    async def test_options_that_cannot_be_are_refused(self, store: Store) -> None:
        refusals: list[dict[str, Any]] = [{"timeout": 1}, {"timeout": timedelta(-1)}, {"shared": timedelta(1)}]
        async with store.begin() as uow:
            for options in refusals:
                for call in (store.locks.try_acquire, uow.lock, attempted_block(store)):
                    with pytest.raises(InvalidArgument) as refused:
                        await call("month", **options)
                    assert {refused.value.argument} == set(options)

    # What is known of it

    @rule("LCK-07")
    async def test_everybody_sees_whether_it_is_held(self, store: Store, other_store: Store) -> None:
        assert not await store.locks.is_held("month")
        async with store.locks.hold("month"):
            for one in (store, other_store):
                assert await one.locks.is_held("month")
                assert not await one.locks.is_held("year")
            waiting = self.started(other_store.locks.try_acquire("month", timeout=None))
            await self.blocked(waiting)
        lock = await self.finished(waiting)
        assert lock is not None
        await lock.release()
        assert not await other_store.locks.is_held("month")

    @rule("LCK-08")
    async def test_everybody_sees_who_holds_it_and_who_waits(self, store: Store, open_store_again: OpenStore) -> None:
        before = datetime.now(UTC) - timedelta(minutes=1)
        async with open_store_again(application_name="the other") as other, store.locks.hold(("backfill", 2024, 1)):
            waiting = self.started(other.locks.try_acquire(("backfill", 2024, 1), timeout=None))
            await in_queue(store, 1)
            for one in (store, other):
                held, wanted = await one.locks.list_held()
                for info in (held, wanted):
                    assert info.lock_name == ("backfill", 2024, 1)
                    assert info.key == store.locks.key_of(("backfill", 2024, 1))
                    assert info.mode == "exclusive"
                    assert info.pid > 0
                    assert info.since is not None
                    assert before < info.since < datetime.now(UTC) + timedelta(minutes=1)
                assert (held.granted, wanted.granted) == (True, False)
                assert (held.application_name, wanted.application_name) == ("cascade_state", "the other")
                assert held.since is not None
                assert wanted.since is not None
                assert held.since <= wanted.since
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await self.finished(waiting)
        if not store.capabilities.cross_process:
            assert held.pid == os.getpid()

    @rule("LCK-08", "LCK-14")
    async def test_the_list_is_in_order_and_empty_in_the_end(self, store: Store, other_store: Store) -> None:
        async with AsyncExitStack() as stack:
            for name in ("d", "b", "a", "c"):
                await stack.enter_async_context(store.locks.hold(name))
            listed = await other_store.locks.list_held()
            assert {info.lock_name for info in listed} == {"a", "b", "c", "d"}
            assert [info.key for info in listed] == sorted(info.key for info in listed)
        assert await other_store.locks.list_held() == []

    # Not twice

    @rule("LCK-11")
    async def test_its_own_store_does_not_get_it_again(self, store: Store) -> None:
        async with store.locks.hold("month"):
            assert await store.locks.try_acquire("month") is None
            assert await store.locks.try_acquire("month", shared=True) is None
        assert await is_free(store, "month")

    @rule("LCK-12")
    async def test_a_release_counts_once(self, store: Store, other_store: Store) -> None:
        lock = await held_lock(store, "month")
        assert sorted(await asyncio.gather(*(lock.release() for _ in range(3)))) == [False, False, True]
        assert not await lock.release()
        async with other_store.locks.hold("month"):
            assert not await lock.release()
            assert not await is_free(store, "month")
        with pytest.raises(LockLost):
            await lock.check()

    @rule("LCK-14")
    async def test_a_hundred_locks_leave_nothing(self, store: Store, other_store: Store) -> None:
        for number in range(100):
            async with store.locks.hold(("backfill", number), timeout=timedelta(0)):
                pass
        assert await other_store.locks.list_held() == []

    # Beyond

    @rule("Errors")
    async def test_a_store_that_is_not_open_has_no_locks(self, open_store_again: OpenStore) -> None:
        opened: Any = open_store_again()
        with pytest.raises(CascadeStateError):
            await opened.locks.try_acquire("month")
        async with opened:
            pass
        for call in (opened.locks.try_acquire, opened.locks.is_held):
            with pytest.raises(StoreNotOpen):
                await call("month")
        with pytest.raises(StoreNotOpen):
            await opened.locks.list_held()
