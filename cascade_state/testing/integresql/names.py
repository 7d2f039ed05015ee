"""IntegreSQL's names of databases, never longer than PostgreSQL keeps them.

`<prefix>_<template prefix>_<hash>` and `<prefix>_<test prefix>_<hash>_<number>`. A hash that does not fit, or that has
control characters, is named by its digest; a hash that looks like such a digest is too, so that no two hashes share
a name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cascade_state.errors import InvalidArgument

__all__ = ["Names", "checked_hash"]

_NAME_LIMIT = 63  # bytes; PostgreSQL cuts longer names off
_HASH_LIMIT = 1024  # bytes; whatever is longer is not a hash but a mistake
_DIGEST_LENGTH = len("sha256-") + 32
_DIGEST = re.compile(r"sha256-[0-9a-f]{32}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def checked_hash(value: object) -> str:
    """Returns the template hash when it can be served.

    Raises:
        InvalidArgument: Not text, empty, with a NUL or a lone surrogate, or over 1 KiB.
    """
    if not isinstance(value, str) or not value:
        raise InvalidArgument(argument="hash", reason="must be text and must not be empty")
    if "\0" in value:
        raise InvalidArgument(argument="hash", reason="must not contain NUL")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(argument="hash", reason="must be valid Unicode") from None
    if length > _HASH_LIMIT:
        raise InvalidArgument(argument="hash", reason=f"is {length} bytes long; {_HASH_LIMIT} are allowed")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The prefixes, and the names made of them.

    Args:
        prefix: What all names begin with.
        template_prefix: Follows in the names of templates.
        test_prefix: Follows in the names of test databases.
        digits: How many the number of a test database has at most; IntegreSQL pads to three.
    """

    prefix: str = "integresql"
    template_prefix: str = "template"
    test_prefix: str = "test"
    digits: int = 3

    def __post_init__(self) -> None:
        if self.template_prefix == self.test_prefix:
            raise InvalidArgument(argument="test_prefix", reason="must differ from the prefix of templates")
        if "\0" in self.all_templates + self.all_tests:
            raise InvalidArgument(argument="prefix", reason="must not contain NUL")
        if min(self._room_of_template, self._room_of_tests) < _DIGEST_LENGTH:
            raise InvalidArgument(argument="prefix", reason="leaves no room for a hash in a database's name")

    @property
    def all_templates(self) -> str:
        """What the names of all templates begin with."""
        return f"{self.prefix}_{self.template_prefix}_"

    @property
    def all_tests(self) -> str:
        """What the names of all test databases begin with."""
        return f"{self.prefix}_{self.test_prefix}_"

    def template(self, template_hash: str) -> str:
        """Returns the name of the hash's template database."""
        return self.all_templates + _fitting(template_hash, self._room_of_template)

    def tests(self, template_hash: str) -> str:
        """Returns what the names of the hash's test databases begin with; an underscore and the number follow."""
        return self.all_tests + _fitting(template_hash, self._room_of_tests)

    @property
    def _room_of_template(self) -> int:
        return _NAME_LIMIT - len(self.all_templates.encode())

    @property
    def _room_of_tests(self) -> int:
        return _NAME_LIMIT - len(self.all_tests.encode()) - len("_") - max(3, self.digits)


def _fitting(template_hash: str, room: int) -> str:
    plain = len(template_hash.encode()) <= room and not _CONTROL.search(template_hash)
    if plain and not _DIGEST.fullmatch(template_hash):
        return template_hash
    return f"sha256-{hashlib.sha256(template_hash.encode()).hexdigest()[:32]}"
