"""What two stores must agree on: results and errors, less what each store may choose for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from cascade_state.errors import CascadeStateError
from cascade_state.model.lists import CursorList

__all__ = ["comparable", "difference"]

# Tokens only have to grow, and positions are opaque: two honest stores may give different ones.
_OWN_CHOICE = frozenset({"token", "position", "changes"})


def comparable(value: Any) -> Any:
    """Returns a form of a result or an error in which those of two stores are equal if the stores agree."""
    if isinstance(value, CascadeStateError):
        facts = {name: str(fact) for name, fact in vars(value).items() if name not in {*_OWN_CHOICE, "_facts"}}
        return type(value).__name__, facts
    if is_dataclass(value) and not isinstance(value, type):
        kept = [item.name for item in fields(value) if item.name not in _OWN_CHOICE]
        return type(value).__name__, {name: comparable(getattr(value, name)) for name in kept}
    if isinstance(value, CursorList):
        return [comparable(item) for item in value], value.next_cursor
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    if isinstance(value, Mapping):
        return {key: comparable(item) for key, item in value.items()}
    # The type counts: True is not 1, and 1.0 is not 1.
    return type(value).__name__, repr(value)


def difference(one: Any, another: Any) -> str | None:
    """Returns where two results or errors differ first, and how; None when they agree."""
    return _difference(comparable(one), comparable(another), "$")


def _difference(one: Any, another: Any, path: str) -> str | None:
    if one == another:
        return None
    if isinstance(one, dict) and isinstance(another, dict) and one.keys() == another.keys():
        return next(filter(None, (_difference(one[key], another[key], f"{path}.{key}") for key in one)), None)
    if isinstance(one, (list, tuple)) and isinstance(another, (list, tuple)) and len(one) == len(another):
        pairs = enumerate(zip(one, another, strict=True))
        return next(filter(None, (_difference(*pair, f"{path}[{index}]") for index, pair in pairs)), None)
    return f"{path}: {one!r} is not {another!r}"
