"""Component states on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from cascade_state.abc.component_states import ComponentStates
from cascade_state.abc.guards import Guard
from cascade_state.errors import FlowInstanceNotFound, SerializationError, TransactionAborted, VersionConflict
from cascade_state.model.advance import Limits
from cascade_state.model.component_states import ComponentState
from cascade_state.model.documents import load
from cascade_state.postgres.direct import Record, Statement
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.operations import Operation
from cascade_state.postgres.statements import component_states as statements
from cascade_state.postgres.statements.parameters import columns

__all__ = ["PostgresComponentStates"]

_RACES = 5  # how often a state may come and go while it is written


@dataclass(frozen=True, slots=True)
class _Key:
    """Which state is meant."""

    flow_instance_id: UUID
    step_id: str


@dataclass(frozen=True, slots=True)
class _Put:
    """A state to be written."""

    flow_instance_id: UUID
    step_id: str
    state: str
    expires_at: datetime | None
    expected_version: int | None


class _Find(Operation[_Key]):
    """Reads states."""

    def keys(self, item: _Key) -> Collection[Hashable]:
        return ()  # readers of one state may share a batch

    def prepare(self, items: Sequence[_Key], executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        rows = [(executor.partition_of(item.flow_instance_id), item.flow_instance_id, item.step_id) for item in items]
        return _prepared("wanted", tuple(statements.KEY_COLUMNS), rows, executor, statements.FIND)


class _PutOperation(Operation[_Put]):
    """Writes states, by one of the forms of the statement."""

    def __init__(self, forms: tuple[Statement, Statement]) -> None:
        self._forms = forms

    def keys(self, item: _Put) -> Collection[Hashable]:
        return (item.flow_instance_id,)

    def prepare(self, items: Sequence[_Put], executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        rows = [
            (
                executor.partition_of(item.flow_instance_id),
                item.flow_instance_id,
                item.step_id,
                item.state,
                item.expires_at,
                item.expected_version,
            )
            for item in items
        ]
        return _prepared("given", tuple(statements.PUT_COLUMNS), rows, executor, self._forms)


def _prepared(
    name: str,
    names: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    executor: Executor,
    forms: tuple[Statement, Statement],
) -> tuple[Statement, Mapping[str, Any]]:
    values: dict[str, Any] = {"now": executor.now()}
    one, batch = forms
    if len(rows) == 1:
        values.update((f"{name}_{column}", value) for column, value in zip(names, rows[0], strict=True))
        return one, values
    # Every batch touches the rows in one order, so that two of them never wait for each other in a circle.
    ordered = sorted(((position, *row) for position, row in enumerate(rows)), key=lambda row: row[1:4])
    values.update(columns(name, ("item", *names), ordered))
    return batch, values


_FIND = _Find()
_OVERWRITE = _PutOperation(statements.OVERWRITE)
_ADD = _PutOperation(statements.ADD)
_REPLACE = _PutOperation(statements.REPLACE)


class PostgresComponentStates(ComponentStates):
    """See `ComponentStates`. A put waits for a removal of its flow that is under way."""

    def __init__(self, executor: Executor, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._executor = executor

    async def _find(self, flow_instance_id: UUID, step_id: str) -> ComponentState | None:
        record = await self._executor.one(_FIND, _Key(flow_instance_id, step_id))
        return None if record is None else _state_from_record(record)

    async def _put(
        self,
        flow_instance_id: UUID,
        step_id: str,
        state: str,
        expected_version: int | None,
        expires_at: datetime | None,
    ) -> ComponentState:
        put = _Put(flow_instance_id, step_id, state, expires_at, expected_version)
        operation = _OVERWRITE if expected_version is None else _ADD if expected_version == 0 else _REPLACE
        for _ in range(_RACES):
            record = await self._executor.one(operation, put)
            if record is not None:
                return ComponentState(
                    flow_instance_id=flow_instance_id,
                    step_id=step_id,
                    state=load(state),
                    version=record["version"],
                    expires_at=expires_at,
                    updated_at=record["updated_at"],
                )
            await self._raise_why_not_put(put)
        raise TransactionAborted(reason="the component state kept changing and changing back")

    async def _raise_why_not_put(self, put: _Put) -> None:
        """Raises the reason why a state was not written; returns if the reason is gone again."""
        values = {**self._identity(put.flow_instance_id), "step_id": put.step_id, "now": self._executor.now()}
        records = await self._executor.fetch(statements.DIAGNOSE_PUT, values)
        if not records:
            raise FlowInstanceNotFound(key=put.flow_instance_id)
        actual_version = records[0]["version"] or 0
        if put.expected_version is not None and actual_version != put.expected_version:
            raise VersionConflict(
                entity="component state",
                key=f"{put.flow_instance_id} step {put.step_id}",
                expected_version=put.expected_version,
                actual_version=actual_version,
            )

    async def _remove(self, flow_instance_id: UUID, step_id: str) -> bool:
        values = {**self._identity(flow_instance_id), "step_id": step_id, "now": self._executor.now()}
        records = await self._executor.fetch(statements.REMOVE, values)
        return any(record["was_alive"] for record in records)

    async def _list_for_instance(self, flow_instance_id: UUID, limit: int, after: str | None) -> list[ComponentState]:
        values = {
            **self._identity(flow_instance_id),
            "now": self._executor.now(),
            "limit": limit,
            "after": after or "",  # a step id is never empty
        }
        return [_state_from_record(record) for record in await self._executor.fetch(statements.LIST, values)]

    def _identity(self, flow_instance_id: UUID) -> dict[str, Any]:
        return {
            "partition_id": self._executor.partition_of(flow_instance_id),
            "flow_instance_id": flow_instance_id,
        }


def _state_from_record(record: Record) -> ComponentState:
    """Returns the state of a record with `statements.component_states.state_columns`.

    Raises:
        SerializationError: The row holds what this version cannot read.
    """
    try:
        state = load(record["state"])
    except (ValueError, RecursionError) as error:
        raise SerializationError(
            entity="component state",
            key=f"{record['flow_instance_id']} step {record['step_id']}",
            reason=f"{type(error).__name__} while decoding",
        ) from error
    return ComponentState(
        flow_instance_id=record["flow_instance_id"],
        step_id=record["step_id"],
        state=state,
        version=record["version"],
        expires_at=record["expires_at"],
        updated_at=record["updated_at"],
    )
