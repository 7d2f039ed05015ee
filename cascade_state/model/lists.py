"""What lists return, and the opaque cursors that continue them."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from cascade_state.errors import InvalidArgument, SerializationError

__all__ = ["CursorList", "Page", "decode_cursor", "encode_cursor"]

T = TypeVar("T")


class CursorList(list[T]):
    """A list that knows how to go on: pass `next_cursor` to the same call for what follows; None means that was all."""

    __slots__ = ("next_cursor",)

    def __init__(self, items: Iterable[T] = (), *, next_cursor: str | None = None) -> None:
        super().__init__(items)
        self.next_cursor: str | None = next_cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a list.

    `next_cursor` continues it (None: that was all); `undecodable` holds an error, with its id, for each row
    that could not be decoded.
    """

    items: tuple[T, ...]
    next_cursor: str | None = None
    undecodable: tuple[SerializationError, ...] = ()


def encode_cursor(subject: object, key: Sequence[Any]) -> str:
    """Returns an opaque cursor behind the row with this sort key, bound to `subject` (the list and its filter)."""
    text = json.dumps([_fingerprint(subject), *key], separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, subject: object, kinds: tuple[type, ...]) -> list[Any] | None:
    """Returns the sort key inside `cursor` (None for None).

    Args:
        kinds: The type of each part of the key, as JSON gives it back.

    Raises:
        InvalidArgument: It is no cursor, or belongs to another list or filter.
    """
    if cursor is None:
        return None
    try:
        key: list[Any]
        fingerprint, *key = json.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InvalidArgument(argument="cursor", reason="is not a cursor of this store") from None
    if fingerprint != _fingerprint(subject):
        raise InvalidArgument(argument="cursor", reason="belongs to another list or filter")
    if len(key) != len(kinds) or not all(map(isinstance, key, kinds)):
        raise InvalidArgument(argument="cursor", reason="is not a cursor of this list")
    return key


def _fingerprint(subject: object) -> str:
    return blake2b(repr(subject).encode("utf-8", "backslashreplace"), digest_size=9).hexdigest()
