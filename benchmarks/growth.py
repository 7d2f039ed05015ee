"""Growth: the same operation on a small and on a large store, in turns, so that a busy moment hits both.

`@growth("get")` registers one: the decorated function prepares a round on a store of some size and returns the
operation, whose latency is what counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench import Bench, opened_bench
from benchmarks.bloat import measure_bloat
from benchmarks.effort import Effort
from benchmarks.empty_database import created
from benchmarks.loading import load
from benchmarks.measuring import quantile
from benchmarks.registry import Prepare

__all__ = ["Growth", "GrowthResult", "growth", "measure_growth", "registered_growth"]


@dataclass(frozen=True, slots=True)
class Growth:
    """One operation that should cost the same on a store of any size."""

    name: str
    prepare: Prepare
    grows: str = ""  # why it may cost more on a larger store, where it does
    share: float = 1.0  # of the operations of a round: more of what is over at once


@dataclass(slots=True)
class GrowthResult:
    """Latencies in seconds, by the number of flows (and timers) in the store."""

    name: str
    grows: str
    latencies: dict[int, list[float]] = field(default_factory=dict)

    @property
    def factor(self) -> float:
        """How many times as long the largest store takes as the smallest: of the medians."""
        medians = [statistics.median(self.latencies[size]) for size in sorted(self.latencies)]
        return medians[-1] / medians[0]

    def as_document(self) -> dict[str, Any]:
        """Returns plain values."""
        sizes = {
            str(size): {
                "p50_ms": round(statistics.median(latencies) * 1e3, 4),
                "p99_ms": round(quantile(latencies, 0.99) * 1e3, 4),
            }
            for size, latencies in sorted(self.latencies.items())
        }
        return {"name": self.name, "grows": self.grows, "sizes": sizes, "factor": round(self.factor, 3)}


_registered: list[Growth] = []


def growth(name: str, *, grows: str = "", share: float = 1.0) -> Callable[[Prepare], Prepare]:
    """Registers an operation whose growth is measured."""

    def register(prepare: Prepare) -> Prepare:
        _registered.append(Growth(name, prepare, grows, share))
        return prepare

    return register


def registered_growth() -> list[Growth]:
    """Returns what is registered; `registry.registered()` has imported the modules."""
    return list(_registered)


async def measure_growth(
    url: str, chosen: Sequence[Growth], effort: Effort, progress: Callable[[str], None], *, bloat: bool
) -> tuple[list[GrowthResult], dict[str, Any] | None]:
    """Loads a database of each size and measures every operation on all of them in turns; then the largest's bloat."""
    results = [GrowthResult(one.name, one.grows) for one in chosen]
    async with AsyncExitStack() as stack:
        benches: dict[int, Bench] = {}
        for size in effort.sizes if chosen else effort.sizes[-1:]:
            database = await created(url, f"growth_{size}")
            benches[size] = await stack.enter_async_context(opened_bench(database, None, 1))
            await load(benches[size].bare.connections[0], size, progress)
            benches[size].loaded_flows = size
        for number in range(effort.rounds + 1 if chosen else 0):  # the first round warms up
            for one, result in zip(chosen, results, strict=True):
                for size, bench in benches.items():
                    progress(f"growth: {one.name}, {size:,} flows, round {number} of {effort.rounds}")
                    latencies = await _round(bench, one, round(effort.growth_operations * one.share))
                    if number:
                        result.latencies.setdefault(size, []).extend(latencies)
        swollen = await measure_bloat(benches[max(benches)], effort.cycles, progress) if bloat else None
    return results, swollen


async def _round(bench: Bench, one: Growth, operations: int) -> list[float]:
    bench.operations = operations
    operation = await one.prepare(bench, 1)
    latencies = []
    for index in range(operations):
        begin = time.perf_counter()
        await operation(0, index)
        latencies.append(time.perf_counter() - begin)
    return latencies
