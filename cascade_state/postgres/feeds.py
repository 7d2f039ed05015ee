"""Feed consumers on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from cascade_state.abc.feeds import Feeds
from cascade_state.abc.guards import Guard
from cascade_state.errors import SerializationError, TransactionAborted
from cascade_state.model.advance import Limits
from cascade_state.model.events import FlowEvent
from cascade_state.model.feeds import (
    FEED_CONSUMER,
    FeedBatch,
    FeedFailure,
    FeedLag,
    FeedNews,
    FeedStart,
    RegisteredConsumer,
)
from cascade_state.postgres.direct import Record, Statement
from cascade_state.postgres.event_rows import decode_feed_position, encode_feed_position, event_from_record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements import feed_consumers, feed_retention, feeds

__all__ = ["PostgresFeeds"]

_LONGEST_SETTING = (1 << 31) - 1  # in milliseconds
_RACES = 3  # how often a consumer is removed between finding that it is there and reading it


class PostgresFeeds(Feeds):
    """See `Feeds`. The hold on a partition whose batch is in hand is an advisory lock of the transaction.

    Unlike the lock of a row it needs no transaction id: a handler that writes late, or waits for the outside world,
    does not keep events from being handed out meanwhile.
    """

    def __init__(self, executor: Executor, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._executor = executor

    # Consumers

    async def _register(self, consumer: str, start: FeedStart) -> RegisteredConsumer:
        for _ in range(_RACES):
            found = await self._find(consumer)
            if found is not None:
                return found
            records = await self._fetch(feed_consumers.REGISTER, consumer, start=start)
            if records:
                return _consumer_from_record(records[0])
        raise TransactionAborted(reason="the consumer kept being removed while it was registered")

    async def _find(self, consumer: str) -> RegisteredConsumer | None:
        records = await self._fetch(feed_consumers.FIND, consumer)
        return _consumer_from_record(records[0]) if records else None

    async def _list_consumers(self, limit: int, after: str | None) -> list[RegisteredConsumer]:
        records = await self._executor.fetch(feed_consumers.LIST, {"limit": limit, "after": after or ""})
        return [_consumer_from_record(record) for record in records]

    async def _pause(self, consumer: str) -> bool | None:
        records = await self._fetch(feed_consumers.PAUSE, consumer)
        return records[0]["was_paused"] if records else None

    async def _resume(self, consumer: str) -> bool | None:
        records = await self._fetch(feed_consumers.RESUME, consumer)
        for partition_id in range(self._limits.partition_count):
            self._executor.hint(partition_id, "events")  # so that it goes on at once, wherever it runs
        return records[0]["was_paused"] if records else None

    async def _reset(self, consumer: str, start: FeedStart) -> bool:
        for _ in range(_RACES):
            if await self._fetch(feed_consumers.RESET, consumer, start=start):
                return True
            if await self._find(consumer) is not None:
                return False
            if await self._fetch(feed_consumers.REGISTER, consumer, start=start):
                return True
        raise TransactionAborted(reason="the consumer kept being removed while it was reset")

    async def _remove(self, consumer: str) -> bool | None:
        if await self._fetch(feed_consumers.REMOVE, consumer):
            return True
        return None if await self._find(consumer) is not None else False

    async def _fetch(self, statement: Statement, consumer: str, **values: Any) -> list[Record]:
        common = {
            "consumer": consumer,
            "now": self._executor.now(),
            "partition_count": self._limits.partition_count,
            "metadata_key": FEED_CONSUMER,
        }
        return await self._executor.fetch(statement, {**common, **values})

    # Working

    async def _find_news(self, consumer: str, partitions: list[int]) -> FeedNews | None:
        records = await self._fetch(feeds.FIND_NEWS, consumer, partitions=[str(number) for number in partitions])
        if not records:
            return None
        if records[0]["paused_at"] is not None:
            return FeedNews(is_paused=True)
        found = sorted((record for record in records if record["is_settled"] is not None), key=_partition)
        return FeedNews(
            ready=tuple(record["partition_id"] for record in found if record["is_settled"]),
            unsettled=tuple(record["partition_id"] for record in found if not record["is_settled"]),
        )

    async def _read_batch(
        self, consumer: str, partition_id: int, limit: int, idle_timeout: timedelta | None
    ) -> FeedBatch | None:
        values = {
            "partition_id": partition_id,
            "limit": limit,
            "lock_key": self._executor.lock_key("feed", f"{partition_id}/{consumer}"),
            "setting": "idle_in_transaction_session_timeout",
            "idle_timeout": None if idle_timeout is None else _milliseconds(idle_timeout),
        }
        records = await self._fetch(feeds.READ_BATCH, consumer, **values)
        if not records:
            return None
        first = records[0]
        return FeedBatch(
            consumer=consumer,
            partition_id=partition_id,
            after=encode_feed_position(first["after_xid"], first["after_id"], first["after_sequence"]),
            events=_decoded(sorted(records, key=_place)),
            attempts=first["attempts"],
        )

    async def _complete(self, batch: FeedBatch) -> bool:
        values: dict[str, Any] = {"partition_id": batch.partition_id}
        for name, position in (("after", batch.after), ("to", batch.position)):
            values[f"{name}_xid"], values[f"{name}_id"], values[f"{name}_sequence"] = decode_feed_position(position)
        return bool(await self._fetch(feeds.COMPLETE, batch.consumer, **values))

    async def _retry(self, consumer: str, partition_id: int, error: str) -> int | None:
        records = await self._fetch(feeds.RETRY, consumer, partition_id=partition_id, error=error)
        return records[0]["attempts"] if records else None

    # Looking

    async def _lag(self, consumer: str) -> FeedLag | None:
        records = await self._fetch(feeds.LAG, consumer)
        if not records:
            return None
        return FeedLag(events=records[0]["events"], oldest_recorded_at=records[0]["oldest_recorded_at"])

    async def _list_failing(self, consumer: str | None, limit: int, after: tuple[str, int] | None) -> list[FeedFailure]:
        after_consumer, after_partition = after or ("", -1)
        values = {
            "consumer": consumer,
            "limit": limit,
            "after_consumer": after_consumer,
            "after_partition": after_partition,
        }
        return [FeedFailure(**dict(record)) for record in await self._executor.fetch(feeds.LIST_FAILING, values)]

    async def _purge_events(self, before: datetime, limit: int, force: bool) -> int:
        values = {
            "before": before,
            "limit": limit,
            "force": force,
            "partition_count": self._limits.partition_count,
        }
        return len(await self._executor.fetch(feed_retention.PURGE_EVENTS, values))


def _milliseconds(duration: timedelta) -> str:
    return str(min(max(1, round(duration / timedelta(milliseconds=1))), _LONGEST_SETTING))


def _consumer_from_record(record: Record) -> RegisteredConsumer:
    return RegisteredConsumer(**dict(record))


def _partition(record: Record) -> int:
    number: int = record["partition_id"]
    return number


def _place(record: Record) -> tuple[int, Any, int]:
    return int(record["recorded_xid"]), record["flow_instance_id"], record["sequence"]


def _decoded(records: Sequence[Record]) -> tuple[FlowEvent, ...]:
    """Returns the events up to the first that cannot be decoded; raises if that is the first of all."""
    events: list[FlowEvent] = []
    for record in records:
        try:
            events.append(event_from_record(record))
        except SerializationError:
            if not events:
                raise
            break
    return tuple(events)
