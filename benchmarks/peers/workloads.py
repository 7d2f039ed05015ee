"""What is compared, and how a contender says what it does.

A contender is a module of `contenders` with `WORKLOADS`: for each workload it takes part in, a coroutine function that
prepares everything, runs the workload and returns its `Timing`, a sentence that tells what happens for one item, and
one that tells what that is worth. Its process runs nothing else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = [
    "PAYLOAD",
    "STEPS_A_FLOW",
    "WARM_UPS",
    "Run",
    "Timing",
    "WakeUps",
    "Workload",
    "lanes",
    "seconds_of",
    "timed",
]

# What a step leaves behind, and what a job or an event carries: about 400 bytes of JSON.
PAYLOAD = {
    "customer": "c-1042",
    "items": [{"sku": f"A-{number}", "count": number} for number in range(8)],
    "note": "x" * 120,
}
STEPS_A_FLOW = 10

_WARM_UP = 0.1  # of the operations go before the timed ones
WARM_UPS = 3  # events and tests that go before the timed ones
_QUIET_SECONDS = 0.02  # between two events, so that none waits for the one before
_PATIENCE_SECONDS = 20


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
    latencies: list[float] | None = None  # in seconds, where they are what counts
    warm_up: int = 0  # items that were done before, untimed


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How a contender does one workload."""

    run: Callable[[Run], Awaitable[Timing]]
    does: str  # for one item
    promises: str  # when a process dies, or two workers meet


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
    return Timing(items=run.tasks * run.each, seconds=seconds, warm_up=run.tasks * warm_up)


def timed(latencies: list[float]) -> Timing:
    """Returns the timing of operations whose latency counts, without the first `WARM_UPS`."""
    counted = latencies[WARM_UPS:]
    return Timing(items=len(counted), seconds=sum(counted), latencies=counted, warm_up=WARM_UPS)


async def seconds_of(work: Awaitable[object]) -> float:
    """Returns how long `work` took."""
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin


async def _nothing(number: int) -> None:
    pass


class WakeUps:
    """Times from the call that publishes an event to the beginning of its handler, one event after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[float] | None = None

    def begin(self) -> None:
        """Called first by the handler, in whatever thread."""
        self._loop.call_soon_threadsafe(self._note, time.perf_counter())

    def _note(self, moment: float) -> None:
        if self._begun is not None and not self._begun.done():
            self._begun.set_result(moment)

    async def measure(
        self,
        count: int,
        publish: Callable[[int], Awaitable[object]],
        *,
        prepare: Callable[[int], Awaitable[object]] = _nothing,
        spread_seconds: float = 0.02,
    ) -> Timing:
        """Prepares a waiter, lets everybody rest for a while, publishes, and waits for the handler, for each event.

        The rest is of random length, over `spread_seconds`: whoever polls is met in every part of the interval.
        """
        chance = random.Random(count)  # noqa: S311 - no secret
        latencies = []
        for number in range(WARM_UPS + count):
            await prepare(number)
            await asyncio.sleep(_QUIET_SECONDS + chance.uniform(0, spread_seconds))
            self._begun = self._loop.create_future()
            start = time.perf_counter()
            await publish(number)
            latencies.append(await asyncio.wait_for(self._begun, _PATIENCE_SECONDS) - start)
        return timed(latencies)
