"""Hints in memory: told to the listeners of this process in the very moment of the commit.

What is hinted is read off the rows that a commit changed, so no code that writes has to remember it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from cascade_state.abc.hints import HintListener, HintTopic
from cascade_state.ids import partition_of_key
from cascade_state.model.timers import TimerStatus

__all__ = ["HintBoard", "MemoryHintListener"]


class HintBoard:
    """The listeners of one memory store."""

    def __init__(self, partition_count: int) -> None:
        self._partition_count = partition_count
        self._listeners: dict[MemoryHintListener, HintTopic] = {}

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def add(self, listener: MemoryHintListener, topic: HintTopic) -> None:
        """Tells a listener from now on."""
        self._listeners[listener] = topic

    def remove(self, listener: MemoryHintListener) -> None:
        """Tells it no more."""
        self._listeners.pop(listener, None)

    def tell(self, changes: Iterable[tuple[str, Any, Any]]) -> None:
        """Tells what was committed, given as (table, key, row as it is now)."""
        hinted: dict[HintTopic, set[int]] = {topic: set() for topic in get_args(HintTopic)}
        for table, key, row in changes:
            topic = _topic(table, row)
            if topic is not None:
                hinted[topic].update(self._partitions(table, key))
        for listener, topic in self._listeners.items():
            listener.hear(hinted[topic])

    def _partitions(self, table: str, key: Any) -> Iterable[int]:
        if table == "feed_consumers":
            return range(self._partition_count)
        if table in ("replica_sets", "partition_assignments"):
            name: str = key if table == "replica_sets" else key[0]
            return (partition_of_key(name, self._partition_count),)
        return (_flow_bits(table, key) & (self._partition_count - 1),)


class MemoryHintListener(HintListener):
    """See `HintListener`."""

    def __init__(self, board: HintBoard, topic: HintTopic) -> None:
        super().__init__()
        self._board = board
        self._topic = topic

    @property
    def is_listening(self) -> bool:
        return self._is_entered

    async def _start(self) -> None:
        self._board.add(self, self._topic)

    async def _stop(self) -> None:
        self._board.remove(self)


# Tables each of whose changes is hinted. A consumer is resumed, perhaps, which concerns all of its partitions.
_TOPICS: dict[str, HintTopic] = {
    "flow_events": "events",
    "feed_consumers": "events",
    "replica_sets": "members",
    "partition_assignments": "members",
}


def _topic(table: str, row: Any) -> HintTopic | None:
    if row is None:
        return None
    if table == "timers":
        return "work" if row.status is TimerStatus.PENDING else None
    if table == "correlations":
        return "work" if row.lease_holder is None and (row.delivered_at or row.expires_at) else None
    return _TOPICS.get(table)


def _flow_bits(table: str, key: Any) -> int:
    """Returns a number with the low bits of the flow's id."""
    if table == "timers":
        bits: int = key
    else:
        bits = key[1] if table == "correlations" else key[0]
    return bits
