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
from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, and_, case, func, not_, or_, select, update

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.advance_new import inserted_flows
from cascade_state.postgres.statements.advance_parts import Parts
from cascade_state.postgres.statements.advance_shape import FLOW_COLUMNS, NEW_FLOW_COLUMNS, Shape, part_relation
from cascade_state.postgres.statements.parameters import INTEGER, NOW, relation, scalars
from cascade_state.postgres.statements.waits import same_wait
from cascade_state.postgres.tables import correlations, flow_instances, timers

__all__ = ["advance_statement"]


@cache
def advance_statement(shape: Shape) -> Statement:
    """Returns the statement of a shape.

    Its records have `item` (the flow's position), `version`, `written_at` and, for new flows, `created_at`.
    """
    kind = "add" if shape.is_new else "advance"
    size = "batch" if shape.is_batch else "one"
    return Statement(f"flow_instances.{kind}.{size}", lambda: _Builder(shape).build())


class _Builder:
    """Builds the statement of one shape: who may be written, the flows themselves, and what goes with them."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        types = NEW_FLOW_COLUMNS if shape.is_new else FLOW_COLUMNS
        flow = relation("flow", {"item": INTEGER, **types}) if shape.is_batch else scalars("flow", types)
        self._flow = flow.cte("flow")
        self._held: dict[str, CTE] = {}

    def build(self) -> Select[Any]:
        ready = self._ready()
        advanced = inserted_flows(ready) if self._shape.is_new else self._updated(ready)
        parts = Parts(self._shape, advanced, self._held).build()
        return select(advanced.c.item, advanced.c.version, advanced.c.written_at).add_cte(*parts)

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
        given = part_relation(self._shape, "completed_timers")
        same = and_(timers.c.partition_id == given.c.partition_id, timers.c.timer_id == given.c.timer_id)
        return (
            select(given.c.item, timers.c.partition_id, timers.c.timer_id)
            .join_from(given, timers, same)
            .where(timers.c.lease_token == given.c.token, timers.c.lease_holder.is_not(None))
            .with_for_update(of=timers)
            .cte("held_timers")
        )

    def _held_deliveries(self) -> CTE:
        given = part_relation(self._shape, "completed_deliveries")
        row = correlations.c
        return (
            select(given.c.item, row.partition_id, row.correlation_key, row.flow_instance_id, row.step_id)
            .join_from(given, correlations, same_wait(correlations, given))
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
