"""What is compared, and how a contender says what it does.

A contender is a module of `contenders` with `WORKLOADS`: for each workload it takes part in, a coroutine function that
prepares everything, runs the workload and returns its `Timing`, and a sentence that tells what happens for one item.
Its process runs nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = ["PAYLOAD", "STEPS_A_FLOW", "Run", "Timing", "Workload", "lanes", "seconds_of"]

# What a step leaves behind, and what a job carries: about 400 bytes of JSON.
PAYLOAD = {
    "customer": "c-1042",
    "items": [{"sku": f"A-{number}", "count": number} for number in range(8)],
    "note": "x" * 120,
}
STEPS_A_FLOW = 10

_WARM_UP = 0.1  # of the operations go before the timed ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a contender is asked to do."""

    url: str  # of an empty database of its own
    tasks: int  # that work at the same time, in one process
    count: int  # items in all

    @property
    def each(self) -> int:
        """How many items one task does."""
        return max(STEPS_A_FLOW, self.count // self.tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What it took."""

    items: int
    seconds: float
    insert_seconds: float | None = None  # where the items had to be made first


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How a contender does one workload."""

    run: Callable[[Run], Awaitable[Timing]]
    does: str  # for one item


async def lanes(run: Run, operation: Callable[[int, int], Awaitable[object]]) -> Timing:
    """Calls `operation(lane, number)` in `run.tasks` tasks, a few times untimed and then timed."""
    warm_up = max(1, int(run.each * _WARM_UP))

    async def lane(number: int, begin: int, end: int) -> None:
        for index in range(begin, end):
            await operation(number, index)

    async def all_lanes(begin: int, end: int) -> None:
        await asyncio.gather(*(lane(number, begin, end) for number in range(run.tasks)))

    await all_lanes(0, warm_up)
    seconds = await seconds_of(all_lanes(warm_up, warm_up + run.each))
    return Timing(items=run.tasks * run.each, seconds=seconds)


async def seconds_of(work: Awaitable[object]) -> float:
    """Returns how long `work` took."""
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin
