"""Interleaved rounds, medians and ratios."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Contest", "Measurement", "measure"]

# Runs some operations one after the other, in the lane (task) of the given number, and says how many they
# were.
Lane = Callable[[int], Awaitable[int]]


@dataclass(slots=True)
class Contest:
    """One operation: each contender prepares a round (untimed) and returns the lanes that are timed."""

    name: str
    store: Callable[[int], Awaitable[Lane]]
    bare: Callable[[int], Awaitable[Lane]]
    orm: Callable[[int], Awaitable[Lane]] | None = None


@dataclass(slots=True)
class Measurement:
    """Operations a second by contender, a figure for each round."""

    name: str
    tasks: int
    rates: dict[str, list[float]] = field(default_factory=dict)

    def median(self, contender: str) -> float | None:
        """Returns the median rate, or None if the contender did not take part."""
        rates = self.rates.get(contender)
        return statistics.median(rates) if rates else None

    def ratio(self, to: str) -> float | None:
        """Returns the store's rate over another contender's: the median of the rounds' ratios."""
        others = self.rates.get(to)
        if not others:
            return None
        pairs = zip(self.rates["store"], others, strict=True)
        return statistics.median(ours / other for ours, other in pairs)


async def measure(
    contests: Sequence[Contest], tasks: int, rounds: int, progress: Callable[[str], None]
) -> list[Measurement]:
    """Runs every contest in interleaved rounds: each times each contender once, so that a busy moment hits all."""
    measurements = [Measurement(contest.name, tasks) for contest in contests]
    for number in range(rounds + 1):  # the first round warms up: statements, plans, caches
        for contest, measurement in zip(contests, measurements, strict=True):
            for contender in ("bare", "store", "orm"):
                prepare = getattr(contest, contender)
                if prepare is None:
                    continue
                progress(f"{contest.name}, {tasks} task(s), round {number} of {rounds}: {contender}")
                lane = await prepare(tasks)
                rate = await _timed(lane, tasks)
                if number:
                    measurement.rates.setdefault(contender, []).append(rate)
    return measurements


async def _timed(lane: Lane, tasks: int) -> float:
    start = time.perf_counter()
    counts = await asyncio.gather(*(lane(number) for number in range(tasks)))
    return sum(counts) / (time.perf_counter() - start)
