"""The repository of history events, read across all flows in commit order."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cascade_state.abc.repository import DEFAULT_LIMIT, Repository, check_limit
from cascade_state.errors import InvalidArgument
from cascade_state.model.events import FlowEvent

__all__ = ["Events"]


class Events(Repository, ABC):
    """Every recorded `FlowEvent`, of all flows. `flow_instances.history` reads those of one flow."""

    async def read(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> list[FlowEvent]:
        """Returns events behind the position `after` (None: from the beginning), in feed order.

        Per flow the order is that of `sequence`; between flows it is stable. No event is ever skipped because
        its transaction committed late: an event is handed out only once no transaction older than its own can
        still commit. Go on with the `position` of the last one.

        Raises:
            InvalidArgument: `after` is no position of this feed.
        """
        if after is not None and not isinstance(after, str):
            raise InvalidArgument(argument="after", reason="is not a position of this feed")
        check_limit(limit)
        with self._guard.call(writes=False):
            return await self._read(after, limit)

    @abstractmethod
    async def _read(self, after: str | None, limit: int) -> list[FlowEvent]: ...
