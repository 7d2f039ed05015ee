"""Interleaved rounds: rates, latencies, processor time and round trips of every contender."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench import Bench
from benchmarks.effort import Effort
from benchmarks.processor_time import ProcessorTime
from benchmarks.registry import OURS, Benchmark, Contender, Latency
from cascade_state import open_store
from tests.wire import Wire

__all__ = ["Figures", "Result", "measure", "quantile"]

_COUNTED = 12  # operations of a lane while round trips are counted; of big ones their share


@dataclass(slots=True)
class Figures:
    """What one contender took in one benchmark at one number of tasks."""

    rates: list[float] = field(default_factory=list)  # items a second, of each round
    latencies: list[float] = field(default_factory=list)  # seconds, of each operation of all rounds
    client_seconds: float = 0.0  # processor time
    server_seconds: float = 0.0
    items: int = 0

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)

    @property
    def client_microseconds(self) -> float:
        """Processor time of this process for an item."""
        return self.client_seconds / self.items * 1e6

    @property
    def server_microseconds(self) -> float:
        """Processor time of the server for an item."""
        return self.server_seconds / self.items * 1e6


@dataclass(slots=True)
class Result:
    """One benchmark at one number of tasks."""

    group: str
    name: str
    tasks: int
    figures: dict[str, Figures] = field(default_factory=dict)
    round_trips: float | None = None  # of ours, for one operation
    observes: bool = False  # the latencies are what the operations saw; rates then say nothing

    def ratio(self, contender: str) -> float:
        """Returns how many times as fast ours is: the median of the rounds' ratios."""
        ours, other = self.figures[OURS], self.figures[contender]
        if self.observes:  # not a round's rate, but what was seen in all of them
            return statistics.median(other.latencies) / statistics.median(ours.latencies)
        return statistics.median(mine / theirs for mine, theirs in zip(ours.rates, other.rates, strict=True))


async def measure(
    bench: Bench, chosen: Sequence[Benchmark], tasks: int, effort: Effort, progress: Callable[[str], None]
) -> list[Result]:
    """Measures every benchmark that runs with this number of tasks, and returns the results in their order.

    Each round times each contender once. The first round is not counted, unless the effort has none to warm up:
    statements are prepared, plans made and caches filled in it.
    """
    suited = [benchmark for benchmark in chosen if tasks in benchmark.tasks]
    results = [Result(benchmark.group, benchmark.name, tasks) for benchmark in suited]
    processor_time = ProcessorTime(bench.postmaster)
    for number in range(1 - effort.warm_up_rounds, effort.rounds + 1):
        for benchmark, result in zip(suited, results, strict=True):
            for name, contender in benchmark.contenders.items():
                progress(f"{benchmark.name}, {tasks} task(s), round {number} of {effort.rounds}: {name}")
                figures = result.figures.setdefault(name, Figures())
                share = benchmark.share * contender.share
                bench.operations = effort.lane_operations(tasks, share)
                await _round(bench, contender, tasks, figures if number > 0 else Figures(), result, processor_time)
    await _count_round_trips(bench, suited, results, progress)
    return results


async def _round(
    bench: Bench, contender: Contender, tasks: int, figures: Figures, result: Result, processor_time: ProcessorTime
) -> None:
    operation = await contender.prepare(bench, tasks)
    latencies: list[float] = []
    observed: list[float] = []

    async def run(lane: int) -> int:
        items = 0
        for index in range(bench.operations):
            begin = time.perf_counter()
            outcome = await operation(lane, index)
            latencies.append(time.perf_counter() - begin)
            if isinstance(outcome, Latency):
                observed.append(outcome.seconds)
            items += outcome if isinstance(outcome, int) else 1
        return items

    client, server = processor_time.now()
    begin = time.perf_counter()
    items = sum(await asyncio.gather(*(run(lane) for lane in range(tasks))))
    took = time.perf_counter() - begin
    client_after, server_after = processor_time.now()
    result.observes = bool(observed)
    figures.rates.append(items / took)
    figures.latencies += observed or latencies
    figures.client_seconds += client_after - client
    figures.server_seconds += server_after - server
    figures.items += items


async def _count_round_trips(
    bench: Bench, chosen: Sequence[Benchmark], results: Sequence[Result], progress: Callable[[str], None]
) -> None:
    """Counts on the wire, in a run of its own: the proxy that counts would slow down what is timed."""
    async with Wire(bench.url) as wire, open_store(wire.url, hints=False) as store:
        wired = bench.with_store(store)
        for benchmark, result in zip(chosen, results, strict=True):
            if not benchmark.counts_round_trips:
                continue
            progress(f"{benchmark.name}, {result.tasks} task(s): round trips")
            counted = max(1, round(_COUNTED * benchmark.share))
            for _ in range(2):  # the first time, statements are prepared
                wired.operations = counted
                operation = await benchmark.contenders[OURS].prepare(wired, result.tasks)
                before = wire.round_trips
                await asyncio.gather(*(_lane(operation, lane, counted) for lane in range(result.tasks)))
                result.round_trips = (wire.round_trips - before) / (counted * result.tasks)


async def _lane(operation: Any, lane: int, operations: int) -> None:
    for index in range(operations):
        await operation(lane, index)


def quantile(values: Sequence[float], part: float) -> float:
    """Returns the smallest value that `part` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, math.ceil(len(values) * part) - 1)]
