"""Checks of arguments, shared by both back ends so that they refuse the same things in the same words.

Each returns the value as it is stored, or raises `InvalidArgument` naming the argument, before anything is
sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import MAXYEAR, UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from cascade_state.errors import InvalidArgument

__all__ = [
    "MAXIMUM_DURATION",
    "MAXIMUM_KEY_BYTES",
    "check_count",
    "check_duration",
    "check_instant",
    "check_items",
    "check_key",
    "check_kind",
    "check_optional_instant",
    "check_optional_key",
    "check_partition",
    "check_partitions",
    "check_text",
    "check_uuid",
]

T = TypeVar("T")

MAXIMUM_KEY_BYTES = 512  # several keys share one B-tree entry, and an entry holds at most about 2,700 bytes
MAXIMUM_DURATION = timedelta(days=36_525)  # a century: keeps `now + duration` inside what datetime can hold
_MAXIMUM_COUNT = 100_000


def check_key(value: object, argument: str) -> str:
    """Returns `value` if it can be a key or an id: non-empty text of at most 512 bytes of UTF-8, without NUL."""
    text = check_text(value, argument)
    if not text:
        raise InvalidArgument(argument=argument, reason="must not be empty")
    # A character takes at most four bytes, so most keys need no second encoding.
    if len(text) * 4 > MAXIMUM_KEY_BYTES and len(text.encode()) > MAXIMUM_KEY_BYTES:
        raise InvalidArgument(argument=argument, reason=f"is longer than {MAXIMUM_KEY_BYTES} bytes of UTF-8")
    return text


def check_optional_key(value: object, argument: str) -> str | None:
    """Returns None for None, otherwise what `check_key` returns."""
    return None if value is None else check_key(value, argument)


def check_text(value: object, argument: str, path: str = "") -> str:
    """Returns `value` if it is text that PostgreSQL can hold: no NUL character, no lone surrogate."""
    if not isinstance(value, str):
        raise InvalidArgument(argument=argument, path=path, reason=f"must be a str, not {type(value).__name__}")
    if "\x00" in value:
        raise InvalidArgument(argument=argument, path=path, reason="contains a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(argument=argument, path=path, reason="contains a lone surrogate") from None
    return value if type(value) is str else str.__str__(value)


def check_uuid(value: object, argument: str) -> UUID:
    """Returns `value` if it is a UUID."""
    if not isinstance(value, UUID):
        raise InvalidArgument(argument=argument, reason=f"must be a UUID, not {type(value).__name__}")
    return value


def check_instant(value: object, argument: str) -> datetime:
    """Returns `value` in UTC if it is an aware datetime."""
    if not isinstance(value, datetime):
        raise InvalidArgument(argument=argument, reason=f"must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidArgument(argument=argument, reason="must be an aware datetime (with a time zone)")
    if not 1 < value.year < MAXYEAR:
        # To the driver the first and last instants of datetime are PostgreSQL's infinities, and come back naive.
        raise InvalidArgument(argument=argument, reason=f"must lie between the years 2 and {MAXYEAR - 1}")
    return value.astimezone(UTC)


def check_optional_instant(value: object, argument: str) -> datetime | None:
    """Returns None for None, otherwise what `check_instant` returns."""
    return None if value is None else check_instant(value, argument)


def check_duration(value: object, argument: str, *, allow_zero: bool = False) -> timedelta:
    """Returns `value` if it is a timedelta above zero (or from zero on) and at most a century."""
    if not isinstance(value, timedelta):
        raise InvalidArgument(argument=argument, reason=f"must be a timedelta, not {type(value).__name__}")
    if value < timedelta(0) or (value == timedelta(0) and not allow_zero):
        raise InvalidArgument(argument=argument, reason="must not be negative" if allow_zero else "must be positive")
    if value > MAXIMUM_DURATION:
        raise InvalidArgument(argument=argument, reason="is longer than a century")
    return value


def check_kind(value: object, kind: type[T], argument: str) -> T:
    """Returns `value` if it is of a class."""
    if not isinstance(value, kind):
        raise InvalidArgument(argument=argument, reason=f"must be a {kind.__name__}, not {type(value).__name__}")
    return value


def check_items(values: object, argument: str) -> tuple[Any, ...]:
    """Returns the items of `values`, whatever they are, if there are several to be had; a text is one thing."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise InvalidArgument(argument=argument, reason=f"must be a collection, not {type(values).__name__}")
    return tuple(values)


def check_partition(value: object, argument: str, partition_count: int) -> int:
    """Returns `value` if it is one of the store's partitions, from 0 on."""
    return check_count(value, argument, minimum=0, maximum=partition_count - 1)


def check_count(value: object, argument: str, *, minimum: int = 1, maximum: int = _MAXIMUM_COUNT) -> int:
    """Returns `value` if it is an int from `minimum` to `maximum`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(argument=argument, reason=f"must be an int, not {type(value).__name__}")
    if not minimum <= value <= maximum:
        raise InvalidArgument(argument=argument, reason=f"must be from {minimum} to {maximum}")
    return value


def check_partitions(value: object, argument: str, partition_count: int) -> frozenset[int] | None:
    """Returns `value` as a set if it is a collection of partitions, which may be empty; None, for all, stays None."""
    if value is None:
        return None
    if not isinstance(value, Collection) or isinstance(value, (str, bytes)):
        raise InvalidArgument(argument=argument, reason=f"must be a collection of int, not {type(value).__name__}")
    return frozenset(check_partition(partition, argument, partition_count) for partition in value)
