"""The advance: everything that one step of a flow writes, as one statement.

The statement is a chain of data-modifying CTEs. `flow` holds the flows to advance: one row of scalars, or,
for a batch, a row for each. `held_timers` and `held_deliveries` lock the rows that are to be acknowledged and
whose token is current; `ready` keeps the flows for which all of them are. `advanced` then updates the flows
whose version (and lease) is current, or inserts new ones, and every other CTE joins `advanced`: where the
flow was not written, nothing is. So a stale writer changes nothing, and the caller sees it by the record that
is missing.

A statement contains only the parts that its plans need, so a plain step stays a small statement. There is one
text for each combination (`Shape`), built when first needed. The cost does not depend on how many steps the
flow has finished.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    BOOLEAN,
    INSTANT,
    INTEGER,
    INTERVAL,
    JSON_DOCUMENT,
    JSONB_DOCUMENT,
    NOW,
    TEXT,
    UUID_VALUE,
    relation,
    scalars,
)
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

__all__ = ["FLOW_COLUMNS", "NEW_FLOW_COLUMNS", "PART_COLUMNS", "Shape", "advance_statement"]

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


@cache
def advance_statement(shape: Shape) -> Statement:
    """Returns the statement of a shape.

    Its records have `item` (the flow's position), `version`, `written_at` and, for new flows, `created_at`.
    """
    kind = "add" if shape.is_new else "advance"
    size = "batch" if shape.is_batch else "one"
    return Statement(f"flow_instances.{kind}.{size}", lambda: _Builder(shape).build())


class _Builder:
    """Builds the statement of one shape, part by part."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        types = NEW_FLOW_COLUMNS if shape.is_new else FLOW_COLUMNS
        flow = relation("flow", {"item": INTEGER, **types}) if shape.is_batch else scalars("flow", types)
        self._flow = flow.cte("flow")
        self._parts: list[CTE] = []
        self._held: dict[str, CTE] = {}

    def build(self) -> Select[Any]:
        ready = self._ready()
        self._advanced = self._inserted(ready) if self._shape.is_new else self._updated(ready)
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
        advanced = self._advanced
        return select(advanced.c.item, advanced.c.version, advanced.c.written_at).add_cte(*self._parts)

    # Who may be written

    def _ready(self) -> CTE:
        """The flows whose acknowledged timers and deliveries are all held under a current lease."""
        conditions: list[ColumnElement[bool]] = []
        if "completed_timers" in self._shape.parts:
            held = self._held["timers"] = self._held_timers()
            conditions.append(self._holds_all(held, self._flow.c.timer_count))
        if "completed_deliveries" in self._shape.parts:
            held = self._held["deliveries"] = self._held_deliveries()
            conditions.append(self._holds_all(held, self._flow.c.delivery_count))
        if not conditions:
            return self._flow
        return select(self._flow).where(*conditions).cte("ready")

    def _held_timers(self) -> CTE:
        given = self._part("completed_timers")
        same = and_(timers.c.partition_id == given.c.partition_id, timers.c.timer_id == given.c.timer_id)
        return (
            select(given.c.item, timers.c.partition_id, timers.c.timer_id)
            .join_from(given, timers, same)
            .where(timers.c.lease_token == given.c.token, timers.c.lease_holder.is_not(None))
            .with_for_update(of=timers)
            .cte("held_timers")
        )

    def _held_deliveries(self) -> CTE:
        given = self._part("completed_deliveries")
        row = correlations.c
        return (
            select(given.c.item, row.partition_id, row.correlation_key, row.flow_instance_id, row.step_id)
            .join_from(given, correlations, _same_wait(correlations, given))
            .where(row.lease_token == given.c.token, row.lease_holder.is_not(None))
            .with_for_update(of=correlations)
            .cte("held_deliveries")
        )

    def _holds_all(self, held: CTE, wanted: ColumnElement[int]) -> ColumnElement[bool]:
        count = select(func.count()).select_from(held).where(held.c.item == self._flow.c.item).scalar_subquery()
        return count == wanted

    # The flow itself

    def _updated(self, ready: CTE) -> CTE:
        flow = flow_instances
        conditions: list[ColumnElement[bool]] = [
            flow.c.partition_id == ready.c.partition_id,
            flow.c.flow_instance_id == ready.c.flow_instance_id,
            flow.c.version == ready.c.version,
        ]
        if "lease" in self._shape.parts:
            held = and_(flow.c.lease_token == ready.c.lease_token, flow.c.lease_holder.is_not(None))
            conditions.append(or_(ready.c.lease_token.is_(None), held))
        values: dict[str, Any] = {
            "status": ready.c.status,
            "error": ready.c.error,
            "search_attributes": ready.c.search_attributes,
            "waits": ready.c.waits,
            "pending_timers": ready.c.pending_timers,
            "version": flow.c.version + 1,
            "event_count": flow.c.event_count + ready.c.event_count,
            "updated_at": NOW,
        }
        if "terminal" in self._shape.parts:
            # Timers that were scheduled since this statement's snapshot are invisible to the DELETE below.
            # Whoever schedules one counts `timer_changes` up; where the row (read afresh under its lock) and
            # the snapshot differ, the flow is not written, and the caller tries again with a new snapshot.
            seen = flow_instances.alias("seen")
            unchanged = (
                select(seen.c.timer_changes)
                .where(
                    seen.c.partition_id == ready.c.partition_id,
                    seen.c.flow_instance_id == ready.c.flow_instance_id,
                )
                .correlate(ready)
                .scalar_subquery()
            )
            ends = ready.c.terminal
            conditions.append(or_(not_(ends), flow.c.timer_changes == unchanged))
            values["completed_at"] = case((ends, NOW), else_=None)
            for name in ("lease_holder", "lease_expires_at"):
                values[name] = case((ends, None), else_=flow.c[name])
        return (
            update(flow)
            .where(*conditions)
            .values(values)
            .returning(
                ready.c.item,
                ready.c.terminal,
                flow.c.partition_id,
                flow.c.flow_instance_id,
                flow.c.version,
                (flow.c.event_count - ready.c.event_count).label("event_base"),
                flow.c.updated_at.label("written_at"),
            )
            .cte("advanced")
        )

    def _inserted(self, ready: CTE) -> CTE:
        """Inserts flows whose id is free, whose definition is deployed, and whose business key (if any) was free."""
        definitions = (
            select(flow_definitions.c.flow_id, flow_definitions.c.version)
            .where(
                exists().where(
                    ready.c.flow_id == flow_definitions.c.flow_id,
                    ready.c.flow_version == flow_definitions.c.version,
                ),
                flow_definitions.c.undeployed_at.is_(None),
            )
            # The lock that the foreign key takes anyway, early: an undeployment under way is waited for and
            # then seen.
            .with_for_update(key_share=True, read=True)
            .cte("definitions")
        )
        stored = flow_instances.alias("stored")
        free = (
            select(ready)
            .join_from(
                ready,
                definitions,
                and_(definitions.c.flow_id == ready.c.flow_id, definitions.c.version == ready.c.flow_version),
            )
            .where(
                ~exists().where(
                    stored.c.partition_id == ready.c.partition_id,
                    stored.c.flow_instance_id == ready.c.flow_instance_id,
                )
            )
            .cte("free")
        )
        keys = self._taken_keys(free)
        has_key = exists().where(
            keys.c.scope == free.c.key_scope,
            keys.c.key == free.c.business_key,
            keys.c.flow_instance_id == free.c.flow_instance_id,
        )
        now = NOW
        chosen = select(
            free.c.partition_id,
            free.c.flow_instance_id,
            free.c.root_id,
            free.c.parent_id,
            free.c.flow_id,
            free.c.flow_version,
            free.c.status,
            free.c.business_key,
            free.c.trigger_data,
            free.c.error,
            free.c.search_attributes,
            free.c.waits,
            free.c.pending_timers,
            literal_column("CAST(1 AS BIGINT)", BIGINT).label("version"),
            free.c.event_count,
            now.label("created_at"),
            now.label("updated_at"),
            case((free.c.terminal, now), else_=None).label("completed_at"),
        ).where(or_(free.c.business_key.is_(None), has_key))
        inserted = (
            insert(flow_instances)
            .from_select([column.name for column in chosen.selected_columns], chosen)
            .on_conflict_do_nothing(index_elements=["partition_id", "flow_instance_id"])
            .returning(flow_instances.c.flow_instance_id, flow_instances.c.created_at)
            .cte("inserted")
        )
        return (
            select(
                ready.c.item,
                ready.c.terminal,
                ready.c.partition_id,
                ready.c.flow_instance_id,
                literal_column("CAST(1 AS BIGINT)", BIGINT).label("version"),
                literal_column("CAST(0 AS BIGINT)", BIGINT).label("event_base"),
                inserted.c.created_at.label("written_at"),
            )
            .join_from(inserted, ready, ready.c.flow_instance_id == inserted.c.flow_instance_id)
            .cte("advanced")
        )

    def _taken_keys(self, free: CTE) -> CTE:
        """Takes the business keys that are free; of two flows in one batch, the first one gets it."""
        wanted = (
            select(
                free.c.key_partition_id.label("partition_id"),
                free.c.key_scope.label("scope"),
                free.c.business_key.label("key"),
                free.c.flow_instance_id,
                NOW.label("created_at"),
            )
            .where(free.c.business_key.is_not(None))
            .order_by(free.c.item)
        )
        return (
            insert(idempotency_keys)
            .from_select([column.name for column in wanted.selected_columns], wanted)
            .on_conflict_do_nothing(index_elements=["partition_id", "scope", "key"])
            .returning(idempotency_keys.c.scope, idempotency_keys.c.key, idempotency_keys.c.flow_instance_id)
            .cte("taken_keys")
        )

    # What goes with it

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
            _same_wait(correlations, held),
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

    # How parts are made

    def _part(self, name: str) -> CTE:
        """The relation of one part's parameters: what is to be written, by the position of its flow."""
        types = PART_COLUMNS[name]
        if self._shape.is_batch:
            return relation(name, {"item": INTEGER, **types}).cte(name)
        if name in self._shape.single_rows:
            return scalars(name, types).cte(name)
        return relation(name, types).add_columns(literal_column("0", INTEGER).label("item")).cte(name)

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


def _insert(table: Any, rows: Select[Any]) -> Insert:
    return insert(table).from_select([column.name for column in rows.selected_columns], rows)


def _same_wait(table: Any, given: CTE) -> ColumnElement[bool]:
    return and_(
        table.c.partition_id == given.c.partition_id,
        table.c.correlation_key == given.c.correlation_key,
        table.c.flow_instance_id == given.c.flow_instance_id,
        table.c.step_id == given.c.step_id,
    )
