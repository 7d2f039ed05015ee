"""Figures of a store, as `store.statistics()` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cascade_state.model.flow_status import FlowStatus

__all__ = ["Statistics"]


class _Counts(dict[FlowStatus, int]):
    """How many by status; 0 where there are none."""

    def __missing__(self, status: FlowStatus) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a store holds, read from indexes at one instant.

    `instances_by_status` lists the statuses that flows have, and gives 0 for the others.
    `timers_pending` counts timers that are pending or claimed; `timers_overdue` those of them that are due
    and held by nobody, and `oldest_overdue_at` is the due time of the earliest such timer.
    `deliveries_pending` counts deliveries that are not acknowledged. `workers_alive` counts workers of all replica sets
    that are not silent for longer than they may be. `consumer_lags` tells how many events each
    consumer of the feed has before it, counting no further than 1,000 in a partition (`feeds.lag` counts all), and
    `consumer_failures` in how many partitions one cannot go on, because its handler fails again and again there.
    `estimated` names the figures that were estimated because counting them would take long: "timers_pending", and for a
    status "instances_by_status.COMPLETED".
    """

    instances_by_status: Mapping[FlowStatus, int] = field(default_factory=dict)
    timers_pending: int = 0
    timers_overdue: int = 0
    oldest_overdue_at: datetime | None = None
    timers_dead: int = 0
    deliveries_pending: int = 0
    dead_letters: int = 0
    consumer_lags: Mapping[str, int] = field(default_factory=dict)
    consumer_failures: Mapping[str, int] = field(default_factory=dict)
    workers_alive: int = 0
    estimated: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "instances_by_status", _Counts(self.instances_by_status))
