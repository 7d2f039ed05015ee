"""What an advance writes besides the flow's own row: a CTE for each part, joined to the flows that were written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, case, delete, func, literal_column, null, select
from sqlalchemy.dialects.postgresql import Insert, insert

from cascade_state.postgres.statements.advance_shape import Shape, part_relation
from cascade_state.postgres.statements.parameters import BIGINT, BOOLEAN, INSTANT, INTEGER, TEXT
from cascade_state.postgres.statements.waits import same_wait
from cascade_state.postgres.tables import component_states, correlations, flow_events, step_results, timers

__all__ = ["Parts"]

# The columns of a wait's row that a delivery fills.
_DELIVERY_COLUMNS = (
    "event_id",
    "payload",
    "mode",
    "published_at",
    "ordinal",
    "delivered_at",
    "available_at",
    "last_error",
    "lease_holder",
    "lease_expires_at",
)


class Parts:
    """Builds the parts of one shape.

    Args:
        shape: What the statement is for.
        advanced: The flows that were written.
        held: The rows that are acknowledged, by their kind: "timers" and "deliveries".
    """

    def __init__(self, shape: Shape, advanced: CTE, held: Mapping[str, CTE]) -> None:
        self._shape = shape
        self._advanced = advanced
        self._held = held
        self._parts: list[CTE] = []

    def build(self) -> list[CTE]:
        """Returns the CTEs of all parts that the shape names, in the order in which they are written."""
        for part, write in (
            ("results", self._write_results),
            ("put_states", self._put_states),
            ("removed_states", self._remove_states),
            ("scheduled", self._schedule),
            ("cancelled", self._cancel),
            ("terminal", self._remove_all_timers),
            ("completed_timers", self._complete_timers),
            ("completed_deliveries", self._complete_deliveries),
            ("dropped_waits", self._drop_waits),
            ("added_waits", self._add_waits),
            ("events", self._append_events),
        ):
            if part in self._shape.parts:
                write()
        return self._parts

    def _write_results(self) -> None:
        given, advanced = self._part("results"), self._advanced
        rows = self._joined(given).add_columns(
            given.c.step_id,
            given.c.status,
            given.c.outputs,
            given.c.error,
            given.c.attempt,
            advanced.c.written_at.label("completed_at"),
        )
        self._upsert("written_results", step_results, rows, ("status", "outputs", "error", "attempt", "completed_at"))

    def _put_states(self) -> None:
        given, advanced = self._part("put_states"), self._advanced
        rows = self._joined(given).add_columns(
            given.c.step_id,
            given.c.state,
            literal_column("CAST(1 AS BIGINT)", BIGINT).label("version"),
            null().cast(INSTANT).label("expires_at"),
            advanced.c.written_at.label("updated_at"),
        )
        statement = _insert(component_states, rows)
        stored, new = component_states.c, statement.excluded
        expired = stored.expires_at <= new.updated_at  # an expired state does not exist: the new one is the first
        one = literal_column("1", BIGINT)
        self._parts.append(
            statement.on_conflict_do_update(
                index_elements=list(component_states.primary_key.columns),
                set_={
                    "state": new.state,
                    "version": case((expired, one), else_=stored.version + one),
                    "expires_at": new.expires_at,
                    "updated_at": new.updated_at,
                },
            ).cte("written_states")
        )

    def _remove_states(self) -> None:
        given, advanced = self._part("removed_states"), self._advanced
        self._delete(
            "removed_states_rows",
            component_states,
            given.c.item == advanced.c.item,
            component_states.c.partition_id == advanced.c.partition_id,
            component_states.c.flow_instance_id == advanced.c.flow_instance_id,
            component_states.c.step_id == given.c.step_id,
        )

    def _schedule(self) -> None:
        given, advanced = self._part("scheduled"), self._advanced
        rows = self._joined(given).add_columns(
            given.c.timer_id,
            given.c.step_id,
            func.coalesce(given.c.due_at, advanced.c.written_at + given.c.after).label("due_at"),
            literal_column("'PENDING'", TEXT).label("status"),
            literal_column("0", INTEGER).label("attempts"),
            given.c.max_attempts,
            given.c.payload,
        )
        self._parts.append(_insert(timers, rows).cte("scheduled_timers"))

    def _cancel(self) -> None:
        given, advanced = self._part("cancelled"), self._advanced
        self._delete(
            "cancelled_timers",
            timers,
            given.c.item == advanced.c.item,
            timers.c.partition_id == given.c.partition_id,
            timers.c.timer_id == given.c.timer_id,
        )

    def _remove_all_timers(self) -> None:
        advanced = self._advanced
        self._delete(
            "removed_timers",
            timers,
            advanced.c.terminal,
            timers.c.partition_id == advanced.c.partition_id,
            timers.c.flow_instance_id == advanced.c.flow_instance_id,
        )

    def _complete_timers(self) -> None:
        held, advanced = self._held["timers"], self._advanced
        self._delete(
            "completed_timers_rows",
            timers,
            held.c.item == advanced.c.item,
            timers.c.partition_id == held.c.partition_id,
            timers.c.timer_id == held.c.timer_id,
        )

    def _complete_deliveries(self) -> None:
        held, advanced = self._held["deliveries"], self._advanced
        self._delete(
            "completed_deliveries_rows",
            correlations,
            held.c.item == advanced.c.item,
            same_wait(correlations, held),
        )

    def _drop_waits(self) -> None:
        given, advanced = self._part("dropped_waits"), self._advanced
        self._delete(
            "dropped_waits_rows",
            correlations,
            given.c.item == advanced.c.item,
            correlations.c.partition_id == given.c.partition_id,
            correlations.c.correlation_key == given.c.correlation_key,
            correlations.c.flow_instance_id == advanced.c.flow_instance_id,
            correlations.c.step_id == given.c.step_id,
        )

    def _add_waits(self) -> None:
        """Stores waits under their keys' locks; the second statement of the advance matches them with early events."""
        given, advanced = self._part("added_waits"), self._advanced
        locked = (
            select(
                given.c.partition_id,
                given.c.correlation_key,
                advanced.c.flow_instance_id,
                given.c.step_id,
                advanced.c.partition_id.label("flow_partition_id"),
                advanced.c.written_at,
                advanced.c.version,
                given.c.expires_at,
                func.pg_advisory_xact_lock(given.c.lock_key).label("locked"),
            )
            .join_from(given, advanced, given.c.item == advanced.c.item)
            .order_by(given.c.lock_key)  # everybody takes several keys in one order
            .cte("locked_waits")
        )
        rows = select(
            locked.c.partition_id,
            locked.c.correlation_key,
            locked.c.flow_instance_id,
            locked.c.step_id,
            locked.c.flow_partition_id,
            literal_column("'NEW'", TEXT).label("status"),
            locked.c.written_at.label("created_at"),
            locked.c.expires_at,
            # Above every token of an earlier wait of the same key, flow and step: it came with a lower
            # version.
            locked.c.version.op("<<")(literal_column("32")).label("lease_token"),
            *(null().cast(correlations.c[name].type).label(name) for name in _DELIVERY_COLUMNS),
            literal_column("false", BOOLEAN).label("timed_out"),
            literal_column("0", INTEGER).label("attempts"),
        )
        kept = {"partition_id", "correlation_key", "flow_instance_id", "step_id"}
        replaced = tuple(column.name for column in rows.selected_columns if column.name not in kept)
        self._upsert("written_waits", correlations, rows, replaced)

    def _append_events(self) -> None:
        given, advanced = self._part("events"), self._advanced
        rows = self._joined(given).add_columns(
            (advanced.c.event_base + given.c.ordinal).label("sequence"),
            given.c.event_type,
            given.c.payload,
            advanced.c.written_at.label("recorded_at"),
        )
        if not self._shape.is_new:
            place = self._feed_place()
            rows = rows.join(place, place.c.item == advanced.c.item).add_columns(place.c.recorded_xid)
        self._parts.append(_insert(flow_events, rows).cte("appended_events"))

    def _feed_place(self) -> CTE:
        """For each flow this transaction's id, or that of the flow's last event if that is higher.

        A unit of work that began before the flow's last advance has a lower id than it; the feed, which is ordered by
        this column, would then show the flow's events the wrong way round.

        It is looked up once a flow, not once an event. The planner must see that, too: or else it takes a plan made for
        any parameters to be too costly, and makes a new one at each execution.
        """
        advanced, last = self._advanced, flow_events.alias("last_event")
        before = (
            select(last.c.recorded_xid)
            .where(
                last.c.partition_id == advanced.c.partition_id,
                last.c.flow_instance_id == advanced.c.flow_instance_id,
                last.c.sequence == advanced.c.event_base,
            )
            .correlate(advanced)
            .scalar_subquery()
        )
        place = func.greatest(func.pg_current_xact_id(), before).label("recorded_xid")
        return select(advanced.c.item, place).cte("feed_place").prefix_with("MATERIALIZED")

    # How they are made

    def _part(self, name: str) -> CTE:
        return part_relation(self._shape, name)

    def _joined(self, given: CTE) -> Select[Any]:
        advanced = self._advanced
        return select(advanced.c.partition_id, advanced.c.flow_instance_id).join_from(
            given, advanced, given.c.item == advanced.c.item
        )

    def _upsert(self, name: str, table: Any, rows: Select[Any], replaced: tuple[str, ...]) -> None:
        statement = _insert(table, rows)
        self._parts.append(
            statement.on_conflict_do_update(
                index_elements=list(table.primary_key.columns),
                set_={column: statement.excluded[column] for column in replaced},
            ).cte(name)
        )

    def _delete(self, name: str, table: Any, *conditions: ColumnElement[bool]) -> None:
        self._parts.append(delete(table).where(*conditions).cte(name))


def _insert(table: Any, rows: Select[Any]) -> Insert:
    return insert(table).from_select([column.name for column in rows.selected_columns], rows)
