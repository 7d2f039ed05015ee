"""What a statement of an advance is made for, and the columns of what it is given."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import CTE, literal_column

from cascade_state.postgres.statements.parameters import (
    BIGINT,
    BOOLEAN,
    INSTANT,
    INTEGER,
    INTERVAL,
    JSON_DOCUMENT,
    JSONB_DOCUMENT,
    TEXT,
    UUID_VALUE,
    relation,
    scalars,
)

__all__ = ["FLOW_COLUMNS", "NEW_FLOW_COLUMNS", "PART_COLUMNS", "Shape", "part_relation"]

FLOW_COLUMNS = {
    "partition_id": INTEGER,
    "flow_instance_id": UUID_VALUE,
    "version": BIGINT,
    "status": TEXT,
    "error": JSON_DOCUMENT,
    "search_attributes": JSONB_DOCUMENT,
    "waits": JSON_DOCUMENT,
    "pending_timers": JSON_DOCUMENT,
    "terminal": BOOLEAN,
    "event_count": INTEGER,
    "lease_token": BIGINT,
    "timer_count": INTEGER,
    "delivery_count": INTEGER,
}
NEW_FLOW_COLUMNS = {
    **FLOW_COLUMNS,
    "root_id": UUID_VALUE,
    "parent_id": UUID_VALUE,
    "flow_id": TEXT,
    "flow_version": INTEGER,
    "business_key": TEXT,
    "key_partition_id": INTEGER,
    "key_scope": TEXT,
    "trigger_data": JSON_DOCUMENT,
}
# part -> the columns of its relation, besides the position of the flow it belongs to
PART_COLUMNS = {
    "completed_timers": {"partition_id": INTEGER, "timer_id": UUID_VALUE, "token": BIGINT},
    "completed_deliveries": {
        "partition_id": INTEGER,
        "correlation_key": TEXT,
        "flow_instance_id": UUID_VALUE,
        "step_id": TEXT,
        "token": BIGINT,
    },
    "results": {
        "step_id": TEXT,
        "status": TEXT,
        "outputs": JSON_DOCUMENT,
        "error": JSON_DOCUMENT,
        "attempt": INTEGER,
    },
    "put_states": {"step_id": TEXT, "state": JSON_DOCUMENT},
    "removed_states": {"step_id": TEXT},
    "scheduled": {
        "timer_id": UUID_VALUE,
        "step_id": TEXT,
        "due_at": INSTANT,
        "after": INTERVAL,
        "payload": JSON_DOCUMENT,
        "max_attempts": INTEGER,
    },
    "cancelled": {"partition_id": INTEGER, "timer_id": UUID_VALUE},
    "dropped_waits": {"partition_id": INTEGER, "correlation_key": TEXT, "step_id": TEXT},
    "added_waits": {
        "partition_id": INTEGER,
        "correlation_key": TEXT,
        "step_id": TEXT,
        "expires_at": INSTANT,
        "lock_key": BIGINT,
    },
    "events": {"ordinal": INTEGER, "event_type": TEXT, "payload": JSON_DOCUMENT},
}


class Shape(NamedTuple):
    """What a statement is for: new flows or stored ones, one or a batch, and the parts that it writes.

    `parts` names parts of `PART_COLUMNS`, and "terminal" and "lease" where a flow ends or is written under
    its lease. `single_rows` names those parts of one flow that are one row: it travels as scalars, which costs
    less than arrays of one element, on both sides.
    """

    is_new: bool
    is_batch: bool
    parts: frozenset[str]
    single_rows: frozenset[str] = frozenset()


def part_relation(shape: Shape, name: str) -> CTE:
    """The relation of one part's parameters: what is to be written, by the position of its flow."""
    types = PART_COLUMNS[name]
    if shape.is_batch:
        return relation(name, {"item": INTEGER, **types}).cte(name)
    if name in shape.single_rows:
        return scalars(name, types).cte(name)
    return relation(name, types).add_columns(literal_column("0", INTEGER).label("item")).cte(name)
