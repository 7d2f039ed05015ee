"""The plan of a replica set: always fair, never a move more than needed, the same everywhere."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cascade_state.model.fair_share import Held, planned_owners

WORKERS = [f"worker-{number}" for number in range(9)]

holders = st.one_of(st.none(), st.sampled_from([*WORKERS, "gone"]))
partitions = st.lists(st.builds(Held, owner=holders, target=holders), max_size=64).map(
    lambda held: dict(enumerate(held))
)
groups = st.sets(st.sampled_from(WORKERS))


@given(partitions, groups)
def test_every_plan_is_fair_and_moves_as_little_as_possible(partitions: dict[int, Held], workers: set[str]) -> None:
    planned = planned_owners(partitions, workers)
    assert planned.keys() == partitions.keys()
    if not workers:
        assert set(planned.values()) <= {None}
        return
    counted = Counter(planned.values())
    sizes = sorted((counted[worker] for worker in workers), reverse=True)
    share, odd_ones = divmod(len(partitions), len(workers))
    assert sizes == [share + 1] * odd_ones + [share] * (len(workers) - odd_ones)
    moved = sum(planned[partition] != held.owner for partition, held in partitions.items())
    # The most that can stay: sizes are given, so the largest holdings go with the largest shares.
    owned = Counter(held.owner for held in partitions.values())
    stays = sum(
        min(size, held) for size, held in zip(sizes, sorted((owned[w] for w in workers), reverse=True), strict=True)
    )
    assert moved == len(partitions) - stays


@given(partitions, groups)
def test_a_plan_that_was_carried_out_needs_no_change(partitions: dict[int, Held], workers: set[str]) -> None:
    planned = planned_owners(partitions, workers)
    done = {partition: Held(owner, owner) for partition, owner in planned.items()}
    assert planned_owners(done, workers) == planned


@given(partitions, groups, st.randoms())
def test_the_order_in_which_things_are_told_does_not_matter(
    partitions: dict[int, Held], workers: set[str], random: object
) -> None:
    told = dict(reversed(partitions.items()))
    assert planned_owners(told, sorted(workers)) == planned_owners(partitions, sorted(workers, reverse=True))


@given(partitions, groups)
def test_a_plan_under_way_is_kept(partitions: dict[int, Held], workers: set[str]) -> None:
    planned = planned_owners(partitions, workers)
    under_way = {partition: Held(held.owner, planned[partition]) for partition, held in partitions.items()}
    assert planned_owners(under_way, workers) == planned


def test_whoever_joins_takes_from_whoever_is_draining_already() -> None:
    owned = {partition: Held("a", "a") for partition in range(12)}
    planned = planned_owners(owned, ["a", "b"])
    promised = {partition for partition, owner in planned.items() if owner == "b"}
    again = planned_owners({partition: Held("a", planned[partition]) for partition in owned}, ["a", "b", "c"])
    assert promised <= {partition for partition, owner in again.items() if owner != "a"}
