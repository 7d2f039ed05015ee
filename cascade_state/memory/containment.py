"""Containment of JSON values, as PostgreSQL's `@>` has it for jsonb.

Source: PostgreSQL manual, 8.14.3 "jsonb Containment and Existence".
"""

from __future__ import annotations

from typing import Any

__all__ = ["contains"]


def contains(whole: Any, part: Any) -> bool:
    """Tells whether `whole` contains `part`.

    An object contains another if it has all its keys, with values that contain the other's. An array
    contains another if each of the other's elements is contained in one of its own, in any order, however
    often. A scalar contains an equal one: 1 and 1.0 are equal, 1 and true are not.
    """
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(contains(mine, item) for mine in whole) for item in part)
    if isinstance(part, bool) or isinstance(whole, bool):
        return whole is part
    return not isinstance(whole, (dict, list)) and bool(whole == part)
