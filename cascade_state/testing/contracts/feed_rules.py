"""The rules of the machine that have to do with the feed: consumers, their batches, and what is forgotten.

What two honest stores may do differently is left out. Between the flows of a partition the feed may have any order, so
batches are compared flow by flow, and end in the middle only where one flow has all the events. A store may hand out an
event a little later than it was committed; the machine waits until both show the same number.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from cascade_state.ids import partition_of
from cascade_state.model.events import FlowEvent
from cascade_state.model.feeds import FeedBatch
from cascade_state.testing.contracts.base import PATIENCE
from cascade_state.testing.contracts.side_by_side import Operation, Pair, SideBySide, Target

__all__ = ["FeedRules"]

_CONSUMERS = st.sampled_from(["invoices", "mails"])
_STARTS = st.sampled_from(["beginning", "beginning", "now"])
_NUMBERS = st.integers(0, 30)
_ALL = 1_000  # more events than an example ever has
_AGES = st.sampled_from([timedelta(hours=-1), timedelta(days=365)])  # of the future: everything is old
_POLL_SECONDS = 0.01


class FeedRules(SideBySide):
    """Consumers of the feed on both stores."""

    def __init__(self) -> None:
        self.batches: list[Pair[FeedBatch]] = []  # that were read, the stale ones, too
        super().__init__()

    @rule(
        consumer=_CONSUMERS,
        what=st.sampled_from(["register", "register", "register", "reset", "remove", "pause", "resume"]),
        start=_STARTS,
    )
    def change_consumer(self, consumer: str, what: str, start: Any) -> None:
        starts = {"start": start} if what in ("register", "reset") else {}
        self.both(lambda on, side: getattr(on.feeds, what)(consumer, **starts))

    @precondition(lambda self: self.flows)
    @rule(consumer=_CONSUMERS, number=_NUMBERS, limit=st.sampled_from([1, 2, _ALL]), completes=st.booleans())
    def read_batch(self, consumer: str, number: int, limit: int, completes: bool) -> None:
        """Reads what comes next in the partition of a flow, and may complete it at once."""
        partition_id, whole = self._partition(number), self._read(consumer, number, _ALL)
        if whole is not None and limit != _ALL and len({event.flow_instance_id for event in whole[0].events}) == 1:
            whole = self._read(consumer, number, limit)
        if whole is None:
            return
        assert {batch.partition_id for batch in whole} == {partition_id}
        self.batches.append(whole)
        if completes:
            self._complete(whole)

    @precondition(lambda self: self.batches)
    @rule(number=_NUMBERS)
    def complete_batch(self, number: int) -> None:
        """Moves a checkpoint, or tries to: the batch may be any that was ever read, number 0 being the latest."""
        self._complete(self.batches[-1 - number % len(self.batches)])

    @precondition(lambda self: self.flows)
    @rule(consumer=_CONSUMERS, number=_NUMBERS)
    def fail_batch(self, consumer: str, number: int) -> None:
        partition_id = self._partition(number)
        self.both(lambda on, side: on.feeds.retry(consumer, partition_id, error="late"))

    @rule(age=_AGES, force=st.booleans())
    def purge_events(self, age: timedelta, force: bool) -> None:
        before = self.clock.now() - age
        self.settle()

        async def purge(on: Target, side: int) -> int:
            total = 0
            while purged := await on.feeds.purge_events(before, limit=_ALL, force=force):
                total += purged
            return total

        self.both(purge)

    @rule(outside=st.booleans())
    def look_at_feeds(self, outside: bool) -> None:
        self.settle()
        for look in self.feed_looks():
            self.both(look, outside=outside)

    def feed_looks(self) -> list[Operation[Any]]:
        """Returns what shows all that the stores know of the feed; settle first."""
        every = range(self.stores[0].options.partition_count)
        looks: list[Operation[Any]] = [
            _whole_feed,
            lambda on, side: on.feeds.list_consumers(),
            lambda on, side: on.feeds.list_failing(),
        ]
        for consumer in ("invoices", "mails"):
            looks.append(lambda on, side, name=consumer: _lag(on, name))  # type: ignore[misc]
            looks.append(lambda on, side, name=consumer: _news(on, name, every))  # type: ignore[misc]
        return looks

    def settle(self) -> None:
        """Waits until both stores hand out as much: of one, older transactions elsewhere may have to end first."""
        deadline = time.monotonic() + PATIENCE
        while len({self.run(_shown(store)) for store in self.stores}) > 1:
            assert time.monotonic() < deadline, "the stores do not hand out the same number of events"
            time.sleep(_POLL_SECONDS)

    def _partition(self, number: int) -> int:
        return partition_of(self.flow_id(number), self.stores[0].options.partition_count)

    def _read(self, consumer: str, number: int, limit: int) -> Pair[FeedBatch] | None:
        partition_id = self._partition(number)
        self.settle()
        found: list[FeedBatch | None] = [None, None]

        async def read(on: Target, side: int) -> Any:
            batch = found[side] = await on.feeds.read_batch(consumer, partition_id, limit=limit)
            return None if batch is None else (batch.consumer, batch.attempts, _flow_by_flow(batch.events))

        self.both(read)
        one, another = found
        return None if one is None or another is None else (one, another)

    def _complete(self, batches: Pair[FeedBatch]) -> None:
        self.both(lambda on, side: on.feeds.complete(batches[side]))


def _flow_by_flow(events: Sequence[FlowEvent]) -> list[FlowEvent]:
    """Returns the events by flow, each flow's in the order in which they came: a sort is stable."""
    return sorted(events, key=lambda event: event.flow_instance_id)


async def _whole_feed(on: Target, side: int) -> list[FlowEvent]:
    return _flow_by_flow(await on.events.read(limit=_ALL))


async def _news(on: Target, consumer: str, partitions: range) -> tuple[tuple[int, ...], bool]:
    """What must wait is a store's own affair: a unit of work's own events do, in a store where anything does."""
    news = await on.feeds.find_news(consumer, partitions)
    return news.ready, news.is_paused


async def _lag(on: Target, consumer: str) -> tuple[int, bool]:
    """Which events come next, and so their times, is a store's own affair where flows share a transaction."""
    lag = await on.feeds.lag(consumer)
    return lag.events, lag.oldest_recorded_at is None


async def _shown(on: Target) -> int:
    return len(await on.events.read(limit=_ALL))
