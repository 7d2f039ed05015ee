"""What all repositories share: their guard, the store's limits, and lists that continue by cursor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from cascade_state.abc.guards import Guard
from cascade_state.errors import InvalidArgument
from cascade_state.model.advance import Limits
from cascade_state.model.arguments import check_count
from cascade_state.model.lists import CursorList, decode_cursor, encode_cursor

__all__ = ["DEFAULT_LIMIT", "MAXIMUM_LIMIT", "Repository", "check_limit", "cut", "decode_position"]

DEFAULT_LIMIT = 100
MAXIMUM_LIMIT = 10_000

T = TypeVar("T")

_PARSERS: dict[type, Callable[[str], Any]] = {datetime: datetime.fromisoformat, UUID: UUID}


class Repository:
    """The base of all repositories of one store or unit of work."""

    def __init__(self, guard: Guard, limits: Limits) -> None:
        self._guard = guard
        self._limits = limits


def check_limit(limit: object) -> int:
    """Returns `limit` if it can be the length of a list: from 1 to 10,000."""
    return check_count(limit, "limit", maximum=MAXIMUM_LIMIT)


def cut(rows: Sequence[T], limit: int, subject: object, key: Callable[[T], Sequence[Any]]) -> CursorList[T]:
    """Returns the first `limit` of `limit + 1` fetched rows, with the cursor that continues behind them."""
    if len(rows) <= limit:
        return CursorList(rows)
    return CursorList(rows[:limit], next_cursor=encode_cursor(subject, key(rows[limit - 1])))


def decode_position(cursor: str | None, subject: object, *kinds: type) -> tuple[Any, ...] | None:
    """Returns the sort key that a list continues behind (None: from the start).

    Args:
        kinds: The types of the key's parts: `int`, `str`, `datetime` or `UUID`.
    """
    as_json = tuple(int if kind is int else str for kind in kinds)
    key = decode_cursor(cursor, subject, as_json)
    if key is None:
        return None
    try:
        return tuple(
            part if kind in (int, str) else _PARSERS[kind](part) for part, kind in zip(key, kinds, strict=True)
        )
    except ValueError:
        raise InvalidArgument(argument="cursor", reason="is not a cursor of this list") from None
