"""Consumers of the feed: what is stored of them, what is new for them, and what they are handed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from cascade_state.errors import InvalidArgument
from cascade_state.model.events import FlowEvent

__all__ = [
    "COUNTED_LAG",
    "FEED_CONSUMER",
    "FeedBatch",
    "FeedFailure",
    "FeedLag",
    "FeedNews",
    "FeedStart",
    "RegisteredConsumer",
    "check_start",
]

FeedStart: TypeAlias = Literal["beginning", "now"]

# How many events of one partition `store.statistics()` counts before it has seen enough.
COUNTED_LAG = 1_000

# Where a worker's metadata name the consumer that it runs.
FEED_CONSUMER = "feed_consumer"


def check_start(value: object) -> FeedStart:
    """Returns `value` if a consumer can start there."""
    if value == "beginning":
        return "beginning"
    if value == "now":
        return "now"
    raise InvalidArgument(argument="start", reason="must be 'beginning' or 'now'")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredConsumer:
    """A consumer of the feed as the store knows it.

    `started_at` is when its `start` was fixed: when it was first seen, or reset. `paused_at` is None unless it is
    paused.
    """

    consumer: str
    start: FeedStart
    started_at: datetime
    paused_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedLag:
    """How much a consumer has before it: committed events that it has not handled.

    `oldest_recorded_at` is the earliest time of those that come next, one in each partition. Behind them there may be
    an earlier one of the same transaction, because its flows have any order.
    """

    events: int
    oldest_recorded_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedNews:
    """Where there is something new for a consumer.

    `ready` are partitions with events that can be handed out. In `unsettled` ones there are only events that must
    wait, because a transaction that is older than theirs can still commit. Both are empty while it is paused.
    """

    ready: tuple[int, ...] = ()
    unsettled: tuple[int, ...] = ()
    is_paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedBatch:
    """Events of one partition, in feed order, that come next for a consumer.

    `after` is the checkpoint that they are behind; `attempts` counts how often this place has failed.
    """

    consumer: str
    partition_id: int
    after: str
    events: tuple[FlowEvent, ...]
    attempts: int = 0

    @property
    def position(self) -> str:
        """Where the checkpoint is once the batch is handled."""
        return self.events[-1].position


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedFailure:
    """A partition in which a consumer cannot go on: its handler, or reading an event, fails again and again."""

    consumer: str
    partition_id: int
    attempts: int
    last_error: str
    failed_at: datetime
