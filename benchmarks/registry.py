"""The registered benchmarks: what is measured, for each contender.

A module in `benchmarks/suites/` registers its own with a decorator; every module there is found by itself:

    @benchmark("timers", "claim and complete (1)", per_item=True)
    async def claim_one(bench: Bench, tasks: int) -> Operation:
        await due_timers(bench, tasks * bench.operations)  # untimed

        async def operation(lane: int, index: int) -> int:
            timers = await bench.store.timers.claim_due(f"w{lane}", limit=1, lease_duration=LEASE)
            await bench.store.timers.complete(timers)
            return len(timers)

        return operation

    @claim_one.against("bare asyncpg")
    async def _(bench: Bench, tasks: int) -> Operation: ...

The decorated function prepares a round and returns the operation, which is then called `bench.operations` times in each
of `tasks` lanes (concurrent tasks). The first contender is ours; all take turns in every round, so that a busy moment
hits each of them, and the results are ratios between them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import benchmarks.suites

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["BARE", "OURS", "TASKS", "Benchmark", "Contender", "Latency", "Operation", "benchmark", "registered"]

OURS = "store"
BARE = "bare asyncpg"  # the very statements that the store sends, ready made, on held connections
TASKS = (1, 16, 64)


@dataclass(frozen=True, slots=True)
class Latency:
    """What an operation returns when not its own duration is of interest, but one that it saw."""

    seconds: float


# (lane, index) -> how many items it was (None: one), or the latency that it observed
Operation: TypeAlias = Callable[[int, int], Awaitable[int | Latency | None]]
Prepare: TypeAlias = Callable[["Bench", int], Awaitable[Operation]]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work, and which share of the operations it gets (a slow one needs fewer)."""

    prepare: Prepare
    share: float = 1.0


@dataclass(slots=True)
class Benchmark:
    """One kind of work, with its contenders; the first one is ours."""

    group: str
    name: str
    tasks: Sequence[int] = TASKS
    counts_round_trips: bool = True
    share: float = 1.0  # of the run's operations, for work that is big
    contenders: dict[str, Contender] = field(default_factory=dict)

    def against(self, name: str, *, share: float = 1.0) -> Callable[[Prepare], Prepare]:
        """Adds a contender to compare ours with: a floor, or another way."""

        def add(prepare: Prepare) -> Prepare:
            self.contenders[name] = Contender(prepare, share)
            return prepare

        return add


_registered: list[Benchmark] = []


def benchmark(
    group: str,
    name: str,
    *,
    tasks: Sequence[int] = TASKS,
    counts_round_trips: bool = True,
    share: float = 1.0,
) -> Callable[[Prepare], Benchmark]:
    """Registers a benchmark whose first contender, ours, the decorated function prepares.

    Args:
        group: The table that it stands in: benchmarks of one group have the same contenders.
        tasks: The numbers of concurrent tasks that it runs with.
        counts_round_trips: Whether everything that it sends goes through `bench.store`.
        share: The share of the run's operations that are enough for it.
    """

    def register(prepare: Prepare) -> Benchmark:
        made = Benchmark(group, name, tasks, counts_round_trips, share)
        made.contenders[OURS] = Contender(prepare)
        _registered.append(made)
        return made

    return register


def registered() -> list[Benchmark]:
    """Returns all benchmarks, in the order of their modules' names."""
    for module in sorted(pkgutil.iter_modules(benchmarks.suites.__path__), key=lambda found: found.name):
        importlib.import_module(f"benchmarks.suites.{module.name}")
    return list(_registered)
