"""Claims by the size of their batch, and the way from a commit to its handler: suites of `make bench`, on their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.bench import opened_bench
from benchmarks.contenders import ORM
from benchmarks.effort import Effort
from benchmarks.measuring import measure
from benchmarks.registry import Benchmark, registered
from benchmarks.report import as_document

__all__ = ["CLAIMS", "WAKE_UPS", "hand_overs", "measure_hand_overs"]

CLAIMS = "claim and complete"
WAKE_UPS = "commit to handler"


def hand_overs() -> list[Benchmark]:
    """Returns the benchmarks, without the ORM, which is another page's matter."""
    return [
        replace(one, contenders={name: way for name, way in one.contenders.items() if name != ORM})
        for one in registered()
        if one.name.startswith((CLAIMS, WAKE_UPS))
    ]


async def measure_hand_overs(
    url: str, postmaster: int, operations: int, rounds: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Returns the results with one task, as the document of `make bench` has them."""
    effort = Effort(operations=operations, rounds=rounds, tasks=(1,), sizes=(), cycles=0)
    async with opened_bench(url, postmaster, 1) as bench:
        results = await measure(bench, hand_overs(), 1, effort, progress)
    found: list[dict[str, Any]] = as_document(results, [], None, {})["results"]
    return found
