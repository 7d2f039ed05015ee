"""Component states in memory."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from cascade_state.abc.component_states import ComponentStates
from cascade_state.abc.guards import Guard
from cascade_state.errors import FlowInstanceNotFound, VersionConflict
from cascade_state.memory.decoding import state_of
from cascade_state.memory.rows import StateRow
from cascade_state.memory.runners import Runner
from cascade_state.memory.transaction import View
from cascade_state.memory.writing import is_alive
from cascade_state.model.advance import Limits
from cascade_state.model.component_states import ComponentState

__all__ = ["MemoryComponentStates"]


class MemoryComponentStates(ComponentStates):
    """See `ComponentStates`. A put waits for a removal of its flow that is under way."""

    def __init__(self, runner: Runner, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._runner = runner

    async def _find(self, flow_instance_id: UUID, step_id: str) -> ComponentState | None:
        return await self._runner.run(_find, flow_instance_id, step_id)

    async def _put(
        self,
        flow_instance_id: UUID,
        step_id: str,
        state: str,
        expected_version: int | None,
        expires_at: datetime | None,
    ) -> ComponentState:
        return await self._runner.run(_put, flow_instance_id, step_id, state, expected_version, expires_at)

    async def _remove(self, flow_instance_id: UUID, step_id: str) -> bool:
        return await self._runner.run(_remove, flow_instance_id, step_id)

    async def _list_for_instance(self, flow_instance_id: UUID, limit: int, after: str | None) -> list[ComponentState]:
        return await self._runner.run(_list, flow_instance_id, limit, after)


def _find(view: View, flow_instance_id: UUID, step_id: str) -> ComponentState | None:
    row = view.component_states.get((flow_instance_id.int, step_id))
    return state_of(row) if row is not None and is_alive(row, view.now()) else None


def _put(
    view: View,
    flow_instance_id: UUID,
    step_id: str,
    state: str,
    expected_version: int | None,
    expires_at: datetime | None,
) -> ComponentState:
    now = view.now()
    flow_key = flow_instance_id.int
    key = (flow_key, step_id)
    view.share("existence", flow_key)
    if view.flow_instances.get(flow_key) is None:
        raise FlowInstanceNotFound(key=flow_instance_id)
    if not expected_version:
        view.lock("component_states", key)  # there may be one already that is not visible yet
    row = view.component_states.get(key)
    version = row.version if row is not None and is_alive(row, now) else 0
    if expected_version is not None and version != expected_version:
        raise VersionConflict(
            entity="component state",
            key=f"{flow_instance_id} step {step_id}",
            expected_version=expected_version,
            actual_version=version,
        )
    view.lock("component_states", key)
    row = StateRow(flow_instance_id, step_id, state, version + 1, expires_at, now)
    view.component_states.put(key, row)
    return state_of(row)


def _remove(view: View, flow_instance_id: UUID, step_id: str) -> bool:
    key = (flow_instance_id.int, step_id)
    row = view.component_states.get(key)
    if row is None:
        return False
    view.lock("component_states", key)
    view.component_states.remove(key)
    return is_alive(row, view.now())


def _list(view: View, flow_instance_id: UUID, limit: int, after: str | None) -> list[ComponentState]:
    now = view.now()
    flow_key = flow_instance_id.int
    behind = None if after is None else ((flow_key, after),)
    states = []
    for row in view.component_states.select("flow", flow_key, after=behind):
        if is_alive(row, now):
            states.append(state_of(row))
            if len(states) == limit:
                break
    return states
