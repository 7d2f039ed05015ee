"""Replica sets in memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from types import MappingProxyType

from cascade_state.abc.guards import Guard
from cascade_state.abc.replica_sets import ReplicaSets
from cascade_state.errors import AlreadyExists, LeaseLost
from cascade_state.memory.rows import AssignmentKey, AssignmentRow, ReplicaSetRow, TargetRow, WorkerRow
from cascade_state.memory.runners import Runner
from cascade_state.memory.transaction import View
from cascade_state.model.advance import Limits
from cascade_state.model.documents import load
from cascade_state.model.fair_share import Held, planned_owners
from cascade_state.model.replica_sets import FORGOTTEN_AFTER, Membership, PartitionAssignment, RegisteredWorker

__all__ = ["MemoryReplicaSets"]

_NO_SET = ReplicaSetRow(generation=0, worker_count=0)
_FREE = AssignmentRow(owner=None, generation=0)
_UNPLANNED = TargetRow(worker_id=None)


class MemoryReplicaSets(ReplicaSets):
    """See `ReplicaSets`."""

    def __init__(self, runner: Runner, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._runner = runner

    async def _join(self, replica_set: str, worker_id: str, stale_after: timedelta, metadata: str) -> Membership:
        return await self._runner.run(_join, replica_set, worker_id, stale_after, metadata)

    async def _beat(self, replica_set: str, worker_id: str, stale_after: timedelta, keep: frozenset[int]) -> Membership:
        return await self._runner.run(_beat, replica_set, worker_id, stale_after, keep)

    async def _leave(self, replica_set: str, worker_id: str) -> bool:
        return await self._runner.run(_leave, replica_set, worker_id)

    async def _list_workers(
        self, replica_set: str | None, limit: int, after: tuple[str, str] | None
    ) -> list[RegisteredWorker]:
        return await self._runner.run(_list_workers, replica_set, limit, after)

    async def _list_assignments(self, replica_set: str) -> list[PartitionAssignment]:
        return await self._runner.run(_list_assignments, replica_set)

    async def _fence(self, replica_set: str, partition_id: int, generation: int) -> bool:
        return await self._runner.run(_fence, (replica_set, partition_id), generation)


def _join(view: View, replica_set: str, worker_id: str, stale_after: timedelta, metadata: str) -> Membership:
    view.lock("replica_sets", replica_set)
    now = view.now()
    changes = _remove_silent(view, replica_set, now)
    key = (replica_set, worker_id)
    view.lock("workers", key)
    if view.workers.get(key) is not None:
        raise AlreadyExists(entity=f"worker of replica set {replica_set}", key=worker_id)
    view.workers.put(key, WorkerRow(replica_set, worker_id, now, now, stale_after, metadata))
    _plan(view, replica_set, changes + 1)
    return _membership(view, replica_set, worker_id)


def _beat(view: View, replica_set: str, worker_id: str, stale_after: timedelta, keep: frozenset[int]) -> Membership:
    now = view.now()
    key = (replica_set, worker_id)
    row = view.workers.get(key)
    if row is not None:
        view.lock("workers", key)
        row = view.workers.get(key)
    if row is None:
        raise LeaseLost(entity="worker of replica set", key=replica_set, holder=worker_id)
    view.workers.put(key, row._replace(heartbeat_at=now, stale_after=stale_after))
    if _must_plan(view, replica_set, now) and view.is_free("replica_sets", replica_set):
        view.lock("replica_sets", replica_set)
        _plan(view, replica_set, _remove_silent(view, replica_set, now))
    _hand_over(view, replica_set, worker_id, keep)
    return _membership(view, replica_set, worker_id)


def _leave(view: View, replica_set: str, worker_id: str) -> bool:
    key = (replica_set, worker_id)
    view.lock("replica_sets", replica_set)
    if view.workers.get(key) is None:
        return False
    view.lock("workers", key)
    view.workers.remove(key)
    _plan(view, replica_set, 1 + _remove_silent(view, replica_set, view.now()))
    return True


def _fence(view: View, key: AssignmentKey, generation: int) -> bool:
    view.share("partition_assignments", key)
    row = view.partition_assignments.get(key)
    return row is not None and row.generation == generation


# What a change of membership brings about


def _is_silent(row: WorkerRow, now: datetime) -> bool:
    return row.heartbeat_at + row.stale_after <= now


def _must_plan(view: View, replica_set: str, now: datetime) -> bool:
    workers = list(view.workers.select("set", replica_set))
    known = view.replica_sets.get(replica_set) or _NO_SET
    return known.worker_count != len(workers) or any(_is_silent(row, now) for row in workers)


def _remove_silent(view: View, replica_set: str, now: datetime) -> int:
    """Removes workers whose time is over; returns how many of this set.

    One that is just sending its heartbeat is passed over. Workers of other sets go when nobody of theirs has removed
    them for long: their sets are given up.
    """
    removed = 0
    for row in list(view.workers.select("all")):
        key = (row.replica_set, row.worker_id)
        is_ours = row.replica_set == replica_set
        if _is_silent(row, now if is_ours else now - FORGOTTEN_AFTER) and view.is_free("workers", key):
            view.lock("workers", key)
            view.workers.remove(key)
            removed += is_ours
    return removed


def _plan(view: View, replica_set: str, changes: int) -> None:
    """Plans anew, and gives partitions without a living owner to whom the plan wants; the set is locked."""
    workers = {row.worker_id for row in view.workers.select("set", replica_set)}
    held = {
        partition_id: Held(owner.owner, target.worker_id)
        for partition_id, owner, target in _partitions(view, replica_set)
    }
    for partition_id, target in planned_owners(held, workers).items():
        key = (replica_set, partition_id)
        if target != held[partition_id].target or view.partition_targets.get(key) is None:
            view.lock("partition_targets", key)
            view.partition_targets.put(key, TargetRow(target))
        if held[partition_id].owner not in workers:
            _give(view, key, target)
    known = view.replica_sets.get(replica_set) or _NO_SET
    view.replica_sets.put(replica_set, ReplicaSetRow(known.generation + changes, len(workers)))


def _hand_over(view: View, replica_set: str, worker_id: str, keep: frozenset[int]) -> None:
    workers = {row.worker_id for row in view.workers.select("set", replica_set)}
    for partition_id, row, target in list(_partitions(view, replica_set)):
        lets_go = row.owner == worker_id and target.worker_id != worker_id and partition_id not in keep
        takes = target.worker_id == worker_id and row.owner not in workers
        if lets_go or takes:
            _give(view, (replica_set, partition_id), target.worker_id)


def _give(view: View, key: AssignmentKey, owner: str | None) -> None:
    """Changes the owner, unless somebody holds the row: then a later heartbeat does."""
    row = view.partition_assignments.get(key) or _FREE
    if row.owner == owner or not view.is_free("partition_assignments", key):
        return
    view.lock("partition_assignments", key)
    view.partition_assignments.put(key, AssignmentRow(owner, row.generation + 1))


def _partitions(view: View, replica_set: str) -> Iterator[tuple[int, AssignmentRow, TargetRow]]:
    for partition_id in range(view.partition_count):
        key = (replica_set, partition_id)
        yield (
            partition_id,
            view.partition_assignments.get(key) or _FREE,
            view.partition_targets.get(key) or _UNPLANNED,
        )


# Reading


def _membership(view: View, replica_set: str, worker_id: str) -> Membership:
    generations: dict[int, int] = {}
    releasing: dict[int, int] = {}
    awaited: set[int] = set()
    for partition_id, row, target in _partitions(view, replica_set):
        if row.owner == worker_id:
            (generations if target.worker_id == worker_id else releasing)[partition_id] = row.generation
        elif target.worker_id == worker_id:
            awaited.add(partition_id)
    return Membership(
        replica_set=replica_set,
        worker_id=worker_id,
        generation=(view.replica_sets.get(replica_set) or _NO_SET).generation,
        generations=MappingProxyType(generations),
        releasing=MappingProxyType(releasing),
        awaited=frozenset(awaited),
    )


def _list_workers(
    view: View, replica_set: str | None, limit: int, after: tuple[str, str] | None
) -> list[RegisteredWorker]:
    now = view.now()
    # Behind every entry of this key: the set and the worker id are the key.
    behind = None if after is None else ((*after, ""),)
    rows = view.workers.select("all" if replica_set is None else "set", replica_set, after=behind)
    return [_registered(row, now) for _, row in zip(range(limit), rows, strict=False)]


def _registered(row: WorkerRow, now: datetime) -> RegisteredWorker:
    return RegisteredWorker(
        replica_set=row.replica_set,
        worker_id=row.worker_id,
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
        stale_after=row.stale_after,
        is_alive=not _is_silent(row, now),
        metadata=load(row.metadata),
    )


def _list_assignments(view: View, replica_set: str) -> list[PartitionAssignment]:
    if view.replica_sets.get(replica_set) is None:
        return []
    return [
        PartitionAssignment(
            replica_set=replica_set,
            partition_id=partition_id,
            owner=row.owner,
            generation=row.generation,
            next_owner=None if target.worker_id == row.owner else target.worker_id,
        )
        for partition_id, row, target in _partitions(view, replica_set)
    ]
