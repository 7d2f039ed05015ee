"""Leases of instances, timers and deliveries: the token decides who may write (C-50, C-51)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import LeaseLost
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, OpenStore, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, Target, claim_deliveries
from cascade_state.testing.contracts.leased import KINDS, SHARED_WRITES, WRITES, Item, Leased, Write
from cascade_state.testing.contracts.rules import rule

__all__ = ["LeasesContract"]

_SECOND = timedelta(seconds=1)

_every_kind = pytest.mark.parametrize("kind", sorted(KINDS))
_every_write = pytest.mark.parametrize(("kind", "write"), WRITES)


class LeasesContract(StoreContract):
    """Who holds a thing may write it; whoever has lost it changes nothing."""

    async def _refused(self, leased: Leased, write: str, target: Target, item: Item) -> None:
        """Checks that the write is refused for the item's lease, with an error that says what was lost."""
        with pytest.raises(LeaseLost) as caught:
            await leased.writes[write](target, item)
        assert (caught.value.entity, caught.value.key) == (leased.entity, leased.key(item))
        if item.lease is not None:
            assert (caught.value.token, caught.value.holder) == (item.lease.token, item.lease.holder)

    @rule("C-50")
    @_every_write
    async def test_the_current_token_writes(self, store: Store, other_store: Store, kind: str, write: str) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        item = await leased.claim_one(store)
        await leased.writes[write](other_store, item)

    @rule("C-50")
    @_every_write
    async def test_a_stale_token_does_not(
        self, store: Store, other_store: Store, clock: FrozenClock, kind: str, write: str
    ) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        stale = await leased.claim_one(store, "worker-1")
        clock.advance(LEASE)
        current = await leased.claim_one(other_store, "worker-2")
        await self._refused(leased, write, store, stale)
        assert await leased.renew(store, [stale]) == []
        assert await leased.renew(other_store, [current], LEASE) == [current]  # nothing was written
        await leased.writes[write](other_store, current)

    @rule("C-50")
    @_every_write
    async def test_a_stale_token_of_the_same_holder_does_not_either(
        self, store: Store, clock: FrozenClock, kind: str, write: str
    ) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        stale = await leased.claim_one(store, "worker-1")
        clock.advance(LEASE)
        current = await leased.claim_one(store, "worker-1")
        await self._refused(leased, write, store, stale)
        assert await leased.renew(store, [stale, current]) == [current]
        await leased.writes[write](store, current)

    @rule("C-50")
    @_every_write
    @pytest.mark.parametrize("off_by", [-1, 1, 1 << 40])
    async def test_a_foreign_token_does_not(self, store: Store, kind: str, write: str, off_by: int) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        item = await leased.claim_one(store)
        foreign = replace(item, lease=replace(item.lease, token=item.lease.token + off_by))
        await self._refused(leased, write, store, foreign)
        assert await leased.renew(store, [foreign]) == []
        await leased.writes[write](store, item)

    @rule("C-50")
    @_every_write
    async def test_a_released_token_does_not(self, store: Store, kind: str, write: str) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        item = await leased.claim_one(store)
        await leased.release(store, [item])
        await self._refused(leased, write, store, item)
        assert await leased.renew(store, [item]) == []
        await leased.claim_one(store)
        await self._refused(leased, write, store, item)

    @rule("C-50")
    @pytest.mark.parametrize(
        # An advance of a flow without a lease checks the version only.
        ("kind", "write"),
        [(kind, write) for kind, write in WRITES if (kind, write) != ("flow instance", "advance")],
    )
    async def test_what_was_never_claimed_is_not_held(self, store: Store, kind: str, write: str) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        item = await leased.claim_one(store)
        with pytest.raises(LeaseLost):
            await leased.writes[write](store, replace(item, lease=None))
        await leased.writes[write](store, item)

    @rule("C-50")
    @_every_write
    async def test_an_expired_lease_that_nobody_took_is_still_current(
        self, store: Store, clock: FrozenClock, kind: str, write: str
    ) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        item = await leased.claim_one(store)
        clock.advance(100 * LEASE)
        await leased.writes[write](store, item)

    @rule("C-50")
    @_every_write
    @pytest.mark.parametrize("commits", [True, False])
    async def test_the_token_is_checked_in_the_statement_that_writes(
        self, store: Store, other_store: Store, clock: FrozenClock, kind: str, write: str, commits: bool
    ) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        item = await leased.claim_one(store, "worker-1")
        clock.advance(LEASE)
        async with other_store.begin() as uow:
            await leased.claim_one(uow, "worker-2")
            writing = self.started(self._outcome(leased.writes[write], store, item))
            await self.settled(writing)
            if not commits:
                await uow.rollback()
        lost = await self.finished(writing)
        assert isinstance(lost, LeaseLost) is commits

    async def _outcome(self, write: Write, target: Target, item: Item) -> LeaseLost | None:
        try:
            await write(target, item)
        except LeaseLost as error:
            return error
        return None

    # Renewing

    @rule("C-50", "C-51")
    @_every_kind
    async def test_renewing_extends_the_lease_from_now(
        self, store: Store, other_store: Store, clock: FrozenClock, kind: str
    ) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        item = await leased.claim_one(store)
        clock.advance(LEASE - MOMENT)
        (renewed,) = await leased.renew(store, [item], 2 * LEASE)
        assert renewed == replace(item, lease=replace(item.lease, expires_at=clock.now() + 2 * LEASE))
        clock.advance(2 * LEASE - MOMENT)
        assert await leased.claim(other_store, "worker-2") == []
        clock.advance(MOMENT)
        assert len(await leased.claim(other_store, "worker-2")) == 1

    @rule("C-50")
    @_every_kind
    async def test_renewing_returns_what_it_renewed_and_leaves_out_what_was_lost(
        self, store: Store, other_store: Store, clock: FrozenClock, kind: str
    ) -> None:
        leased = KINDS[kind]
        for _ in range(4):
            await leased.add(store)
        items = await leased.claim(store, "worker-1")
        await leased.release(store, [items[2]])
        clock.advance(_SECOND)
        renewed = await leased.renew(store, items, LEASE)
        kept = [items[0], items[1], items[3]]
        assert [leased.key(item) for item in renewed] == [leased.key(item) for item in kept]
        assert {item.lease.expires_at for item in renewed} == {clock.now() + LEASE}
        (taken,) = await leased.claim(other_store, "worker-2")
        assert leased.key(taken) == leased.key(items[2])

    @rule("C-50")
    @_every_kind
    async def test_an_expired_lease_that_nobody_took_can_be_renewed(
        self, store: Store, other_store: Store, clock: FrozenClock, kind: str
    ) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        item = await leased.claim_one(store)
        clock.advance(2 * LEASE)
        (renewed,) = await leased.renew(store, [item])
        assert renewed.lease.expires_at == clock.now() + LEASE
        assert await leased.claim(other_store, "worker-2") == []

    @rule("C-50")
    @_every_kind
    async def test_renewing_nothing_renews_nothing(self, store: Store, kind: str) -> None:
        assert await KINDS[kind].renew(store, []) == []

    @rule("C-50", "C-02")
    @_every_kind
    async def test_a_renewal_that_is_rolled_back_did_not_happen(
        self, store: Store, other_store: Store, clock: FrozenClock, kind: str
    ) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        item = await leased.claim_one(store)
        async with store.begin() as uow:
            assert len(await leased.renew(uow, [item], 10 * LEASE)) == 1
            await uow.rollback()
        clock.advance(LEASE)
        assert len(await leased.claim(other_store, "worker-2")) == 1

    # Several at once

    @rule("C-50")
    @_every_kind
    async def test_releasing_is_all_or_nothing(
        self, store: Store, other_store: Store, clock: FrozenClock, kind: str
    ) -> None:
        leased = KINDS[kind]
        for _ in range(3):
            await leased.add(store)
        items = await leased.claim(store, "worker-1")
        await leased.release(store, [items[1]])
        with pytest.raises(LeaseLost) as caught:
            await leased.release(store, items)
        assert (caught.value.entity, caught.value.key) == (leased.entity, leased.key(items[1]))
        assert [leased.key(item) for item in await leased.claim(other_store, "worker-2")] == [leased.key(items[1])]
        await leased.release(store, [items[0], items[2]])
        assert len(await leased.claim(other_store, "worker-2")) == 2

    @rule("C-50")
    @pytest.mark.parametrize("kind", ["timer", "delivery"])
    async def test_completing_is_all_or_nothing(self, store: Store, clock: FrozenClock, kind: str) -> None:
        leased = KINDS[kind]
        for _ in range(3):
            await leased.add(store)
        items = await leased.claim(store, "worker-1")
        await leased.release(store, [items[2]])
        repository = getattr(store, leased.repository)
        with pytest.raises(LeaseLost) as caught:
            await repository.complete(items)
        assert caught.value.key == leased.key(items[2])
        assert [leased.key(item) for item in await leased.renew(store, items)] == [
            leased.key(item) for item in items[:2]
        ]
        await repository.complete(items[:2])
        clock.advance(LEASE)
        assert [leased.key(item) for item in await leased.claim(store, "worker-2")] == [leased.key(items[2])]

    @rule("C-50")
    @_every_kind
    async def test_the_first_lost_item_is_named(self, store: Store, kind: str) -> None:
        leased = KINDS[kind]
        for _ in range(4):
            await leased.add(store)
        items = await leased.claim(store, "worker-1")
        await leased.release(store, [items[1], items[3]])
        with pytest.raises(LeaseLost) as caught:
            await leased.release(store, [items[2], items[3], items[1], items[0]])
        assert caught.value.key == leased.key(items[3])

    @rule("C-50")
    @pytest.mark.parametrize("stale_first", [True, False], ids=["stale first", "stale last"])
    @pytest.mark.parametrize(("kind", "write"), SHARED_WRITES)
    async def test_a_stale_token_beside_the_current_one_is_lost(
        self, store: Store, clock: FrozenClock, kind: str, write: str, stale_first: bool
    ) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        stale = await leased.claim_one(store, "worker-1")
        clock.advance(LEASE)
        current = await leased.claim_one(store, "worker-1")
        with pytest.raises(LeaseLost) as caught:
            await leased.shared_writes[write](store, [stale, current] if stale_first else [current, stale])
        assert (caught.value.key, caught.value.token) == (leased.key(stale), stale.lease.token)
        assert await leased.claim(store, "worker-2") == []
        await leased.shared_writes[write](store, [current, current])

    # Tokens

    @rule("C-50")
    @_every_kind
    async def test_tokens_only_grow(self, store: Store, other_store: Store, clock: FrozenClock, kind: str) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        tokens = []
        for turn in range(8):
            item = await leased.claim_one((store, other_store)[turn % 2], f"worker-{turn}")
            tokens.append(item.lease.token)
            if turn % 4 == 0:
                clock.advance(LEASE)
            elif turn % 4 == 1:
                await leased.release(store, [item])
            elif turn % 4 == 2:
                (renewed,) = await leased.renew(store, [item])
                assert renewed.lease.token == item.lease.token
                await leased.release(store, [renewed])
            elif "retry" in leased.writes:
                await leased.writes["retry"](store, item)
                clock.advance(_SECOND)
            else:
                await leased.writes["advance"](store, item)
                clock.advance(LEASE)
        assert tokens == sorted(set(tokens))

    @rule("C-50")
    async def test_tokens_of_a_wait_grow_from_one_delivery_to_the_next(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        tokens, held = [], []
        for number in range(6):
            await store.correlations.publish("parcel-77", number, mode="fifo")
            (delivery,) = await claim_deliveries(store)
            assert delivery.lease is not None
            tokens.append(delivery.lease.token)
            held.append(delivery)
            if number % 3 == 0:
                await store.correlations.give_up(delivery, reason="skipped")
                continue
            acknowledged = [delivery] if number % 3 == 1 else []
            flow = await store.advance(flow.resume().suspend_for_event("ship", "parcel-77"), completes=acknowledged)
        assert tokens == sorted(set(tokens))
        await store.correlations.publish("parcel-77", "last", mode="fifo")
        (current,) = await claim_deliveries(store)
        for earlier in held:
            with pytest.raises(LeaseLost):
                await store.correlations.complete([earlier])
        await store.correlations.complete([current])

    @rule("C-50")
    async def test_the_lease_of_a_removed_thing_is_lost(self, store: Store) -> None:
        for leased in KINDS.values():
            await leased.add(store)
            item = await leased.claim_one(store)
            await store.flow_instances.remove(item.flow_instance_id)
            with pytest.raises(LeaseLost):
                await leased.release(store, [item])
            assert await leased.renew(store, [item]) == []

    @rule("C-50")
    async def test_the_lease_of_a_flow_ends_with_it(self, store: Store) -> None:
        leased = KINDS["flow instance"]
        await leased.add(store)
        item = await leased.claim_one(store)
        ended = await store.advance(item.complete(), lease=item.lease)
        assert ended.lease is None
        with pytest.raises(LeaseLost):
            await store.flow_instances.release([item])

    # C-51

    @rule("C-51")
    @_every_kind
    async def test_expiry_is_judged_by_the_clock_of_the_store_that_claims(
        self, store: Store, open_store_again: OpenStore, clock: FrozenClock, kind: str
    ) -> None:
        leased = KINDS[kind]
        await leased.add(store)
        await leased.claim_one(store)
        ahead, behind = FrozenClock(clock.now() + LEASE), FrozenClock(clock.now() + LEASE - MOMENT)
        async with open_store_again(clock=behind) as late, open_store_again(clock=ahead) as early:
            assert await leased.claim(late, "worker-2") == []
            (item,) = await leased.claim(early, "worker-3")
        assert item.lease.expires_at == ahead.now() + LEASE
