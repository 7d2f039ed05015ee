"""Flow definitions in memory."""

from __future__ import annotations

from itertools import islice
from math import inf

from cascade_state.abc.flow_definitions import FlowDefinitions
from cascade_state.abc.guards import Guard
from cascade_state.errors import FlowDefinitionInUse, FlowDefinitionNotFound
from cascade_state.memory.decoding import definition_of
from cascade_state.memory.removal import remove_flow
from cascade_state.memory.rows import DefinitionRow
from cascade_state.memory.runners import Runner
from cascade_state.memory.transaction import View
from cascade_state.model.advance import Limits
from cascade_state.model.flow_definitions import FlowDefinition

__all__ = ["MemoryFlowDefinitions"]


class MemoryFlowDefinitions(FlowDefinitions):
    """See `FlowDefinitions`. A name that a unit of work deploys stays locked for others until that ends."""

    def __init__(self, runner: Runner, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._runner = runner

    async def _deploy(self, definition: FlowDefinition, content: str) -> FlowDefinition:
        return await self._runner.run(_deploy, definition, content)

    async def _find(self, flow_id: str, version: int | None) -> FlowDefinition | None:
        return await self._runner.run(_find, flow_id, version)

    async def _list_latest(self, limit: int, after: str | None) -> list[FlowDefinition]:
        return await self._runner.run(_list_latest, limit, after)

    async def _list_versions(self, flow_id: str, limit: int, after: int) -> list[FlowDefinition]:
        return await self._runner.run(_list_versions, flow_id, limit, after)

    async def _undeploy(self, flow_id: str, version: int | None, force: bool) -> int:
        return await self._runner.run(_undeploy, flow_id, version, force)


def _deploy(view: View, definition: FlowDefinition, content: str) -> FlowDefinition:
    flow_id = definition.flow_id
    view.lock("deployment", flow_id)
    versions = list(view.flow_definitions.select("versions", flow_id))
    latest = next((row for row in reversed(versions) if row.undeployed_at is None), None)
    digest = definition.digest
    if latest is not None and latest.digest == digest:
        return definition.deployed(latest.version, latest.deployed_at)
    version = versions[-1].version + 1 if versions else 1
    row = DefinitionRow(flow_id, version, digest, content, view.now())
    view.lock("flow_definitions", (flow_id, version))
    view.flow_definitions.put((flow_id, version), row)
    return definition.deployed(version, row.deployed_at)


def _find(view: View, flow_id: str, version: int | None) -> FlowDefinition | None:
    if version is not None:
        row = view.flow_definitions.get((flow_id, version))
    else:
        row = next(reversed(_visible(view, flow_id)), None)
    return None if row is None else definition_of(row)


def _visible(view: View, flow_id: str) -> list[DefinitionRow]:
    return [row for row in view.flow_definitions.select("versions", flow_id) if row.undeployed_at is None]


def _list_latest(view: View, limit: int, after: str | None) -> list[FlowDefinition]:
    behind = None if after is None else ((after, inf),)
    latest: dict[str, DefinitionRow] = {}
    for row in view.flow_definitions.select("visible", after=behind):
        if row.flow_id not in latest and len(latest) == limit:
            break
        latest[row.flow_id] = row  # versions ascend: the last one stays
    return [definition_of(row) for row in latest.values()]


def _list_versions(view: View, flow_id: str, limit: int, after: int) -> list[FlowDefinition]:
    behind = ((flow_id, after),)
    rows = view.flow_definitions.select("versions", flow_id, after=behind)
    return [definition_of(row) for row in islice((row for row in rows if row.undeployed_at is None), limit)]


def _undeploy(view: View, flow_id: str, version: int | None, force: bool) -> int:
    chosen = [row for row in _visible(view, flow_id) if version is None or row.version == version]
    if not chosen:
        raise FlowDefinitionNotFound(key=flow_id if version is None else f"{flow_id} version {version}")
    for row in chosen:
        view.lock("flow_definitions", (flow_id, row.version))  # waits for flows that are being added
    versions = {row.version for row in chosen}
    flows = [row for row in view.flow_instances.select("flow", flow_id) if row.flow_version in versions]
    if force:
        for flow in flows:
            remove_flow(view, flow)
    else:
        living = sum(flow.completed_at is None for flow in flows)
        if living:
            raise FlowDefinitionInUse(flow_id=flow_id, instance_count=living)
    now = view.now()
    for row in chosen:
        view.flow_definitions.put((flow_id, row.version), row._replace(undeployed_at=now))
    return len(chosen)
