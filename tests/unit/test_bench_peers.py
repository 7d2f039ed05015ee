"""The comparison with other libraries, as far as it can be tested without them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.peers.child import workloads_of
from benchmarks.peers.contests import CONTESTS, NOT_MADE_FOR, TITLES
from benchmarks.peers.report import Entry, as_document, as_markdown
from benchmarks.peers.running import Work, work_of_an_item
from benchmarks.peers.workloads import Run, Timing, WakeUps, lanes

_PEERS = {
    "absurd",
    "dbos",
    "eventsourcing",
    "langgraph",
    "oban",
    "pgqueuer",
    "pgtestdbpy",
    "procrastinate",
    "pytest-postgresql",
}


@pytest.mark.parametrize("workload", sorted(TITLES))
def test_everybody_who_takes_part_says_what_happens_for_one_item(workload: str) -> None:
    taking_part = {one for (contest, _), all_of_it in CONTESTS.items() if contest == workload for one in all_of_it}
    assert {"asyncpg", "cascade_state"} < taking_part
    for contender in taking_part:
        ways = workloads_of(contender)[workload]
        assert ways.does
        assert ways.promises


@pytest.mark.parametrize("workload", ["step", "due", "wake-up"])
def test_each_peer_takes_part_or_is_named_with_the_reason(workload: str) -> None:
    taking_part = {one for (contest, _), all_of_it in CONTESTS.items() if contest == workload for one in all_of_it}
    named = {name for name, reason in NOT_MADE_FOR[workload].items() if reason}
    assert (taking_part & _PEERS) | named == _PEERS
    assert not taking_part & named


def _entry(contender: str, *seconds: float, **options: Any) -> Entry:
    timings = [Timing(items=100, seconds=one, insert_seconds=0.5) for one in seconds]
    return Entry(workload="due", tasks=1, contender=contender, count=100, timings=timings, **options)


def test_the_table_compares_medians_and_names_who_is_missing() -> None:
    entries = [
        _entry("asyncpg", 1.0, 1.0, 1.0),
        _entry("cascade_state", 2.0, 4.0, 1.0, does="claims", promises="a lease", work=Work(2.5, 0.04)),
        _entry("pgqueuer", 10.0, does="fetches"),
        _entry("dbos", failure="is not installed (no module)"),
    ]
    table = as_markdown(as_document(entries, {"cores": 2}, {}))
    assert "cores 2" in table
    assert "| 50 (25, 100) | 0.50 | – | 200 |" in table
    assert "| 10 (10, 10) | 0.10 | ahead, 5.0 × | 200 |" in table
    assert "| 100 (100, 100) | 1.00 | **behind**, 0.50 × | 200 |" in table
    assert "| cascade_state | claims | 2.5 | 0.04 | a lease |" in table
    assert "| pgqueuer | fetches | – | – |  |" in table
    assert "| dbos | is not installed (no module) |" in table
    assert "langgraph keeps checkpoints" in table


def test_peers_that_call_a_handler_are_compared_with_our_worker_too() -> None:
    entries = [
        _entry("cascade_state", 1.0),
        _entry("cascade_state/worker", 20.0),
        _entry("pgqueuer", 10.0),
        _entry("oban", failure="not run: needs Python 3.12"),
    ]
    table = as_markdown(as_document(entries, {}, {}))
    assert "| 10 (10, 10) | – | ahead, 10.0 × | **behind**, 0.50 × | 200 |" in table
    assert "| 5 (5, 5) | – | – | – | 200 |" in table
    assert "| not run: needs Python 3.12 | | | | |" in table


def test_latencies_are_compared_by_their_medians() -> None:
    entries = [
        Entry(
            workload="wake-up",
            tasks=1,
            contender=contender,
            count=3,
            timings=[Timing(items=3, seconds=1.0, latencies=latencies) for latencies in rounds],
        )
        for contender, rounds in {
            "cascade_state": [[0.002, 0.001, 0.003]],
            "pgqueuer": [[0.002, 0.002, 0.002], [0.002, 0.002, 0.009]],
            "absurd": [[0.1, 0.1, 0.1]],
        }.items()
    ]
    table = as_markdown(as_document(entries, {}, {}))
    assert "| 2.00 (2.00, 2.00) | 9.00 | – | even, 1.00 × |" in table
    assert "| 100.00 (100.00, 100.00) | 100.00 | – | ahead, 50.0 × |" in table


def test_what_an_item_takes_is_free_of_what_is_done_once() -> None:
    fewer = Timing(items=100, seconds=1.0, warm_up=10), Work(transactions=320.0, rows=600.0)
    more = Timing(items=200, seconds=1.0, warm_up=20), Work(transactions=540.0, rows=985.0)
    assert work_of_an_item(fewer, more) == Work(transactions=2.0, rows=3.5)


async def test_a_wake_up_takes_from_the_publication_to_the_handler() -> None:
    wake_ups = WakeUps()
    seen: list[str] = []

    async def publish(number: int) -> None:
        seen.append(f"publish {number}")
        await asyncio.to_thread(wake_ups.begin)
        await asyncio.to_thread(wake_ups.begin)  # a second attempt of the handler counts for nothing

    async def prepare(number: int) -> None:
        seen.append(f"prepare {number}")

    timing = await wake_ups.measure(2, publish, prepare=prepare, spread_seconds=0.0)
    assert timing.latencies is not None
    assert len(timing.latencies) == timing.items == 2
    assert min(timing.latencies) > 0
    assert seen[-2:] == [f"prepare {timing.warm_up + 1}", f"publish {timing.warm_up + 1}"]


async def test_a_lane_does_its_share_after_it_was_warmed_up() -> None:
    calls: list[tuple[int, int]] = []

    async def operation(lane: int, number: int) -> None:
        calls.append((lane, number))

    timing = await lanes(Run(url="", tasks=2, count=40), operation)
    assert timing.items == 40
    assert calls.count((1, 5)) == 1
    assert len(calls) == 40 + 2 * 2
