"""Type aliases of JSON documents. Anybody may import this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["JsonObject", "JsonValue"]

# A JSON value: None, bool, int, float, str, a list or tuple of JSON values, or a mapping from str to JSON
# values. It is `Any` for type checkers, because a recursive union would force a cast on everybody who reads a
# payload.
JsonValue: TypeAlias = Any

# A JSON object.
JsonObject: TypeAlias = Mapping[str, Any]
