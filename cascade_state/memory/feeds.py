"""Feed consumers in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice

from cascade_state.abc.feeds import Feeds
from cascade_state.abc.guards import Guard
from cascade_state.errors import SerializationError
from cascade_state.memory.decoding import decode_feed_position, encode_feed_position, event_of
from cascade_state.memory.events import feed_rows
from cascade_state.memory.rows import FeedCheckpointKey, FeedCheckpointRow, FeedConsumerRow, HistoryRow
from cascade_state.memory.runners import Runner
from cascade_state.memory.transaction import View
from cascade_state.model.advance import Limits
from cascade_state.model.documents import load
from cascade_state.model.events import FlowEvent
from cascade_state.model.feeds import (
    COUNTED_LAG,
    FEED_CONSUMER,
    FeedBatch,
    FeedFailure,
    FeedLag,
    FeedNews,
    FeedStart,
    RegisteredConsumer,
)

__all__ = ["MemoryFeeds", "failures", "is_unhandled", "lags"]


class MemoryFeeds(Feeds):
    """See `Feeds`. Commits are one after the other here, so what is committed is settled."""

    def __init__(self, runner: Runner, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._runner = runner

    async def _register(self, consumer: str, start: FeedStart) -> RegisteredConsumer:
        return await self._runner.run(_register, consumer, start)

    async def _find(self, consumer: str) -> RegisteredConsumer | None:
        return await self._runner.run(_find, consumer)

    async def _list_consumers(self, limit: int, after: str | None) -> list[RegisteredConsumer]:
        return await self._runner.run(_list_consumers, limit, after)

    async def _pause(self, consumer: str) -> bool | None:
        return await self._runner.run(_set_paused, consumer, True)

    async def _resume(self, consumer: str) -> bool | None:
        return await self._runner.run(_set_paused, consumer, False)

    async def _reset(self, consumer: str, start: FeedStart) -> bool:
        return await self._runner.run(_reset, consumer, start)

    async def _remove(self, consumer: str) -> bool | None:
        return await self._runner.run(_remove, consumer)

    async def _lag(self, consumer: str) -> FeedLag | None:
        return await self._runner.run(_lag, consumer)

    async def _find_news(self, consumer: str, partitions: list[int]) -> FeedNews | None:
        return await self._runner.run(_find_news, consumer, partitions)

    async def _read_batch(
        self, consumer: str, partition_id: int, limit: int, idle_timeout: timedelta | None
    ) -> FeedBatch | None:
        return await self._runner.run(_read_batch, consumer, partition_id, limit)

    async def _complete(self, batch: FeedBatch) -> bool:
        after = decode_feed_position(batch.after), decode_feed_position(batch.position)
        return await self._runner.run(_complete, (batch.consumer, batch.partition_id), *after)

    async def _retry(self, consumer: str, partition_id: int, error: str) -> int | None:
        return await self._runner.run(_retry, (consumer, partition_id), error)

    async def _list_failing(self, consumer: str | None, limit: int, after: tuple[str, int] | None) -> list[FeedFailure]:
        return await self._runner.run(_list_failing, consumer, limit, after)

    async def _purge_events(self, before: datetime, limit: int, force: bool) -> int:
        return await self._runner.run(_purge_events, before, limit, force)


# Consumers


def _register(view: View, consumer: str, start: FeedStart) -> RegisteredConsumer:
    if view.feed_consumers.get(consumer) is None:
        view.lock("feed_consumers", consumer)
    if view.feed_consumers.get(consumer) is None:
        _start(view, consumer, start, paused_at=None)
    return _registered(consumer, view.feed_consumers.get(consumer))


def _start(view: View, consumer: str, start: FeedStart, *, paused_at: datetime | None) -> None:
    now = view.now()
    view.feed_consumers.put(consumer, FeedConsumerRow(consumer, start, now, paused_at))
    position = 0 if start == "beginning" else view.last_feed_position
    for partition_id in range(view.partition_count):
        view.lock("feed_checkpoints", (consumer, partition_id))
        view.feed_checkpoints.put((consumer, partition_id), FeedCheckpointRow(position, now))


def _find(view: View, consumer: str) -> RegisteredConsumer | None:
    row = view.feed_consumers.get(consumer)
    return None if row is None else _registered(consumer, row)


def _registered(consumer: str, row: FeedConsumerRow | None) -> RegisteredConsumer:
    assert row is not None  # noqa: S101 - the caller found or made it
    return RegisteredConsumer(consumer=consumer, start=row.start, started_at=row.started_at, paused_at=row.paused_at)


def _list_consumers(view: View, limit: int, after: str | None) -> list[RegisteredConsumer]:
    # Behind the entry of this name: a longer tuple that begins alike follows it.
    rows = view.feed_consumers.select("all", after=None if after is None else (after,))
    return [_registered(row.consumer, row) for row in islice(rows, limit)]


def _set_paused(view: View, consumer: str, is_paused: bool) -> bool | None:
    if view.feed_consumers.get(consumer) is None:
        return None
    view.lock("feed_consumers", consumer)
    row = view.feed_consumers.get(consumer)
    if row is None:
        return None
    paused_at = (row.paused_at or view.now()) if is_paused else None
    view.feed_consumers.put(consumer, row._replace(paused_at=paused_at))
    return row.paused_at is not None


def _reset(view: View, consumer: str, start: FeedStart) -> bool:
    view.lock("feed_consumers", consumer)
    if _is_running(view, consumer):
        return False
    row = view.feed_consumers.get(consumer)
    _start(view, consumer, start, paused_at=None if row is None else row.paused_at)
    return True


def _remove(view: View, consumer: str) -> bool | None:
    view.lock("feed_consumers", consumer)
    if view.feed_consumers.get(consumer) is None:
        return False
    if _is_running(view, consumer):
        return None
    view.feed_consumers.remove(consumer)
    for partition_id in range(view.partition_count):
        view.lock("feed_checkpoints", (consumer, partition_id))
        view.feed_checkpoints.remove((consumer, partition_id))
    return True


def _is_running(view: View, consumer: str) -> bool:
    now = view.now()
    return any(
        load(row.metadata).get(FEED_CONSUMER) == consumer and row.heartbeat_at + row.stale_after > now
        for row in view.workers.select("all")
    )


# Working


def _behind(view: View, consumer: str, partition_id: int) -> Iterator[HistoryRow]:
    checkpoint = view.feed_checkpoints.get((consumer, partition_id))
    if checkpoint is None:
        return iter(())
    return feed_rows(view, partition_id, checkpoint.position)


def _find_news(view: View, consumer: str, partitions: list[int]) -> FeedNews | None:
    row = view.feed_consumers.get(consumer)
    if row is None:
        return None
    if row.paused_at is not None:
        return FeedNews(is_paused=True)
    ready = [number for number in partitions if next(_behind(view, consumer, number), None) is not None]
    return FeedNews(ready=tuple(ready))


def _read_batch(view: View, consumer: str, partition_id: int, limit: int) -> FeedBatch | None:
    row, key = view.feed_consumers.get(consumer), (consumer, partition_id)
    checkpoint = view.feed_checkpoints.get(key)
    if row is None or checkpoint is None or not view.is_free("feed_hands", key):
        return None
    view.lock("feed_hands", key)
    if row.paused_at is not None:
        return None
    events: list[FlowEvent] = []
    for event in islice(_behind(view, consumer, partition_id), limit):
        try:
            events.append(event_of(event))
        except SerializationError:
            if not events:
                raise
            break
    if not events:
        return None
    return FeedBatch(
        consumer=consumer,
        partition_id=partition_id,
        after=encode_feed_position(checkpoint.position),
        events=tuple(events),
        attempts=checkpoint.attempts,
    )


def _complete(view: View, key: FeedCheckpointKey, after: int, to: int) -> bool:
    view.lock("feed_checkpoints", key)
    row = view.feed_checkpoints.get(key)
    if row is None or row.position != after:
        return False
    view.feed_checkpoints.put(key, FeedCheckpointRow(to, view.now()))
    return True


def _retry(view: View, key: FeedCheckpointKey, error: str) -> int | None:
    view.lock("feed_checkpoints", key)
    row = view.feed_checkpoints.get(key)
    if row is None:
        return None
    attempts = row.attempts + 1
    view.feed_checkpoints.put(key, row._replace(attempts=attempts, last_error=error, failed_at=view.now()))
    return attempts


# Looking


def _lag(view: View, consumer: str) -> FeedLag | None:
    if view.feed_consumers.get(consumer) is None:
        return None
    behind = [list(_behind(view, consumer, partition_id)) for partition_id in range(view.partition_count)]
    oldest = min((rows[0].recorded_at for rows in behind if rows), default=None)
    return FeedLag(events=sum(map(len, behind)), oldest_recorded_at=oldest)


def lags(view: View) -> dict[str, int]:
    """Returns the lag of each consumer, as far as it is counted."""

    def counted(consumer: str) -> int:
        behind = (_behind(view, consumer, partition_id) for partition_id in range(view.partition_count))
        return sum(1 for rows in behind for _ in islice(rows, COUNTED_LAG))

    return {row.consumer: counted(row.consumer) for row in view.feed_consumers.select("all")}


def failures(view: View) -> dict[str, int]:
    """Returns in how many partitions each consumer fails, if it does."""
    totals: dict[str, int] = {}
    for consumer, _, _ in _failing(view):
        totals[consumer] = totals.get(consumer, 0) + 1
    return totals


def _list_failing(view: View, consumer: str | None, limit: int, after: tuple[str, int] | None) -> list[FeedFailure]:
    found = (
        FeedFailure(
            consumer=name,
            partition_id=partition_id,
            attempts=row.attempts,
            last_error=row.last_error,
            failed_at=row.failed_at,
        )
        for name, partition_id, row in _failing(view)
        if row.last_error is not None
        and row.failed_at is not None
        and consumer in (None, name)
        and (after is None or (name, partition_id) > after)
    )
    return list(islice(found, limit))


def _failing(view: View) -> Iterator[tuple[str, int, FeedCheckpointRow]]:
    for consumer in view.feed_consumers.select("all"):
        for partition_id in range(view.partition_count):
            row = view.feed_checkpoints.get((consumer.consumer, partition_id))
            if row is not None and row.attempts:
                yield consumer.consumer, partition_id, row


# Forgetting


def is_unhandled(view: View) -> Callable[[HistoryRow], bool]:
    """Returns the function that tells whether some consumer has not handled an event."""
    consumers = [row.consumer for row in view.feed_consumers.select("all")]
    slowest: dict[int, int | None] = {}

    def look_up(partition_id: int) -> int | None:
        if partition_id not in slowest:
            rows = (view.feed_checkpoints.get((consumer, partition_id)) for consumer in consumers)
            slowest[partition_id] = min((row.position for row in rows if row is not None), default=None)
        return slowest[partition_id]

    def tell(row: HistoryRow) -> bool:
        place = look_up(row.flow_instance_id.int % view.partition_count)
        return place is not None and (row.position is None or row.position > place)

    return tell


def _purge_events(view: View, before: datetime, limit: int, force: bool) -> int:
    unhandled = is_unhandled(view)
    chosen: list[HistoryRow] = []
    for partition_id in range(view.partition_count):
        for row in feed_rows(view, partition_id, None):
            if len(chosen) == limit or row.recorded_at >= before or (unhandled(row) and not force):
                break
            chosen.append(row)
    for row in chosen:
        view.flow_events.remove((row.flow_instance_id.int, row.sequence))
    return len(chosen)
