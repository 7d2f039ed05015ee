"""Replica sets: who is there, who owns which partition, and who may write."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import timedelta

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.errors import AlreadyExists, InvalidArgument, LeaseLost, UsageError
from cascade_state.model.replica_sets import Membership, PartitionAssignment
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["ReplicaSetsContract"]

_SET = "shipping"
_STALE_AFTER = timedelta(seconds=30)
_MOMENT = timedelta(microseconds=1)


async def _join(store: Store | UnitOfWork, worker_id: str, replica_set: str = _SET) -> Membership:
    return await store.replica_sets.join(replica_set, worker_id, stale_after=_STALE_AFTER)


async def _beat(store: Store | UnitOfWork, worker_id: str, *, keep: Collection[int] = ()) -> Membership:
    return await store.replica_sets.beat(_SET, worker_id, stale_after=_STALE_AFTER, keep=keep)


async def _beat_all(store: Store, *workers: str) -> dict[str, Membership]:
    """Two heartbeats of everybody, after which nothing is on its way any more."""
    for _ in range(2):
        shares = {worker: await _beat(store, worker) for worker in workers}
    return shares


async def _owners(store: Store, replica_set: str = _SET) -> Mapping[int, PartitionAssignment]:
    return {item.partition_id: item for item in await store.replica_sets.list_assignments(replica_set)}


def _assert_fair(shares: Mapping[str, Membership], partition_count: int) -> None:
    counted = Counter(partition for share in shares.values() for partition in share.generations)
    assert counted == Counter(range(partition_count))
    sizes = [len(share.generations) for share in shares.values()]
    assert max(sizes) - min(sizes) <= 1
    assert all(share.is_settled for share in shares.values())


class ReplicaSetsContract(StoreContract):
    """Every partition has one owner and a generation that grows with each change of owner."""

    # Fair shares

    @rule("ORC-01")
    async def test_the_first_worker_owns_every_partition_at_once(self, store: Store) -> None:
        share = await _join(store, "a")
        count = store.options.partition_count
        assert share.generations == dict.fromkeys(range(count), 1)
        assert (share.replica_set, share.worker_id, share.generation) == (_SET, "a", 1)
        assert share.is_settled
        assert share.partitions == frozenset(range(count))
        assert await _beat(store, "a") == share

    @rule("ORC-02")
    async def test_a_second_worker_gets_its_half_when_the_first_hands_it_over(self, store: Store) -> None:
        await _join(store, "a")
        joined = await _join(store, "b")
        half = store.options.partition_count // 2
        assert (joined.generations, len(joined.awaited), joined.is_settled) == ({}, half, False)
        assert (await _beat(store, "b")).awaited == joined.awaited
        first = await _beat(store, "a")
        second = await _beat(store, "b")
        assert second.partitions == joined.awaited
        assert set(second.generations.values()) == {2}
        _assert_fair({"a": first, "b": second}, 2 * half)

    @rule("ORC-02")
    async def test_what_is_kept_is_announced_and_handed_over_later(self, store: Store) -> None:
        await _join(store, "a")
        promised = sorted((await _join(store, "b")).awaited)
        share = await _beat(store, "a", keep=promised[:2])
        assert share.releasing == dict.fromkeys(promised[:2], 1)
        assert not share.partitions & set(promised)
        assert (await _beat(store, "b")).awaited == set(promised[:2])
        assert (await _beat(store, "a")).is_settled
        assert (await _beat(store, "b")).partitions == set(promised)

    @rule("ORC-03", "ORC-11")
    async def test_shares_are_fair_and_no_partition_moves_without_need(self, store: Store) -> None:
        count = store.options.partition_count
        workers: list[str] = []
        for number in [*range(1, 8), *range(6, 0, -1)]:
            before = {partition: item.generation for partition, item in (await _owners(store)).items()}
            if number > len(workers):
                workers.append(f"worker-{number}")
                await _join(store, workers[-1])
                needed = count if number == 1 else count // number
            else:
                leaver = workers.pop(len(workers) // 2)
                needed = sum(item.owner == leaver for item in (await _owners(store)).values())
                assert await store.replica_sets.leave(_SET, leaver)
            _assert_fair(await _beat_all(store, *workers), count)
            moved = sum(
                item.generation - before.get(partition, 0) for partition, item in (await _owners(store)).items()
            )
            assert moved == needed, (number, workers)

    @rule("ORC-13")
    async def test_twenty_workers_that_join_at_once_all_get_their_share_in_one_move(
        self, store: Store, other_store: Store
    ) -> None:
        first = await _join(store, "worker-00")
        workers = [f"worker-{number:02}" for number in range(20)]
        joins = [_join((store, other_store)[number % 2], worker) for number, worker in enumerate(workers) if number]
        await self.finished(asyncio.gather(*joins))
        await self.finished(asyncio.gather(*(_beat(store, worker) for worker in workers)))
        shares = dict(
            zip(
                workers, await self.finished(asyncio.gather(*(_beat(store, worker) for worker in workers))), strict=True
            )
        )
        _assert_fair(shares, store.options.partition_count)
        assert {item.generation for item in (await _owners(store)).values()} == {1, 2}
        assert shares["worker-00"].generation == 20
        assert shares["worker-00"].generations.items() <= first.generations.items()

    # Joining and leaving

    @rule("ORC-12")
    async def test_a_worker_id_that_is_taken_is_refused(self, store: Store, other_store: Store) -> None:
        share = await _join(store, "a")
        with pytest.raises(AlreadyExists) as caught:
            await _join(other_store, "a")
        assert caught.value.key == "a"
        assert await _beat(store, "a") == share
        async with store.begin() as uow:
            await _join(uow, "b")
            with pytest.raises(AlreadyExists):
                await _join(uow, "a")
        assert [worker.worker_id for worker in await store.replica_sets.list_workers()] == ["a", "b"]

    @rule("ORC-04", "ORC-12")
    async def test_leaving_gives_everything_to_the_others_at_once(self, store: Store) -> None:
        for worker in ("a", "b", "c"):
            await _join(store, worker)
        before = await _beat_all(store, "a", "b", "c")
        assert await store.replica_sets.leave(_SET, "b")
        owners = await _owners(store)
        assert {owner.owner for owner in owners.values()} == {"a", "c"}
        for partition, generation in before["b"].generations.items():
            assert owners[partition].generation == generation + 1
        assert await store.replica_sets.leave(_SET, "b") is False
        with pytest.raises(LeaseLost):
            await _beat(store, "b")
        _assert_fair({worker: await _beat(store, worker) for worker in ("a", "c")}, store.options.partition_count)

    @rule("ORC-11")
    async def test_a_worker_that_leaves_before_it_got_anything_costs_no_move(self, store: Store) -> None:
        share = await _join(store, "a")
        await _join(store, "b")
        await store.replica_sets.leave(_SET, "b")
        assert (await _beat(store, "a")).generations == share.generations

    @rule("ORC-11")
    async def test_when_the_last_one_has_left_nobody_owns_anything(self, store: Store) -> None:
        share = await _join(store, "a")
        await store.replica_sets.leave(_SET, "a")
        owners = await _owners(store)
        assert {(item.owner, item.next_owner, item.generation) for item in owners.values()} == {(None, None, 2)}
        async with store.begin() as uow:
            with pytest.raises(LeaseLost):
                await uow.fence(0, share.generations[0], _SET)
        again = await _join(store, "b")
        assert set(again.generations.values()) == {3}
        assert again.generation == 3

    @rule("ORC-12")
    async def test_leaving_what_one_never_joined_changes_nothing(self, store: Store) -> None:
        assert await store.replica_sets.leave("nobody", "a") is False
        assert await store.replica_sets.list_assignments("nobody") == []
        share = await _join(store, "a")
        assert await store.replica_sets.leave(_SET, "b") is False
        assert await _beat(store, "a") == share

    @rule("ORC-12")
    async def test_the_generation_of_the_set_counts_changes_of_its_membership(self, store: Store) -> None:
        assert (await _join(store, "a")).generation == 1
        assert (await _join(store, "b")).generation == 2
        await store.replica_sets.leave(_SET, "a")
        assert (await _beat(store, "b")).generation == 3
        assert (await _beat(store, "b")).generation == 3

    @rule("ORC-12")
    async def test_joining_commits_and_rolls_back_with_its_unit_of_work(self, store: Store, other_store: Store) -> None:
        share = await _join(store, "a")
        async with store.begin() as uow:
            await _join(uow, "b")
            waiting = self.started(_join(other_store, "c"))
            await self.blocked(waiting)
            assert await _beat(other_store, "a") == share
            await uow.rollback()
        await self.finished(waiting)
        assert [worker.worker_id for worker in await store.replica_sets.list_workers(_SET)] == ["a", "c"]
        _assert_fair(await _beat_all(store, "a", "c"), store.options.partition_count)

    # Going silent

    @rule("C-51", "ORC-05")
    async def test_a_silent_worker_is_replaced_from_its_instant_on_by_whoever_beats(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        for worker in ("a", "b", "c"):
            await _join(store, worker)
        before = await _beat_all(store, "a", "b", "c")
        clock.advance(_STALE_AFTER - _MOMENT)
        shares = await _beat_all(store, "a", "c")
        assert shares["a"].generations == before["a"].generations
        clock.advance(_MOMENT)
        _assert_fair(await _beat_all(other_store, "c", "a"), store.options.partition_count)
        assert [worker.worker_id for worker in await store.replica_sets.list_workers()] == ["a", "c"]
        assert (await _beat(store, "a")).generation == before["a"].generation + 1
        with pytest.raises(LeaseLost) as caught:
            await _beat(store, "b")
        assert (caught.value.key, caught.value.holder) == (_SET, "b")
        for partition, generation in list(before["b"].generations.items())[:3]:
            async with store.begin() as uow:
                with pytest.raises(LeaseLost):
                    await uow.fence(partition, generation, _SET)

    @rule("ORC-05")
    async def test_whoever_joins_removes_the_silent_and_has_their_share_at_once(
        self, store: Store, clock: FrozenClock
    ) -> None:
        for worker in ("a", "b"):
            await _join(store, worker)
        await _beat_all(store, "a", "b")
        clock.advance(_STALE_AFTER)
        share = await _join(store, "c")
        assert len(share.generations) == store.options.partition_count
        assert share.generation == 5

    @rule("ORC-11")
    async def test_a_worker_that_was_silent_but_not_replaced_goes_on(self, store: Store, clock: FrozenClock) -> None:
        share = await _join(store, "a")
        clock.advance(10 * _STALE_AFTER)
        assert (await store.statistics()).workers_alive == 0
        assert await _beat(store, "a") == share
        assert (await store.statistics()).workers_alive == 1

    @rule("ORC-11")
    async def test_each_worker_has_its_own_time_out(self, store: Store, clock: FrozenClock) -> None:
        await _join(store, "a")
        await store.replica_sets.join(_SET, "b", stale_after=3 * _STALE_AFTER)
        await store.replica_sets.beat(_SET, "a", stale_after=_STALE_AFTER)
        clock.advance(2 * _STALE_AFTER)
        await store.replica_sets.beat(_SET, "a", stale_after=_STALE_AFTER)
        (first, second) = await store.replica_sets.list_workers(_SET)
        assert (first.stale_after, second.stale_after) == (_STALE_AFTER, 3 * _STALE_AFTER)
        assert second.is_alive
        clock.advance(_STALE_AFTER)
        await store.replica_sets.beat(_SET, "b", stale_after=_STALE_AFTER)
        assert [worker.worker_id for worker in await store.replica_sets.list_workers(_SET)] == ["b"]

    @rule("ORC-05", "ORC-12")
    async def test_two_that_notice_a_silent_worker_at_once_replace_it_once(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        for worker in ("a", "b", "c"):
            await _join(store, worker)
        await _beat_all(store, "a", "b", "c")
        clock.advance(_STALE_AFTER - _MOMENT)
        await _beat_all(store, "a", "b")
        clock.advance(_MOMENT)
        await self.finished(asyncio.gather(*(_beat(on, worker) for on in (store, other_store) for worker in "ab")))
        shares = await _beat_all(store, "a", "b")
        _assert_fair(shares, store.options.partition_count)
        assert shares["a"].generation == 4
        assert {item.generation for item in (await _owners(store)).values()} <= {1, 2, 3}

    @rule("ORC-12")
    async def test_a_heartbeat_leaves_a_change_of_membership_to_whoever_is_at_it(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        for worker in ("a", "b"):
            await _join(store, worker)
        shares = await _beat_all(store, "a", "b")
        clock.advance(_STALE_AFTER)
        await _beat(store, "a", keep=range(store.options.partition_count))
        await _join(store, "c")
        async with store.begin() as uow:
            await _join(uow, "d")
            assert (await self.finished(_beat(other_store, "a"))).generation == shares["a"].generation + 2
        assert (await _beat(other_store, "a")).generation == shares["a"].generation + 3

    @rule("ORC-12")
    async def test_workers_of_a_set_that_was_given_up_are_forgotten_after_a_day(
        self, store: Store, clock: FrozenClock
    ) -> None:
        await _join(store, "a", "abandoned")
        await _join(store, "b")
        clock.advance(_STALE_AFTER + timedelta(days=1) - _MOMENT)
        await _join(store, "c")
        assert [worker.worker_id for worker in await store.replica_sets.list_workers()] == ["a", "c"]
        clock.advance(_MOMENT)
        await _join(store, "d")
        assert [worker.worker_id for worker in await store.replica_sets.list_workers()] == ["c", "d"]
        share = await _join(store, "e", "abandoned")
        assert set(share.generations.values()) == {2}

    # The fence

    @rule("C-50", "ORC-13")
    async def test_a_fence_passes_for_the_present_generation_only(self, store: Store) -> None:
        share = await _join(store, "a")
        await _join(store, "a", "billing")
        await _join(store, "b")
        await _beat_all(store, "a", "b")
        owners = await _owners(store)
        moved = next(partition for partition, item in owners.items() if item.owner == "b")
        stayed = next(partition for partition, item in owners.items() if item.owner == "a")
        async with store.begin() as uow:
            await uow.fence(stayed, share.generations[stayed], _SET)
            await uow.fence(moved, 2, _SET)
            await uow.fence(moved, 1, "billing")
            for partition, generation, replica_set in (
                (moved, 1, _SET),
                (moved, 3, _SET),
                (stayed, 0, _SET),
                (moved, 2, "billing"),
                (moved, 2, "nobody"),
            ):
                with pytest.raises(LeaseLost) as caught:
                    await uow.fence(partition, generation, replica_set)
                assert (caught.value.key, caught.value.token) == (partition, generation)
            await uow.fence(stayed, 1, _SET)

    @rule("ORC-13")
    async def test_while_a_fence_is_held_the_partition_stays_and_the_others_go(
        self, store: Store, other_store: Store
    ) -> None:
        await _join(store, "a")
        promised = sorted((await _join(store, "b")).awaited)
        async with store.begin() as one, other_store.begin() as another:
            await one.fence(promised[0], 1, _SET)
            await another.fence(promised[0], 1, _SET)
            await another.fence(promised[1], 1, _SET)
            share = await self.finished(_beat(store, "a"))
            assert share.releasing == dict.fromkeys(promised[:2], 1)
            await another.rollback()
            assert (await self.finished(_beat(store, "a"))).releasing == {promised[0]: 1}
            assert (await _beat(store, "b")).awaited == {promised[0]}
        assert (await _beat(store, "a")).is_settled
        assert (await _beat(store, "b")).partitions == set(promised)

    @rule("ORC-13")
    async def test_a_fence_waits_for_a_change_of_owner_that_is_under_way_and_then_refuses(
        self, store: Store, other_store: Store
    ) -> None:
        await _join(store, "a")
        promised = min((await _join(store, "b")).awaited)
        async with store.begin() as writer:
            async with other_store.begin() as mover:
                await _beat(mover, "a")
                waiting = self.started(writer.fence(promised, 1, _SET))
                await self.blocked(waiting)
            with pytest.raises(LeaseLost):
                await self.finished(waiting)

    @rule("ORC-13")
    async def test_a_partition_fenced_while_its_owner_left_is_taken_when_the_fence_is_gone(
        self, store: Store, other_store: Store
    ) -> None:
        await _join(store, "a")
        await _join(store, "b")
        shares = await _beat_all(store, "a", "b")
        fenced = min(shares["b"].partitions)
        async with other_store.begin() as uow:
            await uow.fence(fenced, 2, _SET)
            assert await self.finished(store.replica_sets.leave(_SET, "b"))
            assert (await self.finished(_beat(store, "a"))).awaited == {fenced}
        share = await _beat(store, "a")
        assert len(share.generations) == store.options.partition_count
        assert share.generations[fenced] == 3

    async def test_a_fence_of_a_silent_worker_delays_nothing_but_its_partition(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        await _join(store, "a")
        await _join(store, "b")
        shares = await _beat_all(store, "a", "b")
        fenced = min(shares["b"].partitions)
        async with other_store.begin() as uow:
            await uow.fence(fenced, 2, _SET)
            clock.advance(_STALE_AFTER - _MOMENT)
            await _beat(store, "a")
            clock.advance(_MOMENT)
            share = await self.finished(_beat(store, "a"))
            assert share.awaited == {fenced}
            assert len(share.generations) == store.options.partition_count - 1
        assert (await _beat(store, "a")).generations[fenced] == 3

    async def test_a_fence_is_refused_where_nothing_may_be_written(self, store: Store) -> None:
        share = await _join(store, "a")
        async with store.begin(read_only=True) as uow:
            with pytest.raises(UsageError):
                await uow.fence(0, share.generations[0], _SET)
        with pytest.raises(UsageError):
            await uow.fence(0, share.generations[0], _SET)

    @rule("C-10")
    async def test_a_fence_refuses_what_cannot_be_a_partition_a_generation_or_a_set(self, store: Store) -> None:
        async with store.begin() as uow:
            for arguments in (
                (-1, 1, _SET),
                (store.options.partition_count, 1, _SET),
                ("0", 1, _SET),
                (0, -1, _SET),
                (0, 1 << 63, _SET),
                (0, 1, ""),
            ):
                with pytest.raises(InvalidArgument):
                    await uow.fence(*arguments)

    # Sets side by side, and what people see

    @rule("ORC-08")
    async def test_sets_know_nothing_of_each_other(self, store: Store, clock: FrozenClock) -> None:
        await _join(store, "a")
        other = await _join(store, "a", "billing")
        await _join(store, "b", "billing")
        assert len((await _beat(store, "a")).generations) == store.options.partition_count
        assert {item.owner for item in (await _owners(store, "billing")).values()} == {"a"}
        await store.replica_sets.leave(_SET, "a")
        share = await store.replica_sets.beat("billing", "a", stale_after=_STALE_AFTER)
        assert share.generations.items() <= other.generations.items()
        assert share.generation == 2

    @rule("ORC-12")
    async def test_workers_are_listed_by_set_and_id(self, store: Store, clock: FrozenClock) -> None:
        started_at = clock.now()
        await store.replica_sets.join(_SET, "b", stale_after=_STALE_AFTER, metadata={"host": "rhine", "port": [1, 2]})
        await _join(store, "a")
        await _join(store, "c", "billing")
        clock.advance(_STALE_AFTER)
        await store.replica_sets.beat("billing", "c", stale_after=_STALE_AFTER)
        listed = await store.replica_sets.list_workers(limit=2)
        assert [(item.replica_set, item.worker_id) for item in listed] == [("billing", "c"), (_SET, "a")]
        (last,) = await store.replica_sets.list_workers(limit=2, cursor=listed.next_cursor)
        assert (last.worker_id, last.metadata) == ("b", {"host": "rhine", "port": [1, 2]})
        assert (last.started_at, last.heartbeat_at, last.is_alive) == (started_at, started_at, False)
        assert (listed[0].heartbeat_at, listed[0].is_alive) == (clock.now(), True)
        assert [item.worker_id for item in await store.replica_sets.list_workers(_SET)] == ["a", "b"]
        assert (await store.statistics()).workers_alive == 1

    @rule("ORC-12")
    async def test_assignments_say_who_owns_and_who_is_next(self, store: Store) -> None:
        await _join(store, "a")
        awaited = (await _join(store, "b")).awaited
        listed = await store.replica_sets.list_assignments(_SET)
        assert [item.partition_id for item in listed] == list(range(store.options.partition_count))
        for item in listed:
            assert (item.owner, item.generation) == ("a", 1)
            assert item.next_owner == ("b" if item.partition_id in awaited else None)
