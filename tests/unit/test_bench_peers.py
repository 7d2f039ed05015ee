"""The comparison with other libraries, as far as it can be tested without them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.peers.__main__ import _CONTESTS
from benchmarks.peers.child import workloads_of
from benchmarks.peers.report import Entry, as_document, as_markdown
from benchmarks.peers.workloads import Run, Timing, lanes


@pytest.mark.parametrize("workload", sorted({workload for workload, _ in _CONTESTS}))
def test_everybody_who_takes_part_says_what_happens_for_one_item(workload: str) -> None:
    for (contest, _), contenders in _CONTESTS.items():
        if contest == workload:
            for contender in contenders:
                assert workloads_of(contender)[workload].does


def _entry(contender: str, *seconds: float, **options: Any) -> Entry:
    timings = [Timing(items=100, seconds=one, insert_seconds=0.5) for one in seconds]
    return Entry(workload="due", tasks=1, contender=contender, count=100, timings=timings, **options)


def test_the_table_compares_medians_and_names_who_is_missing() -> None:
    entries = [
        _entry("asyncpg", 1.0, 1.0, 1.0),
        _entry("cascade_state", 2.0, 4.0, 1.0, does="claims"),
        _entry("pgqueuer", 10.0, does="fetches"),
        _entry("dbos", failure="is not installed (no module)"),
    ]
    table = as_markdown(as_document(entries, {"cores": 2}))
    assert "cores: 2" in table
    assert "| 50 (25, 100) | 0.50 × | 1.00 × | 200 | claims |" in table
    assert "| 10 (10, 10) | 0.10 × | 5.00 × | 200 | fetches |" in table
    assert "is not installed (no module)" in table


async def test_a_lane_does_its_share_after_it_was_warmed_up() -> None:
    calls: list[tuple[int, int]] = []

    async def operation(lane: int, number: int) -> None:
        calls.append((lane, number))

    timing = await lanes(Run(url="", tasks=2, count=40), operation)
    assert timing.items == 40
    assert calls.count((1, 5)) == 1
    assert len(calls) == 40 + 2 * 2
