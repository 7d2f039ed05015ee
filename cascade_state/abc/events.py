"""The repository of history events, read across all flows in commit order."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cascade_state.abc.repository import DEFAULT_LIMIT, Repository, check_limit
from cascade_state.errors import InvalidArgument
from cascade_state.model.arguments import check_partition
from cascade_state.model.events import FlowEvent

__all__ = ["Events"]


class Events(Repository, ABC):
    """Every recorded `FlowEvent`, of all flows. `flow_instances.history` reads those of one flow."""

    async def read(
        self, *, after: str | None = None, limit: int = DEFAULT_LIMIT, partition_id: int | None = None
    ) -> list[FlowEvent]:
        """Returns events behind the position `after` (None: from the beginning), in feed order.

        Per flow the order is that of `sequence`; between flows it is stable. No event is ever skipped because
        its transaction committed late: an event is handed out only once no transaction older than its own can
        still commit. Go on with the `position` of the last one; `feeds` keeps it for consumers.

        Args:
            partition_id: Only the flows of this partition. They come in the same order, so a position of one
                reading continues the other.

        Raises:
            InvalidArgument: `after` is no position of this feed, or there is no such partition.
        """
        if after is not None and not isinstance(after, str):
            raise InvalidArgument(argument="after", reason="is not a position of this feed")
        check_limit(limit)
        if partition_id is not None:
            check_partition(partition_id, "partition_id", self._limits.partition_count)
        with self._guard.call(writes=False):
            return await self._read(after, limit, partition_id)

    @abstractmethod
    async def _read(self, after: str | None, limit: int, partition_id: int | None) -> list[FlowEvent]: ...
