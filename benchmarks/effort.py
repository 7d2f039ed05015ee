"""How much a run measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Effort"]


@dataclass(frozen=True, slots=True)
class Effort:
    """The sizes of a run."""

    operations: int  # of one task in one round; several tasks share some more
    rounds: int
    tasks: tuple[int, ...]
    sizes: tuple[int, ...]  # numbers of flows, for the growth
    cycles: int  # timers that go through the table, for the bloat
    warm_up_rounds: int = 1  # before those that count

    def lane_operations(self, tasks: int, share: float) -> int:
        """Returns how often each lane calls the operation in one round."""
        total = self.operations * math.sqrt(tasks) * 2 if tasks > 1 else self.operations
        return max(1, round(total * share / tasks))

    @property
    def growth_operations(self) -> int:
        """How often each operation is called in one round on each size."""
        return max(10, self.operations // 8)
