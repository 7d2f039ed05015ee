"""Who is to own which partition: a fair share for each worker, moving no more partitions than needed.

The one idea: the plan starts from the present owners, not from an earlier plan. So however many workers join
at once, a partition moves once, to the worker that keeps it. Both back ends store what `planned_owners` says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

__all__ = ["Held", "planned_owners"]


@dataclass(frozen=True, slots=True)
class Held:
    """Who owns a partition now, and who is to own it by the plan so far (None: nobody)."""

    owner: str | None = None
    target: str | None = None


def planned_owners(partitions: Mapping[int, Held], workers: Collection[str]) -> dict[int, str | None]:
    """Returns the worker that is to own each partition.

    With n workers each gets floor(P / n) or one more. Those that own most keep the odd ones, so that the
    number of partitions whose owner changes is the smallest there is. Where there is a choice, the plan so
    far is kept, then the order of the partitions and of the workers' ids decides: the same input gives the
    same plan everywhere.
    """
    if not workers:
        return dict.fromkeys(partitions)
    owned: dict[str, list[int]] = {worker: [] for worker in workers}
    planned: dict[int, str | None] = {}
    free: list[int] = []
    for partition in sorted(partitions):
        owner = partitions[partition].owner
        if owner in owned:
            owned[owner].append(partition)
        else:
            free.append(partition)
    share, odd_ones = divmod(len(partitions), len(owned))
    room: dict[str, int] = {}
    for rank, worker in enumerate(sorted(owned, key=lambda worker: (-len(owned[worker]), worker))):
        quota = share + 1 if rank < odd_ones else share
        # What is on its way to somebody already goes first, then the last ones.
        kept = sorted(owned[worker], key=lambda partition: partitions[partition].target not in (worker, None))
        planned.update(dict.fromkeys(kept[:quota], worker))
        free += kept[quota:]
        room[worker] = quota - min(quota, len(kept))
    for partition in sorted(free):
        target = partitions[partition].target
        if target is not None and room.get(target, 0):
            planned[partition] = target
            room[target] -= 1
    receivers = [worker for worker in sorted(room) for _ in range(room[worker])]
    planned.update(zip((partition for partition in sorted(free) if partition not in planned), receivers, strict=True))
    return planned
