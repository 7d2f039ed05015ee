"""A sorted collection of tuples that stays fast when it is long.

It is a list of short sorted lists. Adding and removing look for the short list and then inside it, so the
cost hardly grows with the number of entries; adding at the end, which is what time-ordered keys do, is
cheapest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, TypeAlias

__all__ = ["Entry", "SortedKeys"]

# The values that an index sorts by, in order, and at the end the key of the row.
Entry: TypeAlias = tuple[Any, ...]

_FIRST_PART = itemgetter(0)
_CHUNK = 512  # moving this many pointers inside a list costs about as much as finding the list


class SortedKeys:
    """Entries in ascending order, each at most once. It must not be changed while it is walked."""

    __slots__ = ("_chunks", "_lasts", "_size")

    def __init__(self) -> None:
        self._chunks: list[list[Entry]] = []
        self._lasts: list[Entry] = []  # the last entry of each chunk
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, entry: Entry) -> None:
        """Adds an entry that is not there yet."""
        self._size += 1
        lasts = self._lasts
        if not lasts:
            self._chunks.append([entry])
            lasts.append(entry)
            return
        if entry > lasts[-1]:
            position = len(lasts) - 1
            chunk = self._chunks[position]
            chunk.append(entry)
            lasts[position] = entry
        else:
            position = bisect_left(lasts, entry)
            chunk = self._chunks[position]
            insort(chunk, entry)
        if len(chunk) > 2 * _CHUNK:
            self._split(position)

    def discard(self, entry: Entry) -> bool:
        """Removes an entry; returns whether it was there."""
        position = bisect_left(self._lasts, entry)
        if position == len(self._lasts):
            return False
        chunk = self._chunks[position]
        place = bisect_left(chunk, entry)
        if chunk[place] != entry:
            return False
        del chunk[place]
        self._size -= 1
        if not chunk:
            del self._chunks[position]
            del self._lasts[position]
        elif place == len(chunk):
            self._lasts[position] = chunk[-1]
        return True

    def walk(self, after: Entry | None = None) -> Iterator[Entry]:
        """Yields the entries in order, those behind `after` only."""
        if after is None:
            for chunk in self._chunks:
                yield from chunk
            return
        position = bisect_right(self._lasts, after)
        if position == len(self._lasts):
            return
        first = self._chunks[position]
        for place in range(bisect_right(first, after), len(first)):
            yield first[place]
        for chunk in self._chunks[position + 1 :]:
            yield from chunk

    def pop_until(self, value: Any) -> list[Entry]:
        """Removes and returns the entries whose first part is at most `value`."""
        popped: list[Entry] = []
        while self._chunks and self._chunks[0][0][0] <= value:
            chunk = self._chunks[0]
            place = bisect_right(chunk, value, key=_FIRST_PART)
            popped += chunk[:place]
            if place < len(chunk):
                del chunk[:place]
                break
            del self._chunks[0]
            del self._lasts[0]
        self._size -= len(popped)
        return popped

    def _split(self, position: int) -> None:
        chunk = self._chunks[position]
        rest = chunk[_CHUNK:]
        del chunk[_CHUNK:]
        self._chunks.insert(position + 1, rest)
        self._lasts.insert(position, chunk[-1])
