"""The tables that the second part of `make bench` prints, and that the documentation shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.databases.copies import BARE, DEFAULT

__all__ = ["as_markdown", "copies_table", "hand_out_table", "machine_line", "starts_table", "suites_table"]


def as_markdown(document: Mapping[str, Any]) -> str:
    """Returns all tables."""
    parts = (suites_table(document), hand_out_table(document), copies_table(document), starts_table(document))
    return "\n\n".join(["\n".join(part) for part in parts] + [machine_line(document)])


def suites_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of ways to isolate."""
    yield "| each test gets | ms a test | ms a test that works for 30 ms besides | processor ms a test |"
    yield "|---|---|---|---|"
    for name, costs in document["suites"].items():
        processor = f"{costs['processor']:.1f}" if "processor" in costs else "–"
        yield f"| {name} | {costs['0']:.1f} | {costs['30']:.1f} | {processor} |"
    for name, reason in document["missing"].items():
        yield f"| {name} | {reason} | | |"


def hand_out_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of hand-outs from a warm pool."""
    yield "| hand-out from a warm pool, databases | p50 ms | p95 ms | max ms |"
    yield "|---|---|---|---|"
    for name, figures in document["hand_out"].items():
        yield f"| {name} | {figures['p50']:.2f} | {figures['p95']:.2f} | {figures['max']:.2f} |"


def copies_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of copies."""
    copies = document["copies"]
    yield "| one copy | p50 ms | p95 ms | × copying files | × as it stands |"
    yield "|---|---|---|---|---|"
    for name, figures in copies.items():
        to_bare, to_default = (figures["p50"] / copies[floor]["p50"] for floor in (BARE, DEFAULT))
        yield f"| {name} | {figures['p50']:.1f} | {figures['p95']:.1f} | {to_bare:.2f} | {to_default:.2f} |"


def starts_table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of session starts."""
    yield "| session start, until the first database is leased | p50 ms | max ms |"
    yield "|---|---|---|"
    for name, figures in document["session_starts"].items():
        yield f"| {name} | {figures['p50']:.0f} | {figures['max']:.0f} |"


def machine_line(document: Mapping[str, Any]) -> str:
    """Returns what the figures depend on."""
    return "Measured on: " + ", ".join(f"{name} {value}" for name, value in document["machine"].items()) + "."
