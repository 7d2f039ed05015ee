"""Operations that can travel alone or as a batch: how an item becomes a statement, and which items must not meet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cascade_state.postgres.direct import Statement

if TYPE_CHECKING:
    from cascade_state.postgres.executor import Executor

__all__ = ["Operation"]

Item = TypeVar("Item")


class Operation(ABC, Generic[Item]):
    """One kind of one-statement operation. Its records carry `item`, the position of the item they answer."""

    @abstractmethod
    def prepare(self, items: Sequence[Item], executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        """Returns the statement for one item or several, and its values."""

    @abstractmethod
    def keys(self, item: Item) -> Collection[Hashable]:
        """Returns what the item must have for itself in a batch: two items with a key in common leave in turn."""
