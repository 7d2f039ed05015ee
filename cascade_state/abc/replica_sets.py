"""The repository of replica sets: who is there, and who owns which partition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from datetime import timedelta

from cascade_state.abc.repository import DEFAULT_LIMIT, Repository, check_limit, cut, decode_position
from cascade_state.errors import InvalidArgument
from cascade_state.model.arguments import check_duration, check_key, check_optional_key, check_partition
from cascade_state.model.documents import dump
from cascade_state.model.lists import CursorList
from cascade_state.model.replica_sets import Membership, PartitionAssignment, RegisteredWorker
from cascade_state.types import JsonObject

__all__ = ["ReplicaSets"]


class ReplicaSets(Repository, ABC):
    """Named groups of identical workers that share the partitions of a store.

    `coordination.ReplicaSet` is what applications use; it calls these. A set begins to exist with its first
    worker. Each of its partitions has an owner and a generation, which grows with every change of owner, and
    is in one of these states: free; owned; owned but promised to another worker. Every change of membership
    makes, in its own transaction, a plan that gives each worker a fair share (floor or floor + 1 of P) and
    moves no more partitions than needed. Partitions without a living owner go to their new one at once;
    others go when their owner hands them over with its next heartbeat. There is no leader: whoever notices
    that a worker is gone makes the plan. Each change of a set, and each hand-over, is hinted
    (`store.listen("members")`), so that the others need not wait for their next heartbeat.

    Locks are taken in this order: the row of the set (joining, leaving and removing the stale wait for each
    other; a heartbeat that would have to wait leaves it to the other one), workers, plan, assignments. Owners
    change only where nobody holds the row: a partition whose row a handler's `uow.fence` shares is passed
    over, and tried again with the next heartbeat.
    """

    async def join(
        self, replica_set: str, worker_id: str, *, stale_after: timedelta, metadata: JsonObject | None = None
    ) -> Membership:
        """Adds a worker to the set (which is made if there is none), and returns its share so far.

        Workers of the set whose time is over are removed first. What the new worker is to get from others
        is in `awaited` until they hand it over.

        Args:
            worker_id: An id that no other process has, had or will have: whoever reuses an id takes over the
                rights of its namesake.
            stale_after: How long the worker counts as alive after a heartbeat, by the database's clock.
            metadata: Anything that helps people to tell the workers apart.

        Raises:
            AlreadyExists: The set has a worker of this id.
            SchemaMismatch: The database has another partition count than this store.
        """
        check_key(replica_set, "replica_set")
        check_key(worker_id, "worker_id")
        check_duration(stale_after, "stale_after")
        document = dict(metadata or {}) if isinstance(metadata, (Mapping, type(None))) else None
        if document is None:
            raise InvalidArgument(argument="metadata", reason="must be a JSON object")
        text = dump(document, "metadata", maximum_bytes=self._limits.max_document_bytes)
        with self._guard.call(writes=True):
            return await self._join(replica_set, worker_id, stale_after, text)

    async def beat(
        self, replica_set: str, worker_id: str, *, stale_after: timedelta, keep: Collection[int] = ()
    ) -> Membership:
        """Says that a worker is alive, does what there is to do, and returns the worker's share.

        To do are: removing workers that went silent and planning anew; handing over what is promised to
        others; taking what is promised to this worker and has no living owner. When there is nothing to do,
        this is one statement (one round trip), whatever the number of workers and partitions.

        A worker whose time is over but whom nobody has removed yet goes on as if nothing had happened.

        Args:
            keep: Partitions that are not to be handed over yet, because work is in hand there.

        Raises:
            LeaseLost: The worker was removed (it was silent for `stale_after`, or has left). What it owned
                belongs to others; it may join again under a new id.
        """
        check_key(replica_set, "replica_set")
        check_key(worker_id, "worker_id")
        check_duration(stale_after, "stale_after")
        kept = frozenset(check_partition(partition, "keep", self._limits.partition_count) for partition in keep)
        with self._guard.call(writes=True):
            return await self._beat(replica_set, worker_id, stale_after, kept)

    async def leave(self, replica_set: str, worker_id: str) -> bool:
        """Removes a worker and gives its partitions to the others at once; returns whether it was there.

        Partitions in which one of its transactions still holds a fence are taken over when that has ended.
        """
        check_key(replica_set, "replica_set")
        check_key(worker_id, "worker_id")
        with self._guard.call(writes=True):
            return await self._leave(replica_set, worker_id)

    async def list_workers(
        self, replica_set: str | None = None, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> CursorList[RegisteredWorker]:
        """Returns the workers of a set (None: of all sets), ordered by set, then worker id."""
        check_optional_key(replica_set, "replica_set")
        subject = ("replica_sets.list_workers", replica_set)
        after = decode_position(cursor, subject, str, str)
        with self._guard.call(writes=False):
            rows = await self._list_workers(replica_set, check_limit(limit) + 1, after)
        return cut(rows, limit, subject, lambda worker: (worker.replica_set, worker.worker_id))

    async def list_assignments(self, replica_set: str) -> list[PartitionAssignment]:
        """Returns all partitions of a set with their owners, in order; none if nobody ever joined it."""
        check_key(replica_set, "replica_set")
        with self._guard.call(writes=False):
            return await self._list_assignments(replica_set)

    @abstractmethod
    async def _join(self, replica_set: str, worker_id: str, stale_after: timedelta, metadata: str) -> Membership: ...

    @abstractmethod
    async def _beat(
        self, replica_set: str, worker_id: str, stale_after: timedelta, keep: frozenset[int]
    ) -> Membership: ...

    @abstractmethod
    async def _leave(self, replica_set: str, worker_id: str) -> bool: ...

    @abstractmethod
    async def _list_workers(
        self, replica_set: str | None, limit: int, after: tuple[str, str] | None
    ) -> list[RegisteredWorker]: ...

    @abstractmethod
    async def _list_assignments(self, replica_set: str) -> list[PartitionAssignment]: ...

    @abstractmethod
    async def _fence(self, replica_set: str, partition_id: int, generation: int) -> bool:
        """Locks the partition's row against a change of owner; returns False if it has another generation."""
