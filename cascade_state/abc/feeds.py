"""The repository of feed consumers: how far each has come, partition by partition, and what may be forgotten."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from datetime import datetime, timedelta

from cascade_state.abc.repository import DEFAULT_LIMIT, Repository, check_limit, cut, decode_position
from cascade_state.errors import FeedConsumerNotFound, InvalidArgument, LeaseLost, UsageError
from cascade_state.model.arguments import (
    check_duration,
    check_instant,
    check_key,
    check_optional_key,
    check_partition,
    check_text,
)
from cascade_state.model.feeds import (
    FeedBatch,
    FeedFailure,
    FeedLag,
    FeedNews,
    FeedStart,
    RegisteredConsumer,
    check_start,
)
from cascade_state.model.lists import CursorList

__all__ = ["Feeds"]

_MAXIMUM_ERROR_CHARACTERS = 2_000


class Feeds(Repository, ABC):
    """Consumers of the feed, each with a checkpoint in every partition.

    `coordination.FeedConsumer` is what applications use; it calls these. A consumer begins to exist when it is
    first registered, under a name that it keeps for good: the name is its progress. Consumers know nothing of
    each other.

    A batch is read, handled and completed in one unit of work, so that its effects in the database and the
    checkpoint commit together: whoever handles the same batch a second time finds the checkpoint moved, and is
    refused.
    """

    async def register(self, consumer: str, *, start: FeedStart = "beginning") -> RegisteredConsumer:
        """Returns the consumer; makes it if it is new.

        Args:
            start: Where a new consumer starts: at the oldest event that is there, or behind everything that is
                committed now. It is fixed when the consumer is first seen.
        """
        check_key(consumer, "consumer")
        check_start(start)
        with self._guard.call(writes=True):
            return await self._register(consumer, start)

    async def find(self, consumer: str) -> RegisteredConsumer | None:
        """Returns a consumer, or None."""
        check_key(consumer, "consumer")
        with self._guard.call(writes=False):
            return await self._find(consumer)

    async def get(self, consumer: str) -> RegisteredConsumer:
        """Returns a consumer.

        Raises:
            FeedConsumerNotFound: It was never registered, or was removed.
        """
        found = await self.find(consumer)
        if found is None:
            raise FeedConsumerNotFound(key=consumer)
        return found

    async def list_consumers(
        self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> CursorList[RegisteredConsumer]:
        """Returns the consumers, ordered by name."""
        after = decode_position(cursor, "feeds.list_consumers", str)
        with self._guard.call(writes=False):
            rows = await self._list_consumers(check_limit(limit) + 1, None if after is None else after[0])
        return cut(rows, limit, "feeds.list_consumers", lambda found: (found.consumer,))

    async def pause(self, consumer: str) -> bool:
        """Pauses a consumer, everywhere and until it is resumed; returns whether it was running until now.

        No batch is begun any more; those in hand may be finished. Its lag grows, and what it has not handled
        is kept.

        Raises:
            FeedConsumerNotFound: There is no such consumer.
        """
        return await self._set_paused(consumer, is_paused=True)

    async def resume(self, consumer: str) -> bool:
        """Lets a paused consumer go on where it was; returns whether it was paused.

        Raises:
            FeedConsumerNotFound: There is no such consumer.
        """
        return await self._set_paused(consumer, is_paused=False)

    async def reset(self, consumer: str, start: FeedStart = "beginning") -> None:
        """Puts all checkpoints of a consumer back to the beginning, or to now; what failed is forgotten.

        A consumer that is not there yet is registered. A batch that somebody has in hand all the same is
        refused when it is completed.

        Raises:
            UsageError: It is running somewhere; stop it first.
        """
        check_key(consumer, "consumer")
        check_start(start)
        with self._guard.call(writes=True):
            if not await self._reset(consumer, start):
                raise _running(consumer)

    async def remove(self, consumer: str) -> bool:
        """Removes a consumer and its checkpoints; returns whether there was one. Its events are kept no longer.

        Raises:
            UsageError: It is running somewhere; stop it first.
        """
        check_key(consumer, "consumer")
        with self._guard.call(writes=True):
            removed = await self._remove(consumer)
        if removed is None:
            raise _running(consumer)
        return removed

    async def lag(self, consumer: str) -> FeedLag:
        """Returns how much is committed that the consumer has not handled. It costs what there is to count.

        Raises:
            FeedConsumerNotFound: There is no such consumer.
        """
        check_key(consumer, "consumer")
        with self._guard.call(writes=False):
            lag = await self._lag(consumer)
        if lag is None:
            raise FeedConsumerNotFound(key=consumer)
        return lag

    async def find_news(self, consumer: str, partitions: Collection[int]) -> FeedNews:
        """Returns in which of these partitions there is something new: one round trip for all of them.

        Raises:
            FeedConsumerNotFound: There is no such consumer.
        """
        check_key(consumer, "consumer")
        count = self._limits.partition_count
        wanted = sorted({check_partition(partition, "partitions", count) for partition in partitions})
        with self._guard.call(writes=False):
            news = await self._find_news(consumer, wanted)
        if news is None:
            raise FeedConsumerNotFound(key=consumer)
        return news

    async def read_batch(
        self, consumer: str, partition_id: int, *, limit: int = 500, idle_timeout: timedelta | None = None
    ) -> FeedBatch | None:
        """Returns what comes next in a partition, in one round trip; None if there is nothing to do now.

        That is so when nothing new is settled, when the consumer is paused, and while another unit of work has
        a batch of this partition in hand: until it ends, nobody else gets one. That hold is no row lock, and by
        itself it does not keep back the feed.

        Args:
            limit: How many events it has at most.
            idle_timeout: Has the server end the unit of work, and its connection, once nothing was sent for so
                long. So a process that is stopped in the middle gives up its hold by then. In memory it does
                nothing: there the process is all there is.

        Raises:
            SerializationError: The very next event cannot be decoded. If others come before it, they are
                returned.
        """
        check_key(consumer, "consumer")
        check_partition(partition_id, "partition_id", self._limits.partition_count)
        check_limit(limit)
        if idle_timeout is not None:
            check_duration(idle_timeout, "idle_timeout")
        with self._guard.call(writes=True):
            return await self._read_batch(consumer, partition_id, limit, idle_timeout)

    async def complete(self, batch: FeedBatch) -> None:
        """Moves the checkpoint behind a batch, in the transaction of its effects.

        Raises:
            LeaseLost: The checkpoint is not where it was when the batch was read: somebody else has handled it,
                or the consumer was reset or removed. Roll back.
        """
        _check_batch(batch, self._limits.partition_count)
        with self._guard.call(writes=True):
            if not await self._complete(batch):
                raise LeaseLost(
                    entity="feed checkpoint", key=f"{batch.consumer}, partition {batch.partition_id}", holder=None
                )

    async def retry(self, consumer: str, partition_id: int, *, error: str) -> int:
        """Notes that a batch failed and is to be tried again; returns how often it has failed by now.

        It is forgotten when the partition gets on.

        Raises:
            FeedConsumerNotFound: There is no such consumer.
        """
        check_key(consumer, "consumer")
        check_partition(partition_id, "partition_id", self._limits.partition_count)
        text = check_text(error, "error")[:_MAXIMUM_ERROR_CHARACTERS]
        with self._guard.call(writes=True):
            attempts = await self._retry(consumer, partition_id, text)
        if attempts is None:
            raise FeedConsumerNotFound(key=consumer)
        return attempts

    async def list_failing(
        self, consumer: str | None = None, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> CursorList[FeedFailure]:
        """Returns the partitions in which a consumer (None: any) cannot go on, by consumer, then partition."""
        check_optional_key(consumer, "consumer")
        subject = ("feeds.list_failing", consumer)
        after = decode_position(cursor, subject, str, int)
        with self._guard.call(writes=False):
            rows = await self._list_failing(consumer, check_limit(limit) + 1, after)
        return cut(rows, limit, subject, lambda failure: (failure.consumer, failure.partition_id))

    async def purge_events(self, before: datetime, *, limit: int = 1000, force: bool = False) -> int:
        """Removes up to `limit` events that were recorded before an instant; returns how many.

        Each partition loses its oldest ones, up to the first that is younger or that some consumer, paused ones
        included, has not handled. The flows stay, and so do their numbers: their history then begins later.
        Repeat until it returns 0. Skips rows that another transaction holds, so it never blocks a worker.

        Args:
            force: Whether to remove what consumers have not handled, too. They will never see it.
        """
        instant = check_instant(before, "before")
        with self._guard.call(writes=True):
            return await self._purge_events(instant, check_limit(limit), bool(force))

    async def _set_paused(self, consumer: str, *, is_paused: bool) -> bool:
        check_key(consumer, "consumer")
        with self._guard.call(writes=True):
            was_paused = await self._pause(consumer) if is_paused else await self._resume(consumer)
        if was_paused is None:
            raise FeedConsumerNotFound(key=consumer)
        return was_paused is not is_paused

    @abstractmethod
    async def _register(self, consumer: str, start: FeedStart) -> RegisteredConsumer: ...

    @abstractmethod
    async def _find(self, consumer: str) -> RegisteredConsumer | None: ...

    @abstractmethod
    async def _list_consumers(self, limit: int, after: str | None) -> list[RegisteredConsumer]: ...

    @abstractmethod
    async def _pause(self, consumer: str) -> bool | None:
        """Returns whether it was paused before; None: there is none."""

    @abstractmethod
    async def _resume(self, consumer: str) -> bool | None:
        """Returns whether it was paused before; None: there is none."""

    @abstractmethod
    async def _reset(self, consumer: str, start: FeedStart) -> bool:
        """Returns False, and does nothing, if it is running."""

    @abstractmethod
    async def _remove(self, consumer: str) -> bool | None:
        """Returns whether there was one; None, and does nothing, if it is running."""

    @abstractmethod
    async def _lag(self, consumer: str) -> FeedLag | None: ...

    @abstractmethod
    async def _find_news(self, consumer: str, partitions: list[int]) -> FeedNews | None: ...

    @abstractmethod
    async def _read_batch(
        self, consumer: str, partition_id: int, limit: int, idle_timeout: timedelta | None
    ) -> FeedBatch | None: ...

    @abstractmethod
    async def _complete(self, batch: FeedBatch) -> bool: ...

    @abstractmethod
    async def _retry(self, consumer: str, partition_id: int, error: str) -> int | None: ...

    @abstractmethod
    async def _list_failing(
        self, consumer: str | None, limit: int, after: tuple[str, int] | None
    ) -> list[FeedFailure]: ...

    @abstractmethod
    async def _purge_events(self, before: datetime, limit: int, force: bool) -> int: ...


def _running(consumer: str) -> UsageError:
    return UsageError(f"the consumer {consumer!r} is running; stop it everywhere first")


def _check_batch(batch: object, partition_count: int) -> None:
    if not isinstance(batch, FeedBatch) or not batch.events:
        raise InvalidArgument(argument="batch", reason="must be what read_batch returned")
    check_key(batch.consumer, "batch")
    check_partition(batch.partition_id, "batch", partition_count)
