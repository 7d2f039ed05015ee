"""The scenarios of `make bench` run, on a small scale; a move more than needed is a defect at any scale."""

from __future__ import annotations

import pytest

from benchmarks.contenders import ORM
from benchmarks.coordination.hand_overs import hand_overs
from benchmarks.coordination.lateness import measure_lateness
from benchmarks.coordination.report import as_markdown
from benchmarks.coordination.sets import measure_moves

pytestmark = pytest.mark.postgres

_HAND_OVERS = [
    {
        "name": "claim and complete (100)",
        "ratios": {"bare asyncpg": 0.75},
        "contenders": {"store": {"per_second": 4000.0, "client_us": 30.0, "server_us": 22.0}},
    },
    {
        "name": "commit to handler",
        "contenders": {"store": {"p50_ms": 1.5, "p99_ms": 3.0}, "polling": {"p50_ms": 50.0, "p99_ms": 99.0}},
    },
    {"name": "commit to handler of a timer", "contenders": {"store": {"p50_ms": 1.25, "p99_ms": 2.0}}},
]


def test_claims_of_every_batch_and_the_ways_to_a_handler_are_measured_without_the_orm() -> None:
    chosen = hand_overs()
    assert sorted(one.name for one in chosen) == [
        "claim and complete (1)",
        "claim and complete (10)",
        "claim and complete (100)",
        "claim and complete (500)",
        "commit to handler",
        "commit to handler of a timer",
        "commit to handler of an event of the feed",
    ]
    assert all(ORM not in one.contenders and len(one.contenders) > 1 for one in chosen)


async def test_no_partition_moves_without_need(database_url: str) -> None:
    moves = await measure_moves(database_url, 3)
    assert [(what, moved) for what, moved, _ in moves] == [
        ("1 join", 256),
        ("2 join", 128),
        ("3 join", 85),
        ("3 leave", 85),
        ("2 leave", 128),
    ]
    assert all(moved == minimum for _, moved, minimum in moves)


async def test_lateness_is_measured_and_told(database_url: str) -> None:
    late = await measure_lateness(database_url, pending=400, a_second=50, seconds=1, workers=1)
    assert len(late) == 50
    assert min(late) >= 0  # none early
    figures = {"a_second": 50, "seconds": 1, "pending": 400, "workers": 1, "p50_ms": 1.0, "p99_ms": 2.0}
    take_over = {"heartbeat_interval": 0.5, "stale_after": 2.0, "seconds": [2.25]}
    moves = [{"what": "1 join", "moved": 256, "minimum": 256}]
    document = {"lateness": figures, "take_over": take_over, "moves": moves, "hand_overs": _HAND_OVERS}
    table = as_markdown({**document, "machine": {"cores": 2}})
    assert "| 50 for 1 s | 400 | 1 | 1.0 | 2.0 |" in table
    assert "| take-over after kill -9 of one of three (at most 2.5 s) | s |" in table
    assert "| 1 join | 256 | 256 |" in table
    assert "| 100 | 4,000 | 0.75 | 30 | 22 |" in table
    assert "| a delivery | hints | 1.50 | 3.00 |" in table
    assert "| a delivery | polling | 50.00 | 99.00 |" in table
    assert "| a timer | hints | 1.25 | 2.00 |" in table
