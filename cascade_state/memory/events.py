"""The feed of history events in memory: in commit order."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice

from cascade_state.abc.events import Events
from cascade_state.abc.guards import Guard
from cascade_state.memory.decoding import decode_feed_position, event_of
from cascade_state.memory.rows import HistoryRow
from cascade_state.memory.runners import Runner
from cascade_state.memory.schema import FEED_BUCKETS
from cascade_state.memory.transaction import View
from cascade_state.model.advance import Limits
from cascade_state.model.events import FlowEvent

__all__ = ["MemoryEvents", "feed_rows"]


class MemoryEvents(Events):
    """See `Events`. The events of a unit of work have no place in the order, and are not seen, until it commits."""

    def __init__(self, runner: Runner, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._runner = runner

    async def _read(self, after: str | None, limit: int, partition_id: int | None) -> list[FlowEvent]:
        return await self._runner.run(
            _read, None if after is None else decode_feed_position(after), limit, partition_id
        )


def _read(view: View, position: int | None, limit: int, partition_id: int | None) -> list[FlowEvent]:
    if partition_id is not None:
        rows = feed_rows(view, partition_id, position)
    else:
        rows = view.flow_events.select("feed", after=_behind(position))
    return [event_of(row) for row in islice(rows, limit)]


def feed_rows(view: View, partition_id: int, position: int | None) -> Iterator[HistoryRow]:
    """Yields the rows of one partition behind a position, in feed order; nothing may be written meanwhile."""
    history, behind = view.flow_events, _behind(position)
    buckets = range(partition_id, FEED_BUCKETS, view.partition_count)
    for entry in merge(*(history.entries("partition feed", bucket, after=behind) for bucket in buckets)):
        row = history.get(entry[-1])
        if row is not None:
            yield row


def _behind(position: int | None) -> tuple[int] | None:
    # Behind every entry of this position: a key that follows it would begin with the next one.
    return None if position is None else (position + 1,)
