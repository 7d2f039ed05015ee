"""What lies behind a checkpoint: the events that a consumer has before it, in their order.

A checkpoint and an event are compared as (recorded_xid, flow_instance_id, sequence). Whatever covers many partitions
looks into each of them by the index of one partition: as many short descents, in one statement.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    TableValuedAlias,
    cast,
    column,
    exists,
    func,
    literal_column,
    not_,
    or_,
    tuple_,
)
from sqlalchemy.types import UserDefinedType

from cascade_state.postgres.columns import XID8
from cascade_state.postgres.statements.events import partition_feed
from cascade_state.postgres.statements.parameters import BIGINT, INTEGER, TEXT, UUID_VALUE, param
from cascade_state.postgres.tables import feed_checkpoints, feed_consumers, flow_events

__all__ = [
    "NIL",
    "ONE",
    "PLACE",
    "START",
    "XID0",
    "ZERO",
    "Snapshot",
    "behind_checkpoint",
    "every_partition",
    "is_this_consumer",
    "is_unhandled",
]

_consumer = feed_consumers.c
_checkpoint = feed_checkpoints.c
_event = flow_events.c

NIL = literal_column("'00000000-0000-0000-0000-000000000000'::uuid", UUID_VALUE)
XID0 = literal_column("'0'::xid8", XID8())
ZERO = literal_column("0", BIGINT)
ONE = literal_column("1", INTEGER)

PLACE = (_checkpoint.recorded_xid, _checkpoint.flow_instance_id, _checkpoint.sequence)

START = (XID0, NIL, ZERO)  # in front of every event


class Snapshot(UserDefinedType[str]):
    """What is stored as text, because no tool that reads schemas knows the type."""

    cache_ok: bool | None = True

    def get_col_spec(self, **_: Any) -> str:
        """Returns the name of the type."""
        return "pg_snapshot"


def is_this_consumer() -> ColumnElement[bool]:
    """Whether a row of consumers is the one that the parameter `consumer` names."""
    return _consumer.consumer == param("consumer", TEXT)


def _is_wanted(consumer: Any, event: Any) -> ColumnElement[bool]:
    """Whether a consumer that started "now" wants an event: one that was not committed then.

    Events of a flow may carry a later transaction's id than their own, so that they come in order: those that were
    appended to what was visible, by a transaction that was not. Their time tells them apart.
    """
    # Looked up by its key again, so that the event's entry in the index is enough wherever this is not asked.
    own, first = flow_events.alias("own"), flow_events.alias("first_of_transaction")
    was_appended = (
        exists()
        .where(
            own.c.partition_id == event.partition_id,
            own.c.flow_instance_id == event.flow_instance_id,
            own.c.sequence == event.sequence,
            first.c.partition_id == event.partition_id,
            first.c.flow_instance_id == event.flow_instance_id,
            first.c.sequence < event.sequence,
            first.c.recorded_xid == event.recorded_xid,
            first.c.recorded_at != own.c.recorded_at,
        )
        .correlate_except(own, first)
    )
    return or_(
        consumer.start_snapshot.is_(None),
        not_(func.pg_visible_in_snapshot(event.recorded_xid, cast(consumer.start_snapshot, Snapshot()))),
        was_appended,
    )


def is_unhandled(event: Any) -> ColumnElement[bool]:
    """Whether some consumer has not handled an event."""
    is_behind = tuple_(event.recorded_xid, event.flow_instance_id, event.sequence) > tuple_(*PLACE)
    return (
        exists()
        .where(
            _checkpoint.partition_id == event.partition_id,
            _consumer.consumer == _checkpoint.consumer,
            is_behind,
            _is_wanted(_consumer, event),
        )
        .correlate_except(feed_checkpoints, feed_consumers)
    )


def behind_checkpoint(*selected: ColumnElement[Any]) -> Select[Any]:
    """The events behind a checkpoint that its consumer wants; for a query that has both tables."""
    feed = partition_feed(_checkpoint.partition_id, PLACE, *selected)
    return feed.where(_is_wanted(_consumer, _event)).correlate(feed_checkpoints, feed_consumers)


def every_partition() -> TableValuedAlias:
    """The numbers of all partitions, of which there are `partition_count`, a parameter."""
    last = param("partition_count", INTEGER) - ONE
    numbers = func.generate_series(cast(ZERO, INTEGER), last).table_valued(column("number", INTEGER))
    return numbers.render_derived(name="every_partition")
