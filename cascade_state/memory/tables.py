"""Tables of rows with indexes, and layers of changes over them.

`Table` holds rows. `LayeredTable` shows a table (or another layer) with some rows changed or hidden,
without touching it: the writes of an open unit of work are one such layer, and what a snapshot remembers of
rows that others have changed since is another. Both look alike to their readers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from datetime import datetime
from heapq import merge
from typing import Any, Generic, TypeVar

from cascade_state.memory.indexes import Index
from cascade_state.memory.sorted_keys import Entry

__all__ = ["LayeredTable", "Rows", "Table", "Undo"]

K = TypeVar("K")
R = TypeVar("R")


class Rows(ABC, Generic[K, R]):
    """The rows of one kind, as a transaction sees and changes them."""

    __slots__ = ()

    @abstractmethod
    def get(self, key: K) -> R | None:
        """Returns the row, or None."""

    @abstractmethod
    def put(self, key: K, row: R) -> None:
        """Stores a row, over the one that is there."""

    @abstractmethod
    def remove(self, key: K) -> None:
        """Removes a row, if it is there."""

    @abstractmethod
    def entries(
        self, index: str, group: Hashable = None, *, after: Entry | None = None, now: datetime | None = None
    ) -> Iterator[Entry]:
        """Yields the entries of an index's group in order; nothing may be written meanwhile."""

    @abstractmethod
    def size(self, index: str, group: Hashable = None) -> int:
        """Returns how many rows an index's group has."""

    @abstractmethod
    def restore(self, key: K, before: Any) -> None:
        """Undoes a change; only `Undo` calls it."""

    def select(
        self, index: str, group: Hashable = None, *, after: Entry | None = None, now: datetime | None = None
    ) -> Iterator[R]:
        """Yields the rows of an index's group in order; nothing may be written meanwhile."""
        for entry in self.entries(index, group, after=after, now=now):
            row = self.get(entry[-1])
            if row is not None:
                yield row


class Undo:
    """What was changed, so that it can be changed back: to the start, or to a mark in between."""

    __slots__ = ("changes",)

    def __init__(self) -> None:
        self.changes: list[tuple[Rows[Any, Any], Any, Any]] = []

    def back_to(self, mark: int) -> None:
        """Undoes everything behind `mark`, an earlier length of `changes`."""
        changes = self.changes
        while len(changes) > mark:
            rows, key, before = changes.pop()
            rows.restore(key, before)


class Table(Rows[K, R]):
    """Rows in a dictionary, with their indexes."""

    __slots__ = ("_followers", "_indexed", "_indexes", "_rows", "_undo")

    def __init__(self, indexes: Mapping[str, Index], undo: Undo, indexed: Callable[[R], Any] | None = None) -> None:
        """Takes the indexes by name.

        Args:
            undo: Where changes are noted.
            indexed: All that the indexes look at in a row; where it stays the same, they are not asked at all.
        """
        self._rows: dict[K, R] = {}
        self._indexes = indexes
        self._followers = tuple(indexes.values())
        self._indexed = indexed
        self._undo = undo

    def get(self, key: K) -> R | None:
        return self._rows.get(key)

    def put(self, key: K, row: R) -> None:
        self._undo.changes.append((self, key, self.set(key, row)))

    def remove(self, key: K) -> None:
        self._undo.changes.append((self, key, self.drop(key)))

    def set(self, key: K, row: R) -> R | None:
        """Stores a row for good; returns the one before."""
        before = self._rows.get(key)
        indexed = self._indexed
        if indexed is None or before is None or indexed(before) != indexed(row):
            for index in self._followers:
                index.replace(before, row)
        self._rows[key] = row
        return before

    def drop(self, key: K) -> R | None:
        """Removes a row for good; returns it."""
        before = self._rows.pop(key, None)
        if before is not None:
            for index in self._followers:
                index.replace(before, None)
        return before

    def restore(self, key: K, before: Any) -> None:
        if before is None:
            self.drop(key)
        else:
            self.set(key, before)

    def entries(
        self, index: str, group: Hashable = None, *, after: Entry | None = None, now: datetime | None = None
    ) -> Iterator[Entry]:
        return self._indexes[index].walk(group, after, now)

    def size(self, index: str, group: Hashable = None) -> int:
        return self._indexes[index].size(group)


_UNTOUCHED = object()  # in an undo entry: the layer did not have the key yet


class LayeredTable(Rows[K, R]):
    """`base`, with the rows of `top` in place of those whose keys are in `changed`."""

    __slots__ = ("_base", "_undo", "changed", "top")

    def __init__(self, base: Rows[K, R], top: Table[K, R], undo: Undo) -> None:
        self._base = base
        self._undo = undo
        self.top: Table[K, R] = top
        self.changed: dict[K, None] = {}  # in the order of the first change

    def get(self, key: K) -> R | None:
        return self.top.get(key) if key in self.changed else self._base.get(key)

    def put(self, key: K, row: R) -> None:
        self._undo.changes.append((self, key, self._before(key)))
        self.changed[key] = None
        self.top.set(key, row)

    def remove(self, key: K) -> None:
        self._undo.changes.append((self, key, self._before(key)))
        self.changed[key] = None
        self.top.drop(key)

    def remember(self, key: K, row: R | None) -> None:
        """Goes on showing `row` (None: nothing) while the base changes; the first time counts."""
        if key not in self.changed:
            self.changed[key] = None
            if row is not None:
                self.top.set(key, row)

    def restore(self, key: K, before: Any) -> None:
        if before is _UNTOUCHED:
            del self.changed[key]
            self.top.drop(key)
        else:
            self.top.restore(key, before)

    def entries(
        self, index: str, group: Hashable = None, *, after: Entry | None = None, now: datetime | None = None
    ) -> Iterator[Entry]:
        below = self._base.entries(index, group, after=after, now=now)
        changed = self.changed
        if not changed:
            return below
        unchanged = (entry for entry in below if entry[-1] not in changed)
        return merge(unchanged, self.top.entries(index, group, after=after, now=now))

    def size(self, index: str, group: Hashable = None) -> int:
        if not self.changed:
            return self._base.size(index, group)
        return sum(1 for _ in self.entries(index, group))

    def _before(self, key: K) -> Any:
        return self.top.get(key) if key in self.changed else _UNTOUCHED
