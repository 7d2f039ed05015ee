"""A sorted collection of tuples that stays fast when it is long.

It is a list of short sorted lists. Adding and removing look for the short list and then inside it, so the
cost hardly grows with the number of entries; adding at the end, which is what time-ordered keys do, is
cheapest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, TypeAlias

__all__ = ["Entry", "SortedKeys"]

# The values that an index sorts by, in order, and at the end the key of the row.
Entry: TypeAlias = tuple[Any, ...]

_LAST: Callable[[list[Entry]], Entry] = itemgetter(-1)
_FIRST_PART = itemgetter(0)
_CHUNK = 512  # moving this many pointers inside a list costs about as much as finding the list


class SortedKeys:
    """Entries in ascending order, each at most once. It must not be changed while it is walked."""

    __slots__ = ("_chunks", "_size")

    def __init__(self) -> None:
        self._chunks: list[list[Entry]] = []  # none of them empty
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, entry: Entry) -> None:
        """Adds an entry that is not there yet."""
        chunks = self._chunks
        self._size += 1
        if not chunks:
            chunks.append([entry])
            return
        position = len(chunks) - 1
        chunk = chunks[position]
        if entry > chunk[-1]:
            chunk.append(entry)
        else:
            position = bisect_left(chunks, entry, key=_LAST)
            chunk = chunks[position]
            insort(chunk, entry)
        if len(chunk) > 2 * _CHUNK:
            chunks.insert(position + 1, chunk[_CHUNK:])
            del chunk[_CHUNK:]

    def discard(self, entry: Entry) -> bool:
        """Removes an entry; returns whether it was there."""
        chunks = self._chunks
        position = bisect_left(chunks, entry, key=_LAST)
        if position == len(chunks):
            return False
        chunk = chunks[position]
        place = bisect_left(chunk, entry)
        if chunk[place] != entry:
            return False
        del chunk[place]
        if not chunk:
            del chunks[position]
        self._size -= 1
        return True

    def walk(self, after: Entry | None = None) -> Iterator[Entry]:
        """Yields the entries in order, those behind `after` only."""
        chunks = self._chunks
        start = 0
        if after is not None:
            start = bisect_right(chunks, after, key=_LAST)
            if start == len(chunks):
                return
            chunk = chunks[start]
            for place in range(bisect_right(chunk, after), len(chunk)):
                yield chunk[place]
            start += 1
        for position in range(start, len(chunks)):
            yield from chunks[position]

    def pop_until(self, value: Any) -> list[Entry]:
        """Removes and returns the entries whose first part is at most `value`."""
        chunks = self._chunks
        popped: list[Entry] = []
        while chunks and chunks[0][0][0] <= value:
            chunk = chunks[0]
            place = bisect_right(chunk, value, key=_FIRST_PART)
            popped += chunk[:place]
            del chunk[:place]
            if chunk:
                break
            del chunks[0]
        self._size -= len(popped)
        return popped
