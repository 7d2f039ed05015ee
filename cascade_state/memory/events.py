"""The feed of history events in memory: in commit order."""

from __future__ import annotations

from itertools import islice

from cascade_state.abc.events import Events
from cascade_state.abc.guards import Guard
from cascade_state.errors import InvalidArgument
from cascade_state.memory.decoding import FEED, event_of
from cascade_state.memory.runners import Runner
from cascade_state.memory.transaction import View
from cascade_state.model.advance import Limits
from cascade_state.model.events import FlowEvent
from cascade_state.model.lists import decode_cursor

__all__ = ["MemoryEvents"]


class MemoryEvents(Events):
    """See `Events`. The events of a unit of work have no place in the order, and are not seen, until it commits."""

    def __init__(self, runner: Runner, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._runner = runner

    async def _read(self, after: str | None, limit: int) -> list[FlowEvent]:
        return await self._runner.run(_read, _position(after), limit)


def _position(after: str | None) -> int | None:
    try:
        key = decode_cursor(after, FEED, (int,))
    except InvalidArgument:
        raise InvalidArgument(argument="after", reason="is not a position of this feed") from None
    return None if key is None else int(key[0])


def _read(view: View, position: int | None, limit: int) -> list[FlowEvent]:
    # Behind every entry of this position: a key that follows it would begin with the next one.
    behind = None if position is None else (position + 1,)
    return [event_of(row) for row in islice(view.flow_events.select("feed", after=behind), limit)]
