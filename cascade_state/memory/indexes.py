"""Indexes of a table: which rows there are, in groups, in order.

An index is told of every change of a row and derives from the row where it belongs; so an index can never
disagree with its table.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from datetime import datetime
from typing import Any, TypeAlias

from cascade_state.memory.sorted_keys import Entry, SortedKeys

__all__ = ["BUSY", "FREE", "ClaimIndex", "Index"]

# From a row to its group and its entry there; None: the index does not hold the row.
_Placed: TypeAlias = tuple[Hashable, Entry] | None

FREE = "free"
BUSY = "busy"


class Index:
    """Rows in groups, each group in the order of its entries."""

    __slots__ = ("_groups", "_place")

    def __init__(self, place: Callable[[Any], _Placed]) -> None:
        self._place = place
        self._groups: dict[Hashable, SortedKeys] = {}

    def replace(self, old: Any, new: Any) -> None:
        """Follows the change of a row; None stands for no row."""
        before = None if old is None else self._place(old)
        after = None if new is None else self._place(new)
        if before == after:
            return
        if before is not None:
            self._discard(*before)
        if after is not None:
            self._add(*after)

    def size(self, group: Hashable = None) -> int:
        """Returns how many rows a group has."""
        entries = self._groups.get(group)
        return 0 if entries is None else len(entries)

    def groups(self) -> list[Hashable]:
        """Returns the groups that have rows."""
        return list(self._groups)

    def walk(self, group: Hashable, after: Entry | None, now: datetime | None) -> Iterator[Entry]:
        """Yields the entries of a group in order, those behind `after` only."""
        entries = self._groups.get(group)
        return iter(()) if entries is None else entries.walk(after)

    def _add(self, group: Hashable, entry: Entry) -> None:
        entries = self._groups.get(group)
        if entries is None:
            entries = self._groups[group] = SortedKeys()
        entries.add(entry)

    def _discard(self, group: Hashable, entry: Entry) -> bool:
        entries = self._groups.get(group)
        if entries is None or not entries.discard(entry):
            return False
        if not entries:
            del self._groups[group]
        return True


class ClaimIndex(Index):
    """What can be claimed: FREE rows in their order, and apart from them BUSY ones by when they become free.

    Rows whose instant has come move to the free ones when somebody walks them, each once. So a claim looks
    neither at rows that are held nor, again and again, at those that were. A walker checks each row itself,
    because a clock may have been set back.
    """

    __slots__ = ()

    def __init__(self, place: Callable[[Any], tuple[Entry, datetime | None] | None]) -> None:
        """Takes a function from a row to its entry and the instant until which it is busy (None: it is not)."""

        def placed(row: Any) -> _Placed:
            found = place(row)
            if found is None:
                return None
            entry, busy_until = found
            return (FREE, entry) if busy_until is None else (BUSY, (busy_until, *entry))

        super().__init__(placed)

    def walk(self, group: Hashable, after: Entry | None, now: datetime | None) -> Iterator[Entry]:
        """Yields entries in order; those of BUSY begin with the instant. `now` decides what is free."""
        if now is not None:
            self._free(now)
        return super().walk(group, after, now)

    def _free(self, now: datetime) -> None:
        busy = self._groups.get(BUSY)
        if busy is None:
            return
        for entry in busy.pop_until(now):
            self._add(FREE, entry[1:])
        if not busy:
            del self._groups[BUSY]

    def _discard(self, group: Hashable, entry: Entry) -> bool:
        found = super()._discard(group, entry)
        return found or (group == BUSY and super()._discard(FREE, entry[1:]))
