"""Replica sets on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from cascade_state.abc.guards import Guard
from cascade_state.abc.replica_sets import ReplicaSets
from cascade_state.errors import AlreadyExists, LeaseLost, SchemaMismatch, SerializationError
from cascade_state.model.advance import Limits
from cascade_state.model.documents import load
from cascade_state.model.fair_share import Held, planned_owners
from cascade_state.model.replica_sets import FORGOTTEN_AFTER, Membership, PartitionAssignment, RegisteredWorker
from cascade_state.postgres.direct import Record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements import replica_sets as statements
from cascade_state.postgres.statements.parameters import columns

__all__ = ["PostgresReplicaSets"]

# A process that is stopped while it holds the lock on a set keeps others from joining and leaving for this long.
_LONGEST_IDLENESS = "5s"


class PostgresReplicaSets(ReplicaSets):
    """See `ReplicaSets`. Joining and leaving are transactions of about ten statements; a heartbeat is one."""

    def __init__(self, executor: Executor, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._executor = executor

    async def _join(self, replica_set: str, worker_id: str, stale_after: timedelta, metadata: str) -> Membership:
        async with self._executor.transaction(undoable=True) as executor:
            change = await self._change(executor, replica_set)
            await change.begin(in_new_set=True)
            await change.remove_silent()
            await change.add_worker(worker_id, stale_after, metadata)
            await change.plan()
            share = await executor.fetch(statements.SHARE, _values(executor, replica_set, worker_id))
            _hint(executor, replica_set)
        return _membership(share, replica_set, worker_id)

    async def _beat(self, replica_set: str, worker_id: str, stale_after: timedelta, keep: frozenset[int]) -> Membership:
        values = {**_values(self._executor, replica_set, worker_id), "stale_after": stale_after}
        share = await self._executor.fetch(statements.BEAT, values)
        if share and share[0]["must_plan"]:
            if await self._plan_anew(replica_set):
                share = await self._executor.fetch(statements.SHARE, values)
        if any(_can_move(record, keep) for record in share):
            handed_over = {**values, "kept": [str(kept) for kept in sorted(keep)]}
            if await self._executor.fetch(statements.HAND_OVER, handed_over):
                _hint(self._executor, replica_set)
            share = await self._executor.fetch(statements.SHARE, values)
        if not share:
            raise LeaseLost(entity="worker of replica set", key=replica_set, holder=worker_id)
        return _membership(share, replica_set, worker_id)

    async def _plan_anew(self, replica_set: str) -> bool:
        """Removes the silent and plans, unless somebody else is just at it; returns whether it was done."""
        async with self._executor.transaction() as executor:
            change = await self._change(executor, replica_set)
            if not await change.try_to_begin():
                return False
            await change.remove_silent()
            await change.plan()
            _hint(executor, replica_set)
        return True

    async def _leave(self, replica_set: str, worker_id: str) -> bool:
        async with self._executor.transaction() as executor:
            change = await self._change(executor, replica_set)
            if not await change.begin() or not await change.remove_worker(worker_id):
                return False
            await change.remove_silent()
            await change.plan()
            _hint(executor, replica_set)
        return True

    async def _change(self, executor: Executor, replica_set: str) -> _Change:
        if not self._executor.in_transaction:  # else it is the caller's transaction, with the caller's limits
            await executor.fetch(statements.LIMIT_IDLENESS, {"longest_idleness": _LONGEST_IDLENESS})
        return _Change(executor, replica_set)

    async def _fence(self, replica_set: str, partition_id: int, generation: int) -> bool:
        values = {"replica_set": replica_set, "partition_id": partition_id, "generation": generation}
        return bool(await self._executor.fetch(statements.FENCE, values))

    async def _list_workers(
        self, replica_set: str | None, limit: int, after: tuple[str, str] | None
    ) -> list[RegisteredWorker]:
        after_set, after_id = after or ("", "")  # neither is ever empty
        values = {
            "now": self._executor.now(),
            "replica_set": replica_set,
            "after_set": after_set,
            "after_id": after_id,
            "limit": limit,
        }
        return [_registered(record) for record in await self._executor.fetch(statements.LIST_WORKERS, values)]

    async def _list_assignments(self, replica_set: str) -> list[PartitionAssignment]:
        records = await self._executor.fetch(statements.LIST_ASSIGNMENTS, {"replica_set": replica_set})
        return [
            PartitionAssignment(
                replica_set=replica_set,
                partition_id=record["partition_id"],
                owner=record["owner"],
                generation=record["generation"],
                next_owner=None if record["target"] == record["owner"] else record["target"],
            )
            for record in records
        ]


class _Change:
    """A change of a set's membership, from the lock on its row to the plan; one transaction."""

    def __init__(self, executor: Executor, replica_set: str) -> None:
        self._executor = executor
        self._replica_set = replica_set
        self._changes = 0

    async def begin(self, *, in_new_set: bool = False) -> bool:
        """Locks the set, after waiting for another change that is under way; returns whether there is one."""
        values = self._values()
        found = await self._executor.fetch(statements.LOCK_SET, values)
        if not found and in_new_set:
            await self._executor.fetch(statements.ADD_SET, values)
            found = await self._executor.fetch(statements.LOCK_SET, values)
        return bool(found)

    async def try_to_begin(self) -> bool:
        """Locks the set unless another change is under way."""
        return bool(await self._executor.fetch(statements.TRY_LOCK_SET, self._values()))

    async def add_worker(self, worker_id: str, stale_after: timedelta, metadata: str) -> None:
        values = {**self._values(worker_id), "stale_after": stale_after, "metadata": metadata}
        if not await self._executor.fetch(statements.ADD_WORKER, values):
            raise AlreadyExists(entity=f"worker of replica set {self._replica_set}", key=worker_id)
        self._changes += 1

    async def remove_worker(self, worker_id: str) -> bool:
        removed = await self._executor.fetch(statements.REMOVE_WORKER, self._values(worker_id))
        self._changes += len(removed)
        return bool(removed)

    async def remove_silent(self) -> None:
        values = {**self._values(), "forgotten_after": FORGOTTEN_AFTER}
        removed = await self._executor.fetch(statements.REMOVE_SILENT, values)
        self._changes += sum(record["replica_set"] == self._replica_set for record in removed)

    async def plan(self) -> None:
        """Plans for the workers that there are now, and gives away what has no living owner."""
        values = self._values()
        workers = [record["worker_id"] for record in await self._executor.fetch(statements.READ_WORKERS, values)]
        held = await self._partitions()
        targets = planned_owners(held, workers)
        changed = [(partition, target) for partition, target in targets.items() if target != held[partition].target]
        if changed:
            rows = columns("target", tuple(statements.TARGET_COLUMNS), sorted(changed))
            await self._executor.fetch(statements.PUT_TARGETS, {**values, **rows})
        if any(item.owner not in workers for item in held.values()):
            await self._executor.fetch(statements.TAKE_FREE, values)
        await self._executor.fetch(
            statements.PUT_SET, {**values, "changes": self._changes, "worker_count": len(workers)}
        )

    async def _partitions(self) -> dict[int, Held]:
        held = await self._read_plan()
        wanted = self._executor.options.partition_count
        if len(held) != wanted:
            found = (await self._executor.fetch(statements.PARTITION_COUNT, {}))[0]["partition_count"]
            if found != wanted:
                raise SchemaMismatch(expected=f"{wanted} partitions", found=f"{found} partitions")
            await self._executor.fetch(statements.ADD_FREE_PARTITIONS, {**self._values(), "partition_count": wanted})
            held = await self._read_plan()
        return held

    async def _read_plan(self) -> dict[int, Held]:
        records = await self._executor.fetch(statements.READ_PLAN, self._values())
        return {record["partition_id"]: Held(record["owner"], record["target"]) for record in records}

    def _values(self, worker_id: str = "") -> dict[str, Any]:
        return _values(self._executor, self._replica_set, worker_id)


def _hint(executor: Executor, replica_set: str) -> None:
    """Has the workers of the set look, once it is committed: who is there has changed, or who owns what."""
    executor.hint(executor.partition_of_key(replica_set), "members")


def _values(executor: Executor, replica_set: str, worker_id: str) -> dict[str, Any]:
    return {
        "now": executor.now(),
        "replica_set": replica_set,
        "set_partition": executor.partition_of_key(replica_set),
        "worker_id": worker_id,
        "worker_partition": executor.partition_of_key(worker_id),
    }


def _can_move(record: Record, keep: frozenset[int]) -> bool:
    """Whether a partition can be handed over or taken now."""
    if record["partition_id"] is None or (record["is_owner"] and record["is_target"]):
        return False
    if record["is_owner"]:
        return record["partition_id"] not in keep
    return bool(record["is_free"])


def _membership(share: Sequence[Record], replica_set: str, worker_id: str) -> Membership:
    mine = [record for record in share if record["partition_id"] is not None]

    def generations(*, is_target: bool) -> MappingProxyType[int, int]:
        chosen = (record for record in mine if record["is_owner"] and bool(record["is_target"]) == is_target)
        return MappingProxyType({record["partition_id"]: record["partition_generation"] for record in chosen})

    return Membership(
        replica_set=replica_set,
        worker_id=worker_id,
        generation=share[0]["generation"],
        generations=generations(is_target=True),
        releasing=generations(is_target=False),
        awaited=frozenset(record["partition_id"] for record in mine if not record["is_owner"]),
    )


def _registered(record: Record) -> RegisteredWorker:
    """Returns a worker.

    Raises:
        SerializationError: The row holds what this version cannot read.
    """
    try:
        metadata = load(record["metadata"])
    except (ValueError, RecursionError) as error:
        raise SerializationError(
            entity="worker", key=record["worker_id"], reason=f"{type(error).__name__} while decoding"
        ) from error
    return RegisteredWorker(
        replica_set=record["replica_set"],
        worker_id=record["worker_id"],
        started_at=record["started_at"],
        heartbeat_at=record["heartbeat_at"],
        stale_after=record["stale_after"],
        is_alive=record["is_alive"],
        metadata=metadata,
    )
