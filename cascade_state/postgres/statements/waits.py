"""What the statements about waits and published events share: their tables, keys, and who holds a delivery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CTE, ColumnElement, Table, and_, literal_column

from cascade_state.model.advance import HeldDelivery
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements.parameters import BIGINT, INTEGER, TEXT, UUID_VALUE, columns, relation
from cascade_state.postgres.tables import correlations, early_events

__all__ = [
    "HELD_COLUMNS",
    "SWEEP",
    "WAIT_COLUMNS",
    "event",
    "given_deliveries",
    "held_values",
    "is_held",
    "is_waiting",
    "key",
    "same_event",
    "same_wait",
    "wait",
]

wait: Table = correlations
event: Table = early_events

SWEEP = 1000  # rows that one sweep turns; the next claim goes on

WAIT_COLUMNS = {
    "partition_id": INTEGER,
    "correlation_key": TEXT,
    "flow_instance_id": UUID_VALUE,
    "step_id": TEXT,
}
HELD_COLUMNS = {**WAIT_COLUMNS, "token": BIGINT}


def held_values(executor: Executor, held: Sequence[HeldDelivery]) -> dict[str, Any]:
    """Returns the values that name held deliveries, and their tokens."""
    rows = [
        (
            executor.partition_of_key(item.correlation_key),
            item.correlation_key,
            item.flow_instance_id,
            item.step_id,
            item.token,
        )
        for item in held
    ]
    return dict(columns("held", tuple(HELD_COLUMNS), rows))


def key(*names: str) -> tuple[ColumnElement[Any], ...]:
    """The columns that name a wait, and others of it."""
    return tuple(wait.c[name] for name in ("partition_id", "correlation_key", "flow_instance_id", "step_id", *names))


def same_wait(left: Any, right: Any) -> ColumnElement[bool]:
    """Whether two rows are of one wait."""
    return and_(
        *(left.c[name] == right.c[name] for name in ("partition_id", "correlation_key", "flow_instance_id", "step_id"))
    )


def same_event(left: Any, right: Any) -> ColumnElement[bool]:
    """Whether two rows are of one event."""
    return and_(*(left.c[name] == right.c[name] for name in ("partition_id", "correlation_key", "event_id")))


def is_waiting() -> ColumnElement[bool]:
    """Whether a wait has no delivery yet."""
    return wait.c.status.in_([literal_column("'NEW'"), literal_column("'WAITING'")])


def given_deliveries() -> CTE:
    """The deliveries that a call names, with their tokens."""
    return relation("held", HELD_COLUMNS).cte("given")


def is_held(given: CTE) -> ColumnElement[bool]:
    """Whether a wait is a delivery that is still held under the given token."""
    return and_(same_wait(wait, given), wait.c.lease_token == given.c.token, wait.c.lease_holder.is_not(None))
