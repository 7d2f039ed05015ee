"""The rules of the machine that have to do with leases: what is claimed, held, lost and given back."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from cascade_state.ids import partition_of
from cascade_state.testing.contracts.side_by_side import Operation, SideBySide, Target

__all__ = ["LeaseRules"]

_LEASE = timedelta(seconds=30)

_NUMBERS = st.integers(0, 30)
_HOLDERS = st.sampled_from(["worker-1", "worker-2"])
_REPOSITORIES = st.sampled_from(["timers", "correlations", "flow_instances"])
_SECONDS = st.sampled_from([0, 1, 30, 31, 3600]).map(lambda seconds: timedelta(seconds=seconds))
_LIMITS = st.sampled_from([1, 2, 100])
_CLAIMS = {"timers": "claim_due", "correlations": "claim_delivered", "flow_instances": "claim"}


class LeaseRules(SideBySide):
    """Claims on both stores, and what the holders do with what they hold."""

    @rule(repository=_REPOSITORIES, holder=_HOLDERS, limit=_LIMITS)
    def claim(self, repository: str, holder: str, limit: int) -> None:
        self._claim(repository, holder, limit)

    @precondition(lambda self: self.flows)
    @rule(
        repository=_REPOSITORIES,
        holder=_HOLDERS,
        limit=_LIMITS,
        numbers=st.lists(_NUMBERS, min_size=1, max_size=3),
        orphans=st.booleans(),
    )
    def claim_here(self, repository: str, holder: str, limit: int, numbers: list[int], orphans: bool) -> None:
        """Claims in the partitions of some flows. Which comes first where there are more is a store's own affair."""
        partitions = {partition_of(self.flow_id(number), self.stores[0].options.partition_count) for number in numbers}
        options = {"orphans": orphans} if repository == "flow_instances" else {}
        is_ordered = len(partitions) == 1 and (limit == 1 or not options)
        self._claim(repository, holder, limit if is_ordered else 100, partitions=partitions, **options)

    def _claim(self, repository: str, holder: str, limit: int, **options: Any) -> None:
        method = _CLAIMS[repository]
        claimed = self.both(
            lambda on, side: getattr(getattr(on, repository), method)(
                holder, limit=limit, lease_duration=_LEASE, **options
            )
        )
        self.remember_held(repository, claimed)
        if claimed is not None and repository == "flow_instances":
            for pair in zip(*claimed, strict=True):
                self.remember(pair)

    @precondition(lambda self: any(self.held.values()))
    @rule(
        repository=_REPOSITORIES,
        what=st.sampled_from(["renew", "release", "complete"]),
        numbers=st.lists(_NUMBERS, min_size=1, max_size=3),
    )
    def use_leases(self, repository: str, what: str, numbers: list[int]) -> None:
        items = self.some_held(repository, numbers)
        if what == "complete" and repository == "flow_instances":
            return
        options = [_LEASE] if what == "renew" else []
        renewed = self.both(
            lambda on, side: getattr(getattr(on, repository), what)([item[side] for item in items], *options)
        )
        if what == "renew":
            self.remember_held(repository, renewed)

    @precondition(lambda self: self.held["timers"] or self.held["correlations"])
    @rule(
        repository=st.sampled_from(["timers", "correlations"]), gives_up=st.booleans(), number=_NUMBERS, after=_SECONDS
    )
    def fail_work(self, repository: str, gives_up: bool, number: int, after: timedelta) -> None:
        method, options = (
            ("give_up", {"reason": "enough"}) if gives_up else ("retry", {"after": after, "error": "late"})
        )
        for item in self.some_held(repository, [number % 2]):
            self.both(lambda on, side: getattr(getattr(on, repository), method)(item[side], **options))  # noqa: B023 - called at once

    def lease_looks(self) -> list[Operation[Any]]:
        """Returns what shows when the next thing can be claimed."""
        partitions = {partition_of(flow, self.stores[0].options.partition_count) for flow in list(self.flows)[:2]}
        methods = (("timers", "next_due_at"), ("correlations", "next_delivery_at"))
        return [self._next(*names, chosen) for names in methods for chosen in (None, partitions)]

    def _next(self, repository: str, method: str, chosen: set[int] | None) -> Operation[datetime | None]:
        async def look(on: Target, side: int) -> datetime | None:
            found: datetime | None = await getattr(getattr(on, repository), method)(partitions=chosen)
            return None if found is None else max(found, self.clock.now())  # what is due is due, since whenever

        return look
