"""Flow definitions on PostgreSQL."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from cascade_state.abc.flow_definitions import FlowDefinitions
from cascade_state.abc.guards import Guard
from cascade_state.errors import (
    FlowDefinitionInUse,
    FlowDefinitionNotFound,
    SerializationError,
    TransactionAborted,
)
from cascade_state.model.advance import Limits
from cascade_state.model.documents import load
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.postgres.direct import Record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements import flow_definitions as statements
from cascade_state.postgres.statements.parameters import columns

__all__ = ["PostgresFlowDefinitions"]


class PostgresFlowDefinitions(FlowDefinitions):
    """See `FlowDefinitions`. A unit of work that deployed a flow id makes others that do so wait."""

    def __init__(self, executor: Executor, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._executor = executor

    async def _deploy(self, definition: FlowDefinition, content: str) -> FlowDefinition:
        flow_id = definition.flow_id
        async with self._executor.transaction() as executor:
            # Two statements: the second one must see what was committed until the lock was granted.
            await executor.fetch(statements.LOCK_NAME, {"lock_key": executor.lock_key("flow_definition", flow_id)})
            records = await executor.fetch(
                statements.DEPLOY,
                {"flow_id": flow_id, "digest": definition.digest, "content": content, "now": executor.now()},
            )
        if not records:  # the transaction has a snapshot of its own, from before the lock
            raise TransactionAborted(reason="another deployment of the same flow id was committed meanwhile")
        return definition.deployed(records[0]["version"], records[0]["deployed_at"])

    async def _find(self, flow_id: str, version: int | None) -> FlowDefinition | None:
        if version is None:
            records = await self._executor.fetch(statements.FIND_LATEST, {"flow_id": flow_id})
        else:
            records = await self._executor.fetch(statements.FIND_VERSION, {"flow_id": flow_id, "version": version})
        return _definition_from_record(records[0]) if records else None

    async def _list_latest(self, limit: int, after: str | None) -> list[FlowDefinition]:
        values = {"after": after or "", "limit": limit}  # a flow id is never empty
        return [
            _definition_from_record(record) for record in await self._executor.fetch(statements.LIST_LATEST, values)
        ]

    async def _list_versions(self, flow_id: str, limit: int, after: int) -> list[FlowDefinition]:
        values = {"flow_id": flow_id, "after": after, "limit": limit}
        return [
            _definition_from_record(record) for record in await self._executor.fetch(statements.LIST_VERSIONS, values)
        ]

    async def _undeploy(self, flow_id: str, version: int | None, force: bool) -> int:
        async with self._executor.transaction() as executor:
            locked = await executor.fetch(statements.LOCK_VISIBLE, {"flow_id": flow_id, "version": version})
            if not locked:
                raise FlowDefinitionNotFound(key=flow_id if version is None else f"{flow_id} version {version}")
            chosen: dict[str, Any] = {
                "flow_id": flow_id,
                **columns("chosen", ("version",), [(record["version"],) for record in locked]),
            }
            if force:
                await _remove_flows(executor, chosen)
            else:
                living = (await executor.fetch(statements.COUNT_LIVING, chosen))[0]["total"]
                if living:
                    raise FlowDefinitionInUse(flow_id=flow_id, instance_count=living)
            return len(await executor.fetch(statements.HIDE, {**chosen, "now": executor.now()}))


async def _remove_flows(executor: Executor, chosen: dict[str, Any]) -> None:
    removed: list[UUID] = [
        record["flow_instance_id"] for record in await executor.fetch(statements.REMOVE_FLOWS, chosen)
    ]
    if removed:
        rows = [(flow_instance_id,) for flow_instance_id in removed]
        await executor.fetch(statements.REMOVE_TRACES, columns("removed", ("flow_instance_id",), rows))


def _definition_from_record(record: Record) -> FlowDefinition:
    """Returns the definition of a record.

    Raises:
        SerializationError: The row holds what this version cannot read.
    """
    try:
        return FlowDefinition.from_content(
            load(record["content"]), version=record["version"], deployed_at=record["deployed_at"]
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SerializationError(
            entity="flow definition",
            key=f"{record['flow_id']} version {record['version']}",
            reason=f"{type(error).__name__} while decoding",
        ) from error
