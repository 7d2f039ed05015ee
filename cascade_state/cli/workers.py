"""`workers`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Annotated, Any

import typer

from cascade_state.abc import Store
from cascade_state.abc.repository import MAXIMUM_LIMIT
from cascade_state.cli.options import AsJson, PartitionCount, Schema, Url
from cascade_state.cli.printing import print_columns, print_json
from cascade_state.cli.running import with_store
from cascade_state.model.replica_sets import PartitionAssignment, RegisteredWorker

__all__ = ["show"]

ReplicaSetName = Annotated[str | None, typer.Option("--replica-set", help="Only this replica set.")]
WithPartitions = Annotated[bool, typer.Option("--partitions", help="List every partition with its generation, too.")]


@dataclass(frozen=True, slots=True)
class _Found:
    """A replica set: its workers, and who owns what."""

    name: str
    workers: Sequence[RegisteredWorker]
    assignments: Sequence[PartitionAssignment]


def show(
    url: Url,
    replica_set: ReplicaSetName = None,
    partitions: WithPartitions = False,
    schema: Schema = None,
    partition_count: PartitionCount = None,
    as_json: AsJson = False,
) -> None:
    """Show the workers of replica sets: which are alive, which partitions each owns, what is on its way."""

    async def work(store: Store) -> list[_Found]:
        workers = await store.replica_sets.list_workers(replica_set, limit=MAXIMUM_LIMIT)
        by_set = {name: list(group) for name, group in groupby(workers, key=lambda worker: worker.replica_set)}
        if replica_set is not None:
            by_set.setdefault(replica_set, [])
        return [_Found(name, group, await store.replica_sets.list_assignments(name)) for name, group in by_set.items()]

    sets = with_store(url, schema, partition_count, work)
    if as_json:
        print_json([_document(found, partitions=partitions) for found in sets])
        return
    if not sets:
        typer.echo("no workers")
    for found in sets:
        _print(found, partitions=partitions)


def _document(found: _Found, *, partitions: bool) -> dict[str, Any]:
    owned = defaultdict(list)
    for item in found.assignments:
        owned[item.owner].append(item.partition_id)
    document: dict[str, Any] = {
        "replica_set": found.name,
        "workers": [
            {
                **{name: value for name, value in asdict(worker).items() if name != "replica_set"},
                "stale_after": worker.stale_after.total_seconds(),
                "partitions": owned[worker.worker_id],
            }
            for worker in found.workers
        ],
        "unowned": _unowned(found),
        "moving": sum(item.next_owner is not None for item in found.assignments),
    }
    if partitions:
        document["partitions"] = [
            {name: value for name, value in asdict(item).items() if name != "replica_set"} for item in found.assignments
        ]
    return document


def _print(found: _Found, *, partitions: bool) -> None:
    owned = Counter(item.owner for item in found.assignments)
    gets = Counter(item.next_owner for item in found.assignments if item.next_owner is not None)
    gives = Counter(item.owner for item in found.assignments if item.next_owner is not None)
    print_columns(
        f"Replica set {found.name}",
        ("worker", "alive", "last heartbeat", "stale after", "partitions", "gets", "gives"),
        (
            (
                worker.worker_id,
                "yes" if worker.is_alive else "no",
                worker.heartbeat_at,
                worker.stale_after,
                owned[worker.worker_id],
                gets[worker.worker_id],
                gives[worker.worker_id],
            )
            for worker in found.workers
        ),
    )
    unowned = _unowned(found)
    if unowned:
        typer.echo(f"{unowned} partitions have no living owner\n")
    if partitions:
        print_columns(
            f"Partitions of {found.name}",
            ("partition", "generation", "owner", "next owner"),
            _rows(found.assignments),
        )


def _unowned(found: _Found) -> int:
    alive = {worker.worker_id for worker in found.workers if worker.is_alive}
    return sum(item.owner not in alive for item in found.assignments)


def _rows(assignments: Iterable[PartitionAssignment]) -> Iterable[tuple[Any, ...]]:
    for item in assignments:
        yield item.partition_id, item.generation, item.owner, item.next_owner
