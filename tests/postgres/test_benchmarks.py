"""Every benchmark runs, on a small scale; what its figures are is not asserted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.bench import STATES, opened_bench
from benchmarks.bloat import measure_bloat
from benchmarks.contenders import ORM
from benchmarks.effort import Effort
from benchmarks.growth import GrowthResult, registered_growth
from benchmarks.loading import load
from benchmarks.measuring import measure
from benchmarks.registry import OURS, registered
from benchmarks.report import as_document, as_markdown
from cascade_state import FlowStatus

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


async def _shape(connection: Any) -> list[tuple[str, ...]]:
    """The keys, checks and indexes that there are."""
    rows = await connection.fetch(
        "SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND convalidated"
        " UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2, 3"
    )
    return [tuple(row) for row in rows]


async def test_the_store_takes_what_is_loaded_for_its_own(database_url: str) -> None:
    async with opened_bench(database_url, None, 1) as bench:
        store, connection = bench.store, bench.bare.connections[0]
        before = await _shape(connection)
        shown: list[str] = []
        await load(connection, 12, shown.append)
        assert await _shape(connection) == before
        assert any("12 flows and timers, vacuuming" in text for text in shown)
        statistics = await store.statistics(exact=True)
        assert statistics.instances_by_status == {FlowStatus.RUNNING: 3, FlowStatus.COMPLETED: 9}
        assert (statistics.timers_pending, statistics.timers_overdue) == (12, 0)
        for number in range(1, 13):
            flow = await store.flow_instances.find_by_business_key("bench", f"order-{number}")
            assert flow is not None
            assert flow == await store.flow_instances.get(flow.flow_instance_id)
            ended = number % 4 != 0
            assert (set(flow.step_results), flow.completed_at is not None) == ({"s0"}, ended)
            assert (await store.component_states.get(flow.flow_instance_id, "s0")).state == {"attempts": 1}
            assert len(await store.flow_instances.history(flow.flow_instance_id)) == 1
            timers = await store.timers.list_for_instance(flow.flow_instance_id)
            assert len(timers) == (0 if ended else 4)
            if not ended:
                await store.advance(flow.complete_step("s1").complete(), put_states=STATES)
        assert (await store.statistics(exact=True)).timers_pending == 0


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
