"""The repository of component states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime
from uuid import UUID

from cascade_state.abc.repository import DEFAULT_LIMIT, Repository, check_limit, cut, decode_position
from cascade_state.errors import ComponentStateNotFound
from cascade_state.model import documents
from cascade_state.model.arguments import check_count, check_key, check_optional_instant, check_uuid
from cascade_state.model.component_states import ComponentState
from cascade_state.model.lists import CursorList
from cascade_state.types import JsonValue

__all__ = ["ComponentStates"]


class ComponentStates(Repository, ABC):
    """The JSON that components keep for (flow instance, step). A state that has expired is not found."""

    async def get(self, flow_instance_id: UUID, step_id: str) -> ComponentState:
        """Returns the state.

        Raises:
            ComponentStateNotFound: There is none, or it has expired.
        """
        found = await self.find(flow_instance_id, step_id)
        if found is None:
            raise ComponentStateNotFound(key=f"{flow_instance_id} step {step_id}")
        return found

    async def find(self, flow_instance_id: UUID, step_id: str) -> ComponentState | None:
        """Returns the state, or None when there is none or it has expired."""
        check_uuid(flow_instance_id, "flow_instance_id")
        check_key(step_id, "step_id")
        with self._guard.call(writes=False):
            return await self._find(flow_instance_id, step_id)

    async def put(
        self,
        flow_instance_id: UUID,
        step_id: str,
        state: JsonValue,
        *,
        expected_version: int | None = None,
        expires_at: datetime | None = None,
    ) -> ComponentState:
        """Stores the state, over an earlier one, and returns it at its new version (1 for the first).

        Args:
            expected_version: The version this write is based on; 0 means that there must be none (an expired
                one counts as none); None overwrites whatever is there.
            expires_at: From when on the state is not found any more; None: never.

        Raises:
            VersionConflict: The state is at another version (`actual_version` 0: there is none).
            FlowInstanceNotFound: There is no such flow instance.
            InvalidArgument: The state cannot be stored.
        """
        check_uuid(flow_instance_id, "flow_instance_id")
        check_key(step_id, "step_id")
        if expected_version is not None:
            check_count(expected_version, "expected_version", minimum=0, maximum=2**62)
        text = documents.dump(state, "state", maximum_bytes=self._limits.max_document_bytes)
        expires_at = check_optional_instant(expires_at, "expires_at")
        with self._guard.call(writes=True):
            return await self._put(flow_instance_id, step_id, text, expected_version, expires_at)

    async def remove(self, flow_instance_id: UUID, step_id: str) -> bool:
        """Removes the state; returns whether there was one."""
        check_uuid(flow_instance_id, "flow_instance_id")
        check_key(step_id, "step_id")
        with self._guard.call(writes=True):
            return await self._remove(flow_instance_id, step_id)

    async def list_for_instance(
        self, flow_instance_id: UUID, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> CursorList[ComponentState]:
        """Returns the states of a flow instance that have not expired, in the order of the step ids."""
        subject = ("component_states.list_for_instance", check_uuid(flow_instance_id, "flow_instance_id"))
        after = decode_position(cursor, subject, str)
        with self._guard.call(writes=False):
            rows = await self._list_for_instance(
                flow_instance_id, check_limit(limit) + 1, None if after is None else after[0]
            )
        return cut(rows, limit, subject, lambda row: (row.step_id,))

    @abstractmethod
    async def _find(self, flow_instance_id: UUID, step_id: str) -> ComponentState | None: ...

    @abstractmethod
    async def _put(
        self,
        flow_instance_id: UUID,
        step_id: str,
        state: str,
        expected_version: int | None,
        expires_at: datetime | None,
    ) -> ComponentState: ...

    @abstractmethod
    async def _remove(self, flow_instance_id: UUID, step_id: str) -> bool: ...

    @abstractmethod
    async def _list_for_instance(
        self, flow_instance_id: UUID, limit: int, after: str | None
    ) -> list[ComponentState]: ...
