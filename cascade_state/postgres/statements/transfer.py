"""Statements that read a family of flows as it is, and write it elsewhere."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, Table, and_, case, cast, func, literal_column, null, select
from sqlalchemy.dialects.postgresql import Insert, insert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.flow_instances import instance_columns
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    BOOLEAN,
    INSTANT,
    INTEGER,
    JSON_DOCUMENT,
    JSONB_DOCUMENT,
    NOW,
    TEXT,
    UUID_VALUE,
    param,
    relation,
)
from cascade_state.postgres.statements.timers import DEAD
from cascade_state.postgres.tables import (
    component_states,
    correlations,
    flow_definitions,
    flow_events,
    flow_instances,
    idempotency_keys,
    step_results,
    timers,
)

__all__ = [
    "DEFINITIONS",
    "FAMILY",
    "FIND_IMPORTED",
    "IMPORTED_PARTS",
    "IMPORT_DEFINITION",
    "IMPORT_FLOW",
    "IMPORT_PARTS",
    "KEY_HOLDER",
    "PARTS",
    "STORED_DIGEST",
    "TAKE_KEY",
]

flow: Table = flow_instances

# Reading


def _family() -> Select[Any]:
    """All flows with the same root as the given one, in the order of their creation."""
    given = flow_instances.alias("given")
    root = (
        select(given.c.root_id)
        .where(
            given.c.partition_id == param("partition_id", INTEGER),
            given.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
        )
        .scalar_subquery()
    )
    return (
        select(*instance_columns())
        .where(flow.c.partition_id == param("partition_id", INTEGER), flow.c.root_id == root)
        .order_by(flow.c.created_at, flow.c.flow_instance_id)
    )


def _of_flows(
    table: Any, names: tuple[str, ...], documents: tuple[str, ...], partition: str = "partition_id"
) -> Select[Any]:
    given = relation("flow", {"partition_id": INTEGER, "flow_instance_id": UUID_VALUE}).subquery("given")
    chosen = [
        cast(table.c[name], TEXT).label(name) if name in documents else table.c[name]
        for name in ("flow_instance_id", *names)
    ]
    same = and_(table.c[partition] == given.c.partition_id, table.c.flow_instance_id == given.c.flow_instance_id)
    return select(*chosen).join_from(given, table, same)


def _states() -> Select[Any]:
    names = ("step_id", "state", "version", "expires_at", "updated_at")
    return _of_flows(component_states, names, ("state",)).order_by(component_states.c.step_id)


def _timers() -> Select[Any]:
    names = ("timer_id", "step_id", "due_at", "status", "attempts", "max_attempts", "payload", "last_error")
    return _of_flows(timers, names, ("payload",)).order_by(timers.c.due_at, timers.c.timer_id)


def _waits() -> Select[Any]:
    query = _of_flows(
        correlations,
        ("correlation_key", "step_id", "created_at", "expires_at"),
        (),
        partition="flow_partition_id",
    )
    return query.where(correlations.c.status != literal_column("'DELIVERED'")).order_by(correlations.c.step_id)


def _deliveries() -> Select[Any]:
    names = ("correlation_key", "step_id", "event_id", "payload", "delivered_at", "timed_out", "attempts")
    query = _of_flows(correlations, names, ("payload",), partition="flow_partition_id")
    return query.where(correlations.c.status == literal_column("'DELIVERED'")).order_by(correlations.c.step_id)


def _history() -> Select[Any]:
    names = ("sequence", "event_type", "payload", "recorded_at")
    return _of_flows(flow_events, names, ("payload",)).order_by(flow_events.c.sequence)


FAMILY = Statement("transfer.family", _family)
PARTS = {
    "states": Statement("transfer.states", _states),
    "timers": Statement("transfer.timers", _timers),
    "waits": Statement("transfer.waits", _waits),
    "deliveries": Statement("transfer.deliveries", _deliveries),
    "history": Statement("transfer.history", _history),
}


def _definitions() -> Select[Any]:
    given = relation("definition", {"flow_id": TEXT, "version": INTEGER}).subquery("given")
    definition = flow_definitions
    return select(
        definition.c.version, definition.c.deployed_at, cast(definition.c.content, TEXT).label("content")
    ).join_from(
        given,
        definition,
        and_(definition.c.flow_id == given.c.flow_id, definition.c.version == given.c.version),
    )


DEFINITIONS = Statement("transfer.definitions", _definitions)

# Writing


def _import_definition() -> Any:
    return (
        insert(flow_definitions)
        .values(
            flow_id=param("flow_id", TEXT),
            version=param("version", INTEGER),
            digest=param("digest", TEXT),
            content=param("content", JSON_DOCUMENT),
            deployed_at=func.coalesce(param("deployed_at", INSTANT), NOW),
        )
        .on_conflict_do_nothing()
        .returning(flow_definitions.c.digest)
    )


IMPORT_DEFINITION = Statement("transfer.import_definition", _import_definition)
STORED_DIGEST = Statement(
    "transfer.stored_digest",
    lambda: select(flow_definitions.c.digest).where(
        flow_definitions.c.flow_id == param("flow_id", TEXT),
        flow_definitions.c.version == param("version", INTEGER),
    ),
)

_FLOW_COLUMNS = {
    "partition_id": INTEGER,
    "flow_instance_id": UUID_VALUE,
    "root_id": UUID_VALUE,
    "parent_id": UUID_VALUE,
    "flow_id": TEXT,
    "flow_version": INTEGER,
    "status": TEXT,
    "business_key": TEXT,
    "trigger_data": JSON_DOCUMENT,
    "error": JSON_DOCUMENT,
    "search_attributes": JSONB_DOCUMENT,
    "waits": JSON_DOCUMENT,
    "pending_timers": JSON_DOCUMENT,
    "version": BIGINT,
    "event_count": BIGINT,
    "created_at": INSTANT,
    "updated_at": INSTANT,
    "completed_at": INSTANT,
}
IMPORT_FLOW = Statement(
    "transfer.import_flow",
    lambda: (
        insert(flow)
        .values({name: param(name, type_) for name, type_ in _FLOW_COLUMNS.items()})
        .on_conflict_do_nothing()
        .returning(flow.c.flow_instance_id)
    ),
)
FIND_IMPORTED = Statement(
    "transfer.find_imported",
    lambda: select(*instance_columns()).where(
        flow.c.partition_id == param("partition_id", INTEGER),
        flow.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
    ),
)


def _take_key() -> Any:
    return (
        insert(idempotency_keys)
        .values(
            partition_id=param("key_partition_id", INTEGER),
            scope=param("scope", TEXT),
            key=param("key", TEXT),
            flow_instance_id=param("flow_instance_id", UUID_VALUE),
            created_at=NOW,
        )
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.flow_instance_id)
    )


TAKE_KEY = Statement("transfer.take_key", _take_key)
KEY_HOLDER = Statement(
    "transfer.key_holder",
    lambda: select(idempotency_keys.c.flow_instance_id).where(
        idempotency_keys.c.partition_id == param("key_partition_id", INTEGER),
        idempotency_keys.c.scope == param("scope", TEXT),
        idempotency_keys.c.key == param("key", TEXT),
    ),
)

_FLOW = {"partition_id": INTEGER, "flow_instance_id": UUID_VALUE}
# part -> the columns of its rows
IMPORTED_PARTS: dict[str, dict[str, Any]] = {
    "results": {
        **_FLOW,
        "step_id": TEXT,
        "status": TEXT,
        "outputs": JSON_DOCUMENT,
        "error": JSON_DOCUMENT,
        "attempt": INTEGER,
        "completed_at": INSTANT,
    },
    "states": {
        **_FLOW,
        "step_id": TEXT,
        "state": JSON_DOCUMENT,
        "version": BIGINT,
        "expires_at": INSTANT,
        "updated_at": INSTANT,
    },
    "timers": {
        "partition_id": INTEGER,
        "timer_id": UUID_VALUE,
        "flow_instance_id": UUID_VALUE,
        "step_id": TEXT,
        "due_at": INSTANT,
        "status": TEXT,
        "attempts": INTEGER,
        "max_attempts": INTEGER,
        "payload": JSON_DOCUMENT,
        "last_error": TEXT,
        "lease_token": BIGINT,
    },
    "history": {
        **_FLOW,
        "sequence": BIGINT,
        "event_type": TEXT,
        "payload": JSON_DOCUMENT,
        "recorded_at": INSTANT,
    },
    "waits": {
        "partition_id": INTEGER,
        "correlation_key": TEXT,
        "flow_instance_id": UUID_VALUE,
        "step_id": TEXT,
        "flow_partition_id": INTEGER,
        "status": TEXT,
        "created_at": INSTANT,
        "expires_at": INSTANT,
        "event_id": TEXT,
        "payload": JSON_DOCUMENT,
        "delivered_at": INSTANT,
        "timed_out": BOOLEAN,
        "attempts": INTEGER,
        "lease_token": BIGINT,
    },
}


def _import_part(name: str, table: Any) -> Insert:
    types = IMPORTED_PARTS[name]
    rows = relation("row", types)
    if name == "waits":
        available = rows.subquery("given")
        rows = select(available, available.c.delivered_at.label("available_at"))
    if name == "timers":
        given = rows.subquery("given")
        died = case((given.c.status == DEAD, NOW), else_=null())
        rows = select(given, died.label("died_at"))
    return insert(table).from_select([column.name for column in rows.selected_columns], rows)


IMPORT_PARTS = {
    "results": Statement("transfer.import_results", lambda: _import_part("results", step_results)),
    "states": Statement("transfer.import_states", lambda: _import_part("states", component_states)),
    "timers": Statement("transfer.import_timers", lambda: _import_part("timers", timers)),
    "history": Statement("transfer.import_history", lambda: _import_part("history", flow_events)),
    "waits": Statement("transfer.import_waits", lambda: _import_part("waits", correlations)),
}
