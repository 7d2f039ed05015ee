"""Statements about flow definitions, and about the flows that an undeployment has to look at."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    INTEGER,
    JSON_DOCUMENT,
    NOW,
    TEXT,
    UUID_VALUE,
    param,
    relation,
)
from cascade_state.postgres.tables import correlations, flow_definitions, flow_instances, idempotency_keys

__all__ = [
    "COUNT_LIVING",
    "DEPLOY",
    "FIND_LATEST",
    "FIND_VERSION",
    "HIDE",
    "LIST_LATEST",
    "LIST_VERSIONS",
    "LOCK_NAME",
    "LOCK_VISIBLE",
    "REMOVE_FLOWS",
    "REMOVE_TRACES",
]

_definition = flow_definitions.c


def _definition_columns() -> tuple[ColumnElement[Any], ...]:
    return (
        _definition.flow_id,
        _definition.version,
        cast(_definition.content, Text).label("content"),
        _definition.deployed_at,
    )


def _of_flow_id() -> ColumnElement[bool]:
    return _definition.flow_id == param("flow_id", TEXT)


def _is_visible() -> ColumnElement[bool]:
    return _definition.undeployed_at.is_(None)


# Deploying

LOCK_NAME = Statement(
    "flow_definitions.lock_name",
    lambda: select(func.pg_advisory_xact_lock(param("lock_key", BIGINT)).label("locked")),
)


def _deploy() -> Select[Any]:
    """Inserts a version unless the latest visible one has the same digest; returns the one or the other."""
    latest = (
        select(_definition.version, _definition.digest, _definition.deployed_at)
        .where(_of_flow_id(), _is_visible())
        .order_by(_definition.version.desc())
        .limit(literal_column("1"))
        .cte("latest")
    )
    same = latest.c.digest == param("digest", TEXT)
    highest = select(func.coalesce(func.max(_definition.version), literal_column("0"))).where(_of_flow_id())
    row = select(
        param("flow_id", TEXT).label("flow_id"),
        (highest.scalar_subquery() + literal_column("1", INTEGER)).label("version"),
        param("digest", TEXT).label("digest"),
        param("content", JSON_DOCUMENT).label("content"),
        NOW.label("deployed_at"),
    ).where(~exists(select(latest.c.version).where(same)))
    inserted = (
        insert(flow_definitions)
        .from_select([column.name for column in row.selected_columns], row)
        .on_conflict_do_nothing(index_elements=["flow_id", "version"])
        .returning(_definition.version, _definition.deployed_at)
        .cte("inserted")
    )
    new = select(inserted.c.version, inserted.c.deployed_at)
    return new.union_all(select(latest.c.version, latest.c.deployed_at).where(same))  # type: ignore[return-value]


DEPLOY = Statement("flow_definitions.deploy", _deploy)

# Reading

FIND_VERSION = Statement(
    "flow_definitions.find_version",
    lambda: select(*_definition_columns()).where(_of_flow_id(), _definition.version == param("version", INTEGER)),
)
FIND_LATEST = Statement(
    "flow_definitions.find_latest",
    lambda: (
        select(*_definition_columns())
        .where(_of_flow_id(), _is_visible())
        .order_by(_definition.version.desc())
        .limit(literal_column("1"))
    ),
)


def _list_latest() -> Select[Any]:
    newer = flow_definitions.alias("newer")
    is_superseded = exists().where(
        newer.c.flow_id == _definition.flow_id,
        newer.c.version > _definition.version,
        newer.c.undeployed_at.is_(None),
    )
    return (
        select(*_definition_columns())
        .where(_definition.flow_id > param("after", TEXT), _is_visible(), ~is_superseded)
        .order_by(_definition.flow_id)
        .limit(param("limit", BIGINT))
    )


LIST_LATEST = Statement("flow_definitions.list_latest", _list_latest)
LIST_VERSIONS = Statement(
    "flow_definitions.list_versions",
    lambda: (
        select(*_definition_columns())
        .where(_of_flow_id(), _definition.version > param("after", INTEGER), _is_visible())
        .order_by(_definition.version)
        .limit(param("limit", BIGINT))
    ),
)

# Undeploying


def _lock_visible() -> Select[Any]:
    """Locks the versions to be hidden.

    A flow that is being inserted holds a lock on its definition, so this waits for it, and the count sees it.
    """
    version = param("version", INTEGER)
    return (
        select(_definition.version)
        .where(_of_flow_id(), or_(version.is_(None), _definition.version == version), _is_visible())
        .order_by(_definition.version)
        .with_for_update()
    )


def _among_versions(column: ColumnElement[int]) -> ColumnElement[bool]:
    return column.in_(relation("chosen", {"version": INTEGER}))


def _flows_of_versions() -> ColumnElement[bool]:
    flow = flow_instances.c
    return and_(flow.flow_id == param("flow_id", TEXT), _among_versions(flow.flow_version))


LOCK_VISIBLE = Statement("flow_definitions.lock_visible", _lock_visible)
COUNT_LIVING = Statement(
    "flow_definitions.count_living",
    lambda: (
        select(func.count().label("total"))
        .select_from(flow_instances)
        .where(_flows_of_versions(), flow_instances.c.completed_at.is_(None))
    ),
)
HIDE = Statement(
    "flow_definitions.hide",
    lambda: (
        update(flow_definitions)
        .where(_of_flow_id(), _among_versions(_definition.version), _is_visible())
        .values(undeployed_at=NOW)
        .returning(_definition.version)
    ),
)
REMOVE_FLOWS = Statement(
    "flow_definitions.remove_flows",
    lambda: delete(flow_instances).where(_flows_of_versions()).returning(flow_instances.c.flow_instance_id),
)


def _remove_traces() -> Select[Any]:
    """Removes what lies in the partitions of keys: waits, deliveries and business keys of removed flows.

    A statement of its own: its snapshot holds what was committed until the flows' rows were deleted.
    """
    removed = relation("removed", {"flow_instance_id": UUID_VALUE}).cte("removed")
    flows = select(removed.c.flow_instance_id)
    waits = delete(correlations).where(correlations.c.flow_instance_id.in_(flows)).cte("waits")
    keys = delete(idempotency_keys).where(idempotency_keys.c.flow_instance_id.in_(flows)).cte("keys")
    return select(func.count().label("total")).select_from(removed).add_cte(waits, keys)


REMOVE_TRACES = Statement("flow_definitions.remove_traces", _remove_traces)
