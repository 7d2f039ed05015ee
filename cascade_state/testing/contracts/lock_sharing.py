"""What locks have beyond one holder: fencing tokens (LCK-15), and holders that share (LCK-16)."""

from __future__ import annotations

import asyncio

from cascade_state.abc import Store
from cascade_state.testing.contracts.base import OpenStore, StoreContract
from cascade_state.testing.contracts.locks import held_lock, in_queue
from cascade_state.testing.contracts.rules import rule

__all__ = ["LockSharingContract"]


class LockSharingContract(StoreContract):
    """Tokens and shared locks of `store.locks`."""

    @rule("LCK-15")
    async def test_fencing_tokens_grow_from_holder_to_holder(
        self, store: Store, other_store: Store, open_store_again: OpenStore
    ) -> None:
        tokens = []
        for one in (store, other_store, store):
            async with one.locks.hold("month") as lock:
                tokens.append(lock.fencing_token)
        async with open_store_again() as third, third.locks.hold("month") as lock:
            tokens.append(lock.fencing_token)
        assert tokens == sorted(set(tokens))

    @rule("LCK-15")
    async def test_fencing_tokens_are_in_the_order_of_the_holders(self, store: Store, other_store: Store) -> None:
        tokens = []

        async def visit(one: Store) -> None:
            for _ in range(4):
                async with one.locks.hold("room") as lock:
                    tokens.append(lock.fencing_token)

        await self.finished(asyncio.gather(*(visit(one) for one in (store, other_store, store, other_store))))
        assert tokens == sorted(set(tokens))

    @rule("LCK-15")
    async def test_those_who_share_have_tokens_of_their_own(self, store: Store, other_store: Store) -> None:
        attempts = [one.locks.try_acquire("month", shared=True) for one in (store, other_store) * 4]
        locks = await self.finished(asyncio.gather(*attempts))
        assert len({lock.fencing_token for lock in locks if lock is not None}) == 8
        highest = max(lock.fencing_token for lock in locks if lock is not None)
        for lock in locks:
            assert lock is not None
            await lock.release()
        async with store.locks.hold("month") as alone:
            assert alone.fencing_token > highest

    @rule("LCK-16")
    async def test_many_share_a_lock_and_one_has_it_alone(self, store: Store, other_store: Store) -> None:
        first, second = [await held_lock(one, "month", shared=True) for one in (store, other_store)]
        assert (first.shared, second.shared) == (True, True)
        assert {info.mode for info in await store.locks.list_held()} == {"shared"}
        waiting = self.started(store.locks.try_acquire("month", timeout=None))
        await self.blocked(waiting)
        await first.release()
        await self.blocked(waiting)
        await second.release()
        alone = await self.finished(waiting)
        assert alone is not None
        assert await other_store.locks.try_acquire("month", shared=True) is None
        await alone.release()

    @rule("LCK-16")
    async def test_who_wants_it_alone_is_not_passed_by_those_who_share(self, store: Store, other_store: Store) -> None:
        sharing = await held_lock(store, "month", shared=True)
        alone = self.started(other_store.locks.try_acquire("month", timeout=None))
        await in_queue(store, 1)
        assert await store.locks.try_acquire("month", shared=True) is None
        late = self.started(store.locks.try_acquire("month", shared=True, timeout=None))
        await in_queue(store, 2)
        await sharing.release()
        got = await self.finished(alone)
        assert got is not None
        assert not late.done()
        await got.release()
        shared = await self.finished(late)
        assert shared is not None
        await shared.release()

    @rule("LCK-16")
    async def test_those_who_share_go_on_when_the_one_before_them_gives_up(
        self, store: Store, other_store: Store
    ) -> None:
        async with store.locks.hold("month", shared=True):
            alone = self.started(other_store.locks.try_acquire("month", timeout=None))
            await in_queue(store, 1)
            late = self.started(store.locks.try_acquire("month", shared=True, timeout=None))
            await in_queue(store, 2)
            alone.cancel()
            shared = await self.finished(late)
            assert shared is not None
            await shared.release()
