"""Figures of a store on PostgreSQL.

Each figure is counted as far as `COUNTED`; beyond that it is estimated from what the server learned when it last
analysed the table, if that agrees that there are more. Where it does not (a table that was never analysed, or one that
is spread over several servers), everything is counted after all.
"""

from __future__ import annotations

import json
from typing import Any

from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.statistics import Statistics
from cascade_state.postgres.direct import Record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements.statistics import COUNT_ALL, COUNT_SOME

__all__ = ["COUNTED", "read_statistics"]

# Entries of an index that are counted for each figure: a few milliseconds for all figures together, and no store that a
# person looks through has more.
COUNTED = 10_000

# What is counted along an index that has nothing else in it: the server knows how many entries that has.
_INDEXES = {
    "timers_pending": "ix_timers_due",
    "timers_dead": "ix_timers_dead",
    "deliveries_pending": "ix_correlations_available",
    "dead_letters": "ix_early_events_dead",
}


async def read_statistics(executor: Executor, *, exact: bool) -> Statistics:
    """Returns the figures of one instant, in one statement; in a second one if the server cannot estimate."""
    if not exact:
        record = (await executor.fetch(COUNT_SOME, _values(executor)))[0]
        figures = _Figures(record)
        if not figures.unknown:
            return _statistics(record, figures.by_status, figures.counts, frozenset(figures.estimated))
    record = (await executor.fetch(COUNT_ALL, {"now": executor.now()}))[0]
    counts = {name: record[name] for name in (*_INDEXES, "timers_overdue")}
    return _statistics(record, _loaded(record["instances_by_status"]), counts, frozenset())


def _values(executor: Executor) -> dict[str, Any]:
    return {
        "now": executor.now(),
        "most": COUNTED + 1,
        "schema": executor.statements.schema,
        "statuses": f"{{{','.join(FlowStatus)}}}",
        "sized": f"{{{','.join(('flow_instances', *_INDEXES.values()))}}}",
    }


class _Figures:
    """The figures of a record of `COUNT_SOME`; which of them are estimated, and which the server does not know."""

    def __init__(self, record: Record) -> None:
        self.estimated: set[str] = set()
        self.unknown: set[str] = set()
        entries, frequencies = _loaded(record["entries"]), _loaded(record["frequencies"])
        self.by_status = {
            status: self._figure(
                f"instances_by_status.{status}", counted, entries.get("flow_instances", 0) * frequencies.get(status, 0)
            )
            for status, counted in _loaded(record["instances_by_status"]).items()
            if counted
        }
        self.counts = {
            name: self._figure(name, record[name], entries.get(index, 0)) for name, index in _INDEXES.items()
        }
        self.counts["timers_overdue"] = self._overdue(record)

    def _figure(self, name: str, counted: int, estimate: float) -> int:
        if counted <= COUNTED:
            return counted
        (self.estimated if estimate > COUNTED else self.unknown).add(name)
        return round(estimate)

    def _overdue(self, record: Record) -> int:
        """Of all that is due, the part that was free among the first of them; the oldest must be one of these."""
        seen, free = record["timers_due"], record["timers_overdue"]
        if seen <= COUNTED:
            return int(free)
        due = self._figure("timers_overdue", seen, self.counts["timers_pending"] * _due_part(record))
        if not free:
            self.unknown.add("timers_overdue")
        return round(due * int(free) / int(seen))


def _due_part(record: Record) -> float:
    """Returns which part of the timers is due: of the most common instants, and of the spread of the others."""
    if record["due_in_histogram"] is None:
        return float(record["common_due"] or 0)
    others = 1 - float(record["common_due_times"] or 0)
    return float(record["common_due"] or 0) + others * float(record["due_in_histogram"])


def _statistics(
    record: Record, by_status: dict[str, int], counts: dict[str, int], estimated: frozenset[str]
) -> Statistics:
    return Statistics(
        instances_by_status={FlowStatus(status): total for status, total in by_status.items()},
        oldest_overdue_at=record["oldest_overdue_at"],
        workers_alive=record["workers_alive"],
        consumer_lags=_loaded(record["consumer_lags"]),
        consumer_failures=_loaded(record["consumer_failures"]),
        estimated=estimated,
        **counts,
    )


def _loaded(text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text or "{}")
    return found
