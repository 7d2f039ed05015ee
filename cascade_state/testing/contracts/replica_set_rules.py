"""The rules of the machine that have to do with replica sets: who is there, and who owns which partition.

Which partition goes to whom is a store's own affair, within the fair share. So what is compared is how many each worker
has, and in which state: the sizes of the shares, and what a fence says.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from cascade_state.model.replica_sets import Membership
from cascade_state.testing.contracts.side_by_side import Operation, Pair, SideBySide, Target

__all__ = ["ReplicaSetRules"]

_SET = "workers"
_STALE_AFTER = timedelta(seconds=30)
_WORKERS = st.sampled_from(["a", "b", "c"])
_NUMBERS = st.integers(0, 30)


class ReplicaSetRules(SideBySide):
    """A replica set on both stores."""

    def __init__(self) -> None:
        self.shares: list[Pair[Membership]] = []  # that were told, the stale ones, too
        super().__init__()

    @rule(worker=_WORKERS, what=st.sampled_from(["join", "join", "beat", "beat", "keep", "leave"]))
    def change_membership(self, worker: str, what: str) -> None:
        told: list[Membership | None] = [None, None]
        keep = range(self.stores[0].options.partition_count) if what == "keep" else ()

        async def change(on: Target, side: int) -> Any:
            sets = on.replica_sets
            if what == "leave":
                return await sets.leave(_SET, worker)
            if what == "join":
                told[side] = membership = await sets.join(_SET, worker, stale_after=_STALE_AFTER)
            else:
                told[side] = membership = await sets.beat(_SET, worker, stale_after=_STALE_AFTER, keep=keep)
            return _sizes(membership)

        self.both(change)
        one, another = told
        if one is not None and another is not None:
            self.shares.append((one, another))

    @precondition(lambda self: self.units is not None and self.shares)
    @rule(number=_NUMBERS)
    def fence(self, number: int) -> None:
        """Fences the first partition of a share that was told once, number 0 being the latest."""
        shares = self.shares[-1 - number % len(self.shares)]
        if not all(share.generations for share in shares):
            return

        async def fence(on: Any, side: int) -> None:
            partition_id, generation = next(iter(sorted(shares[side].generations.items())))
            await on.fence(partition_id, generation, _SET)

        self.both(fence)

    def replica_set_looks(self) -> list[Operation[Any]]:
        """Returns what shows all that the stores know of the set, as far as they need not choose alike."""
        return [lambda on, side: on.replica_sets.list_workers(_SET), _owned]


def _sizes(membership: Membership) -> tuple[Any, ...]:
    sizes = map(len, (membership.generations, membership.releasing, membership.awaited))
    return membership.worker_id, membership.generation, tuple(sizes)


async def _owned(on: Target, side: int) -> dict[str, int]:
    assignments = await on.replica_sets.list_assignments(_SET)
    owned = Counter(f"{item.owner} {item.next_owner}" for item in assignments)
    return dict(sorted(owned.items()))
