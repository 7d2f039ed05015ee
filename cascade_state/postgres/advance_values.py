"""From advance plans to the values of an advance statement, and to the shape of the statement that takes them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

from cascade_state.model.advance import AdvancePlan
from cascade_state.postgres.direct import Statement
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.operations import Operation
from cascade_state.postgres.statements.advance import advance_statement
from cascade_state.postgres.statements.advance_shape import FLOW_COLUMNS, NEW_FLOW_COLUMNS, PART_COLUMNS, Shape
from cascade_state.postgres.statements.parameters import columns

__all__ = ["ADD", "ADD_WAITING", "ADVANCE", "ADVANCE_WAITING", "BUSINESS_KEY_SCOPE", "AdvanceOperation"]

BUSINESS_KEY_SCOPE = "business_key:"  # the scope of a business key is this and the flow id

_BATCH_FLOW = ("item", *FLOW_COLUMNS)
_BATCH_NEW_FLOW = ("item", *NEW_FLOW_COLUMNS)
_ONE_FLOW = tuple(f"flow_{column}" for column in FLOW_COLUMNS)
_ONE_NEW_FLOW = tuple(f"flow_{column}" for column in NEW_FLOW_COLUMNS)
_PART_NAMES = {part: tuple(types) for part, types in PART_COLUMNS.items()}
_ONE_PART = {part: tuple(f"{part}_{column}" for column in types) for part, types in PART_COLUMNS.items()}
_BATCH_PART_NAMES = {part: ("item", *names) for part, names in _PART_NAMES.items()}


class AdvanceOperation(Operation[AdvancePlan]):
    """Writes plans: of stored flows (advance), or of new ones (add)."""

    def __init__(self, *, is_new: bool) -> None:
        self._is_new = is_new

    def keys(self, item: AdvancePlan) -> Collection[Hashable]:
        instance = item.instance
        keys: list[Hashable] = [instance.flow_instance_id]
        if self._is_new and instance.business_key is not None:
            # Two statements that each take two keys, in other orders, would wait for each other in a circle.
            keys.append((instance.flow_id, instance.business_key))
        # A key's waits are stored in the order of their advances.
        keys += [("wait", wait.correlation_key) for wait in item.add_waits]
        # Within one statement each of two flows would find a timer or delivery held, and acknowledge it.
        keys += [held.timer_id for held in item.complete_timers]
        keys += [(held.correlation_key, held.flow_instance_id, held.step_id) for held in item.complete_deliveries]
        return keys

    def prepare(self, items: Sequence[AdvancePlan], executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        if len(items) == 1:
            return self._one(items[0], executor)
        rows: dict[str, list[tuple[Any, ...]]] = {}
        flags: set[str] = set()
        for position, plan in enumerate(items):
            flags.update(_flags(plan))
            for part, part_rows in _parts(plan, executor):
                rows.setdefault(part, []).extend([(position, *row) for row in part_rows])
        names = _BATCH_NEW_FLOW if self._is_new else _BATCH_FLOW
        flows = [(position, *self._flow(plan, executor)) for position, plan in enumerate(items)]
        values: dict[str, Any] = {"now": executor.now(), **columns("flow", names, flows)}
        for part, all_rows in rows.items():
            values.update(columns(part, _BATCH_PART_NAMES[part], all_rows))
        return advance_statement(Shape(self._is_new, True, frozenset(flags.union(rows)))), values

    def _one(self, plan: AdvancePlan, executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        parts = set(_flags(plan))
        names = _ONE_NEW_FLOW if self._is_new else _ONE_FLOW
        values: dict[str, Any] = dict(zip(names, self._flow(plan, executor), strict=True))
        values["now"] = executor.now()
        single_rows = set()
        for part, rows in _parts(plan, executor):
            parts.add(part)
            if len(rows) == 1:
                single_rows.add(part)
                values.update(zip(_ONE_PART[part], rows[0], strict=True))
            else:
                values.update(columns(part, _PART_NAMES[part], rows))
        return advance_statement(Shape(self._is_new, False, frozenset(parts), frozenset(single_rows))), values

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


def _flags(plan: AdvancePlan) -> Iterator[str]:
    """Yields what else decides the shape of the statement."""
    if plan.is_terminal:
        yield "terminal"
    if plan.lease is not None:
        yield "lease"


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
        yield "results", plan.results
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
ADVANCE_WAITING = AdvanceOperation(is_new=False)
ADD_WAITING = AdvanceOperation(is_new=True)
