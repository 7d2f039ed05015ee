"""The tables that the third part of `make bench` prints, and that the documentation shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.coordination.hand_overs import CLAIMS, WAKE_UPS
from benchmarks.registry import BARE, OURS

__all__ = [
    "as_markdown",
    "claims_table",
    "lateness_table",
    "machine_line",
    "moves_table",
    "take_over_bound",
    "take_over_table",
    "wake_up_ways",
    "wake_ups_table",
]

_WAYS = {OURS: "hints"}


def as_markdown(document: Mapping[str, Any]) -> str:
    """Returns all tables."""
    tables = (lateness_table, claims_table, wake_ups_table, take_over_table, moves_table)
    return "\n\n".join(["\n".join(table(document)) for table in tables] + [machine_line(document)])


def lateness_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of late timers."""
    late = document["lateness"]
    yield "| timers due a second | pending | worker processes | lateness p50 ms | p99 ms |"
    yield "|---|---|---|---|---|"
    yield (
        f"| {late['a_second']:,} for {late['seconds']} s | {late['pending']:,} | {late['workers']} "
        f"| {late['p50_ms']:.1f} | {late['p99_ms']:.1f} |"
    )


def claims_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of claims by the size of their batch."""
    yield "| claimed and completed at once | timers a second | × bare asyncpg | client µs a timer | server µs a timer |"
    yield "|---|---|---|---|---|"
    for result in document["hand_overs"]:
        if result["name"].startswith(CLAIMS):
            ours = result["contenders"][OURS]
            yield (
                f"| {result['name'].rpartition('(')[2].rstrip(')')} | {ours['per_second']:,.0f} "
                f"| {result['ratios'][BARE]:.2f} | {ours['client_us']:.0f} | {ours['server_us']:.0f} |"
            )


def wake_ups_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of ways from a commit to its handler."""
    yield "| from the commit to the handler of | way | p50 ms | p99 ms |"
    yield "|---|---|---|---|"
    for what, ways in wake_up_ways(document).items():
        for way, figures in ways.items():
            yield f"| {what} | {way} | {figures['p50_ms']:.2f} | {figures['p99_ms']:.2f} |"


def wake_up_ways(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the figures of each way to learn of a commit, for each kind of item that was measured."""
    return {
        result["name"].removeprefix(f"{WAKE_UPS} of ").replace(WAKE_UPS, "a delivery"): {
            _WAYS.get(way, way): figures for way, figures in result["contenders"].items()
        }
        for result in document["hand_overs"]
        if result["name"].startswith(WAKE_UPS)
    }


def take_over_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of rounds in which a worker was killed."""
    yield f"| take-over after kill -9 of one of three (at most {take_over_bound(document):.1f} s) | s |"
    yield "|---|---|"
    for number, seconds in enumerate(document["take_over"]["seconds"], start=1):
        yield f"| {number} | {seconds:.2f} |"


def take_over_bound(document: Mapping[str, Any]) -> float:
    """Returns the seconds that the design gives a take-over."""
    take_over = document["take_over"]
    return float(take_over["stale_after"] + take_over["heartbeat_interval"])


def moves_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of partitions that changed their owner."""
    yield "| worker | partitions that changed their owner | minimum |"
    yield "|---|---|---|"
    for row in document["moves"]:
        yield f"| {row['what']} | {row['moved']} | {row['minimum']} |"


def machine_line(document: Mapping[str, Any]) -> str:
    """Returns what the figures depend on."""
    return "Measured on: " + ", ".join(f"{name} {value}" for name, value in document["machine"].items()) + "."
