"""Names of advisory locks, the numbers they stand for, and what is told of a lock that somebody holds.

A lock is a number to PostgreSQL. Ours is made of the installation's schema and the name, by a documented hash, so
that everybody who knows the name meets at the same number, in any language.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from cascade_state.errors import InvalidArgument
from cascade_state.ids import lock_key
from cascade_state.model.arguments import MAXIMUM_KEY_BYTES, check_key, check_text

__all__ = [
    "LockInfo",
    "LockMode",
    "LockName",
    "advisory_lock_key",
    "check_lock_name",
    "lock_name_from_text",
    "lock_name_text",
]

LockName: TypeAlias = str | tuple[str | int, ...]
LockMode: TypeAlias = Literal["exclusive", "shared"]

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_LARGEST = 2**63  # what any database can hold; and Python takes its time over the digits of huge numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class LockInfo:
    """An advisory lock of this database that somebody holds or waits for.

    Attributes:
        lock_name: None where it is not known: an own lock of the store, a lock of somebody else, or one that only
            transactions of other processes took.
        key: The number that the database knows it by.
        pid: The process of the server that holds it for its session; in memory, this process.
        granted: False: it is waited for.
        since: When it was granted, or the wait began, by the database's clock. Of a lock without a `HeldLock`, and of
            a shared one, the beginning of the transaction or session that has it; None where the database does not
            tell.
    """

    lock_name: LockName | None
    key: int
    mode: LockMode
    pid: int
    application_name: str
    granted: bool
    since: datetime | None


def check_lock_name(name: object) -> LockName:
    """Returns `name` if it can name a lock: a key, or a tuple of texts and integers that is no longer than one."""
    if not isinstance(name, tuple):
        return check_key(name, "name")
    if not name:
        raise InvalidArgument(argument="name", reason="must not be empty")
    parts = tuple(_check_part(part, f"[{index}]") for index, part in enumerate(name))
    if len(lock_name_text(parts).encode()) > MAXIMUM_KEY_BYTES:
        raise InvalidArgument(argument="name", reason=f"is longer than {MAXIMUM_KEY_BYTES} bytes as JSON")
    return parts


def _check_part(part: object, path: str) -> str | int:
    if isinstance(part, int) and not isinstance(part, bool):
        if not -_LARGEST <= part < _LARGEST:
            raise InvalidArgument(argument="name", path=path, reason="must be a number of 64 bits")
        return int(part)
    if isinstance(part, str):
        return check_text(part, "name", path)
    raise InvalidArgument(argument="name", path=path, reason=f"must be a str or an int, not {type(part).__name__}")


def lock_name_text(name: LockName) -> str:
    """Returns the one way to write a name as JSON: no two names are written alike."""
    return _ENCODER.encode(name)


def lock_name_from_text(text: str) -> LockName:
    """Returns the name that `lock_name_text` wrote."""
    name = json.loads(text)
    return tuple(name) if isinstance(name, list) else str(name)


def advisory_lock_key(schema: str | None, name: LockName) -> int:
    """Returns the signed 64-bit number of a lock in the installation of this schema."""
    return lock_key(schema, "lock", lock_name_text(name))
