"""From advance plans to the values of an advance statement, and to the shape of the statement that takes them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

from cascade_state.model.advance import AdvancePlan
from cascade_state.postgres.direct import Statement
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.operations import Operation
from cascade_state.postgres.statements.advance import (
    FLOW_COLUMNS,
    NEW_FLOW_COLUMNS,
    PART_COLUMNS,
    Shape,
    advance_statement,
)
from cascade_state.postgres.statements.parameters import columns

__all__ = ["ADD", "ADVANCE", "BUSINESS_KEY_SCOPE", "AdvanceOperation"]

BUSINESS_KEY_SCOPE = "business_key:"  # the scope of a business key is this and the flow id

_BATCH_FLOW = ("item", *FLOW_COLUMNS)
_BATCH_NEW_FLOW = ("item", *NEW_FLOW_COLUMNS)


class AdvanceOperation(Operation[AdvancePlan]):
    """Writes plans: of stored flows (advance), or of new ones (add)."""

    def __init__(self, *, is_new: bool) -> None:
        self._is_new = is_new

    def keys(self, item: AdvancePlan) -> Collection[Hashable]:
        # Within one statement each of two flows would find a timer or delivery held, and acknowledge it.
        acknowledged = [held.timer_id for held in item.complete_timers]
        deliveries = [(held.correlation_key, held.flow_instance_id, held.step_id) for held in item.complete_deliveries]
        return item.instance.flow_instance_id, *acknowledged, *deliveries

    def prepare(self, items: Sequence[AdvancePlan], executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        is_batch = len(items) > 1
        rows: dict[str, list[tuple[Any, ...]]] = {}
        shape: set[str] = set()
        for position, plan in enumerate(items):
            if plan.is_terminal:
                shape.add("terminal")
            if plan.lease is not None:
                shape.add("lease")
            for part, part_rows in _parts(plan, executor):
                if is_batch:
                    rows.setdefault(part, []).extend((position, *row) for row in part_rows)
                else:
                    rows[part] = list(part_rows)
        values: dict[str, Any] = {"now": executor.now()}
        if is_batch:
            names = _BATCH_NEW_FLOW if self._is_new else _BATCH_FLOW
            flows = [(position, *self._flow(plan, executor)) for position, plan in enumerate(items)]
            values.update(columns("flow", names, flows))
        else:
            types = NEW_FLOW_COLUMNS if self._is_new else FLOW_COLUMNS
            for name, value in zip(types, self._flow(items[0], executor), strict=True):
                values[f"flow_{name}"] = value
        for part, part_rows in rows.items():
            names = ("item", *PART_COLUMNS[part]) if is_batch else tuple(PART_COLUMNS[part])
            values.update(columns(part, names, part_rows))
        return advance_statement(Shape(self._is_new, is_batch, frozenset(shape.union(rows)))), values

    def _flow(self, plan: AdvancePlan, executor: Executor) -> tuple[Any, ...]:
        """The flow's own values, in the order of its columns."""
        instance = plan.instance
        stored = (
            executor.partition_of(instance.flow_instance_id),
            instance.flow_instance_id,
            instance.version,
            instance.status.value,
            plan.error,
            plan.search_attributes,
            plan.waits,
            plan.pending_timers,
            plan.is_terminal,
            len(plan.events),
            None if plan.lease is None else plan.lease.token,
            len(plan.complete_timers),
            len(plan.complete_deliveries),
        )
        if not self._is_new:
            return stored
        key = instance.business_key
        return (
            *stored,
            instance.root_id,
            instance.parent_id,
            instance.flow_id,
            instance.flow_version,
            key,
            None if key is None else executor.partition_of_key(key),
            None if key is None else BUSINESS_KEY_SCOPE + instance.flow_id,
            plan.trigger_data,
        )


def _parts(plan: AdvancePlan, executor: Executor) -> Iterator[tuple[str, Sequence[tuple[Any, ...]]]]:
    """Yields the parts that a plan writes, each with its rows in the order of its columns."""
    if plan.complete_timers:
        yield (
            "completed_timers",
            [(executor.partition_of(held.timer_id), held.timer_id, held.token) for held in plan.complete_timers],
        )
    if plan.complete_deliveries:
        yield (
            "completed_deliveries",
            [
                (
                    executor.partition_of_key(held.correlation_key),
                    held.correlation_key,
                    held.flow_instance_id,
                    held.step_id,
                    held.token,
                )
                for held in plan.complete_deliveries
            ],
        )
    if plan.results:
        yield (
            "results",
            [(item.step_id, item.status, item.outputs, item.error, item.attempt) for item in plan.results],
        )
    if plan.put_states:
        yield "put_states", plan.put_states
    if plan.remove_states:
        yield "removed_states", [(step_id,) for step_id in plan.remove_states]
    if plan.schedule:
        yield (
            "scheduled",
            [
                (item.timer_id, item.step_id, item.due_at, item.after, item.payload, item.max_attempts)
                for item in plan.schedule
            ],
        )
    if plan.cancel:
        yield "cancelled", [(executor.partition_of(timer_id), timer_id) for timer_id in plan.cancel]
    if plan.drop_waits:
        yield (
            "dropped_waits",
            [(executor.partition_of_key(key), key, step_id) for step_id, key in plan.drop_waits],
        )
    if plan.add_waits:
        yield (
            "added_waits",
            [
                (
                    executor.partition_of_key(wait.correlation_key),
                    wait.correlation_key,
                    wait.step_id,
                    wait.expires_at,
                    executor.lock_key("correlation", wait.correlation_key),
                )
                for wait in plan.add_waits
            ],
        )
    if plan.events:
        yield (
            "events",
            [(ordinal, event.event_type, event.payload) for ordinal, event in enumerate(plan.events, start=1)],
        )


ADVANCE = AdvanceOperation(is_new=False)
ADD = AdvanceOperation(is_new=True)
