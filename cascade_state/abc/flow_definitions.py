"""The repository of flow definitions."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cascade_state.abc.repository import DEFAULT_LIMIT, Repository, check_limit, cut, decode_position
from cascade_state.errors import FlowDefinitionNotFound
from cascade_state.model import documents
from cascade_state.model.arguments import check_count, check_key, check_kind
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.lists import CursorList

__all__ = ["FlowDefinitions"]


class FlowDefinitions(Repository, ABC):
    """Versioned, immutable flow definitions. Versions of one flow id count 1, 2, 3 … and are never used again."""

    async def deploy(self, definition: FlowDefinition) -> FlowDefinition:
        """Returns the definition as deployed: the latest version if its content is the same, else a new version.

        Only the latest version is compared, so deploying A, B, A gives three versions. Two deployments of one
        flow id at the same time wait for each other. Flows that run stay on the version they were made with
        (C-27).

        Raises:
            InvalidDefinition: It contradicts itself; see `FlowDefinition.validate`.
            InvalidArgument: A text or document in it cannot be stored.
        """
        check_kind(definition, FlowDefinition, "definition").validate()
        content = documents.dump(definition.content(), "definition", maximum_bytes=self._limits.max_document_bytes)
        with self._guard.call(writes=True):
            return await self._deploy(FlowDefinition.from_content(documents.load(content)), content)

    async def get(self, flow_id: str, version: int | None = None) -> FlowDefinition:
        """Returns one version, or (None) the latest that is not undeployed.

        Raises:
            FlowDefinitionNotFound: There is none.
        """
        found = await self.find(flow_id, version)
        if found is None:
            raise FlowDefinitionNotFound(key=flow_id if version is None else f"{flow_id} version {version}")
        return found

    async def find(self, flow_id: str, version: int | None = None) -> FlowDefinition | None:
        """Returns one version, hidden or not, or (None) the latest that is not undeployed; None if there is none."""
        check_key(flow_id, "flow_id")
        if version is not None:
            check_count(version, "version", maximum=2**31 - 1)
        with self._guard.call(writes=False):
            return await self._find(flow_id, version)

    async def list_latest(self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> CursorList[FlowDefinition]:
        """Returns the latest version of each flow id that is not undeployed, in the order of the flow ids."""
        subject = "flow_definitions.list_latest"
        after = decode_position(cursor, subject, str)
        with self._guard.call(writes=False):
            rows = await self._list_latest(check_limit(limit) + 1, None if after is None else after[0])
        return cut(rows, limit, subject, lambda row: (row.flow_id,))

    async def list_versions(
        self, flow_id: str, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> CursorList[FlowDefinition]:
        """Returns all versions of a flow id that are not undeployed, oldest first."""
        subject = ("flow_definitions.list_versions", check_key(flow_id, "flow_id"))
        after = decode_position(cursor, subject, int)
        with self._guard.call(writes=False):
            rows = await self._list_versions(flow_id, check_limit(limit) + 1, 0 if after is None else after[0])
        return cut(rows, limit, subject, lambda row: (row.version,))

    async def undeploy(self, flow_id: str, version: int | None = None, *, force: bool = False) -> int:
        """Hides one version, or (None) all of them, from `get`-latest, lists and new flows; returns how many it hid.

        Flows that have ended keep their definition. With `force`, all flows of the hidden versions are
        removed first, whether ended or not.

        Raises:
            FlowDefinitionNotFound: No such version is deployed.
            FlowDefinitionInUse: Without `force`, while flows of it have not ended; nothing is hidden.
        """
        check_key(flow_id, "flow_id")
        if version is not None:
            check_count(version, "version", maximum=2**31 - 1)
        with self._guard.call(writes=True):
            return await self._undeploy(flow_id, version, force)

    @abstractmethod
    async def _deploy(self, definition: FlowDefinition, content: str) -> FlowDefinition: ...

    @abstractmethod
    async def _find(self, flow_id: str, version: int | None) -> FlowDefinition | None: ...

    @abstractmethod
    async def _list_latest(self, limit: int, after: str | None) -> list[FlowDefinition]: ...

    @abstractmethod
    async def _list_versions(self, flow_id: str, limit: int, after: int) -> list[FlowDefinition]: ...

    @abstractmethod
    async def _undeploy(self, flow_id: str, version: int | None, force: bool) -> int: ...
