"""What a memory store holds, and the named ones of this process, which several openings share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cascade_state.errors import SchemaMismatch, UsageError
from cascade_state.memory.hints import HintBoard
from cascade_state.memory.locks import Locks
from cascade_state.memory.schema import TABLES, new_table
from cascade_state.memory.tables import Table, Undo

if TYPE_CHECKING:
    from cascade_state.memory.transaction import Transaction

__all__ = ["MemoryData", "close_data", "open_data"]


class MemoryData:
    """The committed rows of one store, its locks, and the transactions that are open on it."""

    def __init__(self, partition_count: int) -> None:
        self.partition_count = partition_count
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.openings: int = 0
        self.undo: Undo = Undo()  # of the one call that is writing now; empty between calls
        self.tables: dict[str, Table[Any, Any]] = {name: new_table(name, self.undo) for name in TABLES}
        self.locks: Locks = Locks(self.loop)
        self.snapshots: set[Transaction] = set()  # open transactions that go on seeing what was
        self.feed_position: int = 0
        self.hints: HintBoard = HintBoard(partition_count)
        self.fencing_tokens: dict[int, int] = {}  # by the number of an advisory lock

    def next_feed_position(self) -> int:
        """Returns the next place in the feed; commits are one after the other, so places are in commit order."""
        self.feed_position += 1
        return self.feed_position


_named: dict[str, MemoryData] = {}


def open_data(name: str, partition_count: int) -> MemoryData:
    """Returns the data of this name, shared with whoever has it open; the empty name is private.

    Raises:
        SchemaMismatch: It is open with another partition count.
        UsageError: It is open in another event loop.
    """
    data = _named.get(name) if name else None
    if data is None or data.loop.is_closed():  # whoever left it open there can use it no more
        data = MemoryData(partition_count)
        if name:
            _named[name] = data
    elif data.loop is not asyncio.get_running_loop():
        raise UsageError(f"memory://{name} is open in another event loop; open one store for each loop")
    elif data.partition_count != partition_count:
        raise SchemaMismatch(
            expected=f"{partition_count} partitions",
            found=f"{data.partition_count} partitions",
            reason="the count is fixed by the first opening",
        )
    data.openings += 1
    return data


def close_data(name: str, data: MemoryData) -> None:
    """Ends one opening; with the last one the data is gone."""
    data.openings -= 1
    if not data.openings and _named.get(name) is data:
        del _named[name]
