"""Every benchmark runs, on a small scale; what its figures are is not asserted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.bench import opened_bench
from benchmarks.bloat import measure_bloat
from benchmarks.contenders import ORM
from benchmarks.effort import Effort
from benchmarks.growth import GrowthResult, registered_growth
from benchmarks.loading import load
from benchmarks.measuring import measure
from benchmarks.registry import OURS, registered
from benchmarks.report import as_document, as_markdown

pytestmark = pytest.mark.postgres

_EFFORT = Effort(operations=3, rounds=1, tasks=(2,), sizes=(1000,), cycles=300, warm_up_rounds=0)


@pytest.mark.parametrize("group", sorted({one.group for one in registered()}))
async def test_every_benchmark_and_its_contenders_run(database_url: str, group: str) -> None:
    # Not the ORM's: the suite's lint looks at every statement, and theirs need not keep our rules.
    chosen = [
        replace(one, tasks=(2,), contenders={name: way for name, way in one.contenders.items() if name != ORM})
        for one in registered()
        if one.group == group
    ]
    shown: list[str] = []
    async with opened_bench(database_url, None, 2) as bench:
        results = await measure(bench, chosen, 2, _EFFORT, shown.append)
    assert [result.name for result in results] == [one.name for one in chosen]
    for benchmark, result in zip(chosen, results, strict=True):
        assert set(result.figures) == set(benchmark.contenders)
        assert all(figures.rate > 0 and figures.latencies for figures in result.figures.values())
        assert (result.round_trips is None) != benchmark.counts_round_trips
    assert any("round trips" in text for text in shown) == any(one.counts_round_trips for one in chosen)
    document = as_document(results, [], None, {"processor": "any"})
    table = as_markdown(document)
    assert all(
        result["contenders"][OURS]["p50_ms"] <= result["contenders"][OURS]["p99_ms"] for result in document["results"]
    )
    assert all(f"| {one.name} | 2 |" in table for one in chosen)


async def test_growth_and_bloat_run_on_a_loaded_store(database_url: str) -> None:
    async with opened_bench(database_url, None, 1) as bench:
        (size,) = _EFFORT.sizes
        await load(bench.bare.connections[0], size)
        bench.loaded_flows = size
        bench.operations = 2
        results = []
        assert registered()  # imports the modules
        for one in registered_growth():
            operation = await one.prepare(bench, 1)
            for index in range(bench.operations):
                await operation(0, index)
            results.append(GrowthResult(one.name, one.grows, {size: [0.001], 10 * size: [0.002]}))
        shown: list[str] = []
        bloat = await measure_bloat(bench, _EFFORT.cycles, shown.append)
    assert bloat["cycles"] >= _EFFORT.cycles
    assert 0 < bloat["before"]["table"] <= bloat["after"]["table"]
    table = as_markdown(as_document([], results, bloat, {}))
    assert "| get | 1.00 | 2.00 | 2.00 |" in table
    assert "timers scheduled, claimed and completed" in table
