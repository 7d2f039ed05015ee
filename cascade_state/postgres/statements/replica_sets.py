"""Statements about replica sets: heartbeats, the plan, changes of owner, the fence.

Row locks are taken in the order set, worker, target, assignment. Only the set's row is waited for; owners change
where nobody holds the row (SKIP LOCKED), so a handler that holds the fence of a partition is passed over. A change of
owner locks the target's row, too, so that it never follows a plan that has just been replaced.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as postgres_insert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    INTEGER,
    INTERVAL,
    JSON_DOCUMENT,
    NOW,
    TEXT,
    param,
    relation,
)
from cascade_state.postgres.tables import partition_assignments, partition_targets, replica_sets, settings, workers

__all__ = [
    "ADD_FREE_PARTITIONS",
    "ADD_SET",
    "ADD_WORKER",
    "BEAT",
    "FENCE",
    "HAND_OVER",
    "LIMIT_IDLENESS",
    "LIST_ASSIGNMENTS",
    "LIST_WORKERS",
    "LOCK_SET",
    "PARTITION_COUNT",
    "PUT_SET",
    "PUT_TARGETS",
    "READ_PLAN",
    "READ_WORKERS",
    "REMOVE_SILENT",
    "REMOVE_WORKER",
    "SHARE",
    "TAKE_FREE",
    "TARGET_COLUMNS",
    "TRY_LOCK_SET",
]

_set = replica_sets.c
_worker = workers.c
_owned = partition_assignments.c
_target = partition_targets.c
_ONE = literal_column("1", BIGINT)
_NOBODY = literal_column("NULL", TEXT)

TARGET_COLUMNS = {"partition_id": INTEGER, "worker_id": TEXT}


def _this_set() -> ColumnElement[bool]:
    return and_(_set.partition_id == param("set_partition", INTEGER), _set.replica_set == param("replica_set", TEXT))


def _this_worker() -> ColumnElement[bool]:
    return and_(
        _worker.partition_id == param("worker_partition", INTEGER),
        _worker.replica_set == param("replica_set", TEXT),
        _worker.worker_id == param("worker_id", TEXT),
    )


def _of_this_set(column: ColumnElement[str]) -> ColumnElement[bool]:
    return column == param("replica_set", TEXT)


def _is_silent() -> ColumnElement[bool]:
    return _worker.heartbeat_at + _worker.stale_after <= NOW


def _owner_is_gone() -> ColumnElement[bool]:
    """Whether nobody owns a partition, or somebody who is no worker of the set any more."""
    known = workers.alias("known")
    alive = exists().where(known.c.replica_set == _owned.replica_set, known.c.worker_id == _owned.owner)
    return or_(_owned.owner.is_(None), ~alive)


def _concerned() -> Any:
    """The partitions that are the worker's, and those that are to be; each found in its own index."""
    return union(
        select(_owned.partition_id).where(_of_this_set(_owned.replica_set), _owned.owner == param("worker_id", TEXT)),
        select(_target.partition_id).where(
            _of_this_set(_target.replica_set), _target.worker_id == param("worker_id", TEXT)
        ),
    ).cte("concerned")


def _owned_and_planned() -> ColumnElement[bool]:
    return and_(_target.partition_id == _owned.partition_id, _target.replica_set == _owned.replica_set)


# A worker and its share


def _share(source: Any) -> Select[Any]:
    """One row for each partition that is the worker's or is to be; one without a partition if there is none.

    `source` has a row if the worker is there. Every row says the set's generation, and whether its membership is
    another one than the plan was made for.
    """
    others = workers.alias("others")
    silent = exists().where(
        others.c.replica_set == param("replica_set", TEXT),
        others.c.worker_id != param("worker_id", TEXT),
        others.c.heartbeat_at + others.c.stale_after <= NOW,
    )
    counted = workers.alias("counted")
    count = select(func.count()).where(counted.c.replica_set == param("replica_set", TEXT)).scalar_subquery()
    concerned = _concerned()
    mine = (
        select(
            _owned.partition_id,
            _owned.generation.label("partition_generation"),
            (_owned.owner == param("worker_id", TEXT)).label("is_owner"),
            (_target.worker_id == param("worker_id", TEXT)).label("is_target"),
            _owner_is_gone().label("is_free"),
        )
        .join_from(concerned, partition_assignments, _owned.partition_id == concerned.c.partition_id)
        .join(partition_targets, _owned_and_planned())
        .where(_of_this_set(_owned.replica_set))
        .subquery("mine")
    )
    return (
        select(
            _set.generation,
            or_(_set.worker_count != count, silent).label("must_plan"),
            mine.c.partition_id,
            mine.c.partition_generation,
            mine.c.is_owner,
            mine.c.is_target,
            mine.c.is_free,
        )
        .select_from(source.join(replica_sets, _this_set()).outerjoin(mine, true()))
        .order_by(mine.c.partition_id)
    )


def _beat() -> Select[Any]:
    beaten = (
        update(workers)
        .where(_this_worker())
        .values(heartbeat_at=NOW, stale_after=param("stale_after", INTERVAL))
        .returning(_worker.worker_id)
        .cte("beaten")
    )
    return _share(beaten)


BEAT = Statement("replica_sets.beat", _beat)
SHARE = Statement(
    "replica_sets.share", lambda: _share(select(_worker.worker_id).where(_this_worker()).subquery("present"))
)


# The membership of a set


def _lock_set(*, skip_locked: bool) -> Select[Any]:
    return (
        select(_set.generation)
        .where(
            _set.partition_id == param("set_partition", INTEGER),
            _set.replica_set == param("replica_set", TEXT),
        )
        .with_for_update(skip_locked=skip_locked)
    )


LIMIT_IDLENESS = Statement(
    "replica_sets.limit_idleness",
    lambda: select(
        func.set_config(
            literal_column("'idle_in_transaction_session_timeout'", TEXT), param("longest_idleness", TEXT), true()
        )
    ),
)
ADD_SET = Statement(
    "replica_sets.add_set",
    lambda: (
        postgres_insert(replica_sets)
        .values(
            partition_id=param("set_partition", INTEGER),
            replica_set=param("replica_set", TEXT),
            generation=literal_column("0", BIGINT),
            worker_count=literal_column("0", INTEGER),
        )
        .on_conflict_do_nothing(index_elements=["partition_id", "replica_set"])
    ),
)
LOCK_SET = Statement("replica_sets.lock_set", lambda: _lock_set(skip_locked=False))
TRY_LOCK_SET = Statement("replica_sets.try_lock_set", lambda: _lock_set(skip_locked=True))
PUT_SET = Statement(
    "replica_sets.put_set",
    lambda: (
        update(replica_sets)
        .where(_this_set())
        .values(
            generation=_set.generation + param("changes", BIGINT),
            worker_count=param("worker_count", INTEGER),
        )
    ),
)
PARTITION_COUNT = Statement(
    "replica_sets.partition_count",
    lambda: select(cast(cast(settings.c.value, Text), INTEGER).label("partition_count")).where(
        settings.c.name == literal_column("'partition_count'", TEXT)
    ),
)

ADD_WORKER = Statement(
    "replica_sets.add_worker",
    lambda: (
        postgres_insert(workers)
        .from_select(
            ["partition_id", "replica_set", "worker_id", "started_at", "heartbeat_at", "metadata", "stale_after"],
            select(
                param("worker_partition", INTEGER).label("partition_id"),
                param("replica_set", TEXT).label("replica_set"),
                param("worker_id", TEXT).label("worker_id"),
                NOW.label("started_at"),
                NOW.label("heartbeat_at"),
                param("metadata", JSON_DOCUMENT).label("metadata"),
                param("stale_after", INTERVAL).label("stale_after"),
            ),
        )
        .on_conflict_do_nothing(index_elements=["partition_id", "replica_set", "worker_id"])
        .returning(_worker.worker_id)
    ),
)
REMOVE_WORKER = Statement(
    "replica_sets.remove_worker", lambda: delete(workers).where(_this_worker()).returning(_worker.worker_id)
)


def _remove_silent() -> Any:
    """Removes who has gone silent; who is just sending a heartbeat is passed over, being alive."""
    is_over = _worker.heartbeat_at + _worker.stale_after
    silent = (
        select(_worker.partition_id, _worker.replica_set, _worker.worker_id)
        .where(
            or_(
                and_(_of_this_set(_worker.replica_set), is_over <= NOW),
                is_over <= NOW - param("forgotten_after", INTERVAL),
            )
        )
        .with_for_update(skip_locked=True)
        .cte("silent")
    )
    return (
        delete(workers)
        .where(
            _worker.partition_id == silent.c.partition_id,
            _worker.replica_set == silent.c.replica_set,
            _worker.worker_id == silent.c.worker_id,
        )
        .returning(_worker.replica_set, _worker.worker_id)
    )


REMOVE_SILENT = Statement("replica_sets.remove_silent", _remove_silent)
READ_WORKERS = Statement(
    "replica_sets.read_workers", lambda: select(_worker.worker_id).where(_of_this_set(_worker.replica_set))
)


# The plan, and what follows from it

READ_PLAN = Statement(
    "replica_sets.read_plan",
    lambda: (
        select(_owned.partition_id, _owned.owner, _target.worker_id.label("target"))
        .outerjoin_from(partition_assignments, partition_targets, _owned_and_planned())
        .where(_of_this_set(_owned.replica_set))
    ),
)


def _put_targets() -> Any:
    given = relation("target", TARGET_COLUMNS).cte("given")
    rows = select(
        given.c.partition_id,
        param("replica_set", TEXT).label("replica_set"),
        given.c.worker_id,
    ).order_by(given.c.partition_id)
    statement = postgres_insert(partition_targets).from_select(["partition_id", "replica_set", "worker_id"], rows)
    return statement.on_conflict_do_update(
        index_elements=["partition_id", "replica_set"], set_={"worker_id": statement.excluded.worker_id}
    )


PUT_TARGETS = Statement("replica_sets.put_targets", _put_targets)


def _add_free_partitions() -> Any:
    partition = (
        func.generate_series(literal_column("0", INTEGER), param("partition_count", INTEGER) - literal_column("1"))
        .table_valued("partition_id", name="every")
        .render_derived()
    )
    rows = select(
        partition.c.partition_id,
        param("replica_set", TEXT).label("replica_set"),
        _NOBODY.label("owner"),
        literal_column("0", BIGINT).label("generation"),
    )
    return (
        postgres_insert(partition_assignments)
        .from_select(["partition_id", "replica_set", "owner", "generation"], rows)
        .on_conflict_do_nothing(index_elements=["partition_id", "replica_set"])
    )


ADD_FREE_PARTITIONS = Statement("replica_sets.add_free_partitions", _add_free_partitions)


def _change_owners(condition: ColumnElement[bool]) -> Any:
    """Gives partitions to whom the plan wants, where the condition holds and nobody holds the row."""
    given = (
        select(_owned.partition_id, _target.worker_id)
        .join_from(partition_assignments, partition_targets, _owned_and_planned())
        .where(_of_this_set(_owned.replica_set), _owned.owner.is_distinct_from(_target.worker_id), condition)
        .order_by(_owned.partition_id)
        .with_for_update(of=[partition_assignments, partition_targets], skip_locked=True)
        .cte("given")
    )
    return (
        update(partition_assignments)
        .where(_owned.partition_id == given.c.partition_id, _of_this_set(_owned.replica_set))
        .values(owner=given.c.worker_id, generation=_owned.generation + _ONE)
        .returning(_owned.partition_id)
    )


def _hand_over() -> Any:
    kept = bindparam("kept", type_=ARRAY(Text))
    # Not the negation of "= any", which SQLAlchemy 2.0 writes as "!= any": unlike some of them, not all.
    is_not_kept = cast(_owned.partition_id, Text) != func.all(kept)
    lets_go = and_(_owned.owner == param("worker_id", TEXT), is_not_kept)
    takes = and_(_target.worker_id == param("worker_id", TEXT), _owner_is_gone())
    return _change_owners(or_(lets_go, takes))


TAKE_FREE = Statement("replica_sets.take_free", lambda: _change_owners(_owner_is_gone()))
HAND_OVER = Statement("replica_sets.hand_over", _hand_over)


# The right to write

FENCE = Statement(
    "replica_sets.fence",
    lambda: (
        select(_owned.generation)
        .where(
            _owned.partition_id == param("partition_id", INTEGER),
            _owned.replica_set == param("replica_set", TEXT),
            _owned.generation == param("generation", BIGINT),
        )
        .with_for_update(read=True)
    ),
)


# Reading


def _list_workers() -> Select[Any]:
    wanted = param("replica_set", TEXT)
    set_after, id_after = param("after_set", TEXT), param("after_id", TEXT)
    return (
        select(
            _worker.replica_set,
            _worker.worker_id,
            _worker.started_at,
            _worker.heartbeat_at,
            _worker.stale_after,
            (~_is_silent()).label("is_alive"),
            cast(_worker.metadata, Text).label("metadata"),
        )
        .where(
            or_(wanted.is_(None), _worker.replica_set == wanted),
            or_(
                _worker.replica_set > set_after,
                and_(_worker.replica_set == set_after, _worker.worker_id > id_after),
            ),
        )
        .order_by(_worker.replica_set, _worker.worker_id)
        .limit(param("limit", BIGINT))
    )


LIST_WORKERS = Statement("replica_sets.list_workers", _list_workers)
LIST_ASSIGNMENTS = Statement(
    "replica_sets.list_assignments",
    lambda: (
        select(_owned.partition_id, _owned.owner, _owned.generation, _target.worker_id.label("target"))
        .outerjoin_from(partition_assignments, partition_targets, _owned_and_planned())
        .where(_of_this_set(_owned.replica_set))
        .order_by(_owned.partition_id)
    ),
)
