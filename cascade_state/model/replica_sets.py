"""Replica sets: their workers, who owns which partition, and what a worker is told of its share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType

from cascade_state.types import JsonObject

__all__ = ["FORGOTTEN_AFTER", "Membership", "PartitionAssignment", "RegisteredWorker"]

# A worker that has been silent for this long after its time, in a set where nobody is left to remove it, is removed by
# whatever set changes next.
FORGOTTEN_AFTER = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What a worker is told of its share when it joins and with each heartbeat.

    `generations` maps the partitions it is to work in to their generation, which a write for the partition
    states (`uow.fence`). `releasing` maps those that are still its own but go to somebody else: what is in
    hand there may be finished under that generation, nothing new may begin. `awaited` are those that will be
    its own once their present owner let go of them. `generation` counts the membership changes of the set.
    """

    replica_set: str
    worker_id: str
    generation: int
    generations: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    releasing: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    awaited: frozenset[int] = frozenset()

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that it is to work in."""
        return frozenset(self.generations)

    @property
    def is_settled(self) -> bool:
        """Whether nothing of this share is on its way from or to another worker."""
        return not self.releasing and not self.awaited


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredWorker:
    """A worker as the store knows it. One that is not alive has gone silent; the next heartbeat of another removes it.

    `is_alive` was judged when this was read, by the clock that wrote `heartbeat_at`.
    """

    replica_set: str
    worker_id: str
    started_at: datetime
    heartbeat_at: datetime
    stale_after: timedelta
    is_alive: bool
    metadata: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionAssignment:
    """Who owns a partition, in which generation, and who gets it next (None: it stays).

    `owner` is None, or a worker that is gone, while there is nobody to own it.
    """

    replica_set: str
    partition_id: int
    owner: str | None
    generation: int
    next_owner: str | None = None
