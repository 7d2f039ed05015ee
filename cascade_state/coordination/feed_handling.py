"""One batch of the feed, from reading it to its commit, and what becomes of it when something goes wrong.

The order within the transaction matters. Reading takes a hold that no other worker gets past, but needs no transaction
id: as long as the handler does not write, it does not keep other events from being handed out. The fence, which locks
the row of the partition's owner, and the checkpoint come last, so they are locked for no longer than the commit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from cascade_state.abc.store import Store
from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.coordination.backoff import Backoff
from cascade_state.coordination.member import Member
from cascade_state.errors import LeaseLost, StoreError, StoreUnavailable, TransactionAborted
from cascade_state.model.events import FlowEvent
from cascade_state.model.feeds import FeedStart
from cascade_state.telemetry import add, record, span

__all__ = ["FeedDesk", "FeedHandler", "FeedSettings", "Result"]

_log = logging.getLogger("cascade_state.feed")

FeedHandler: TypeAlias = Callable[[list[FlowEvent], UnitOfWork], Awaitable[object]]

_LONGEST_ERROR = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """How a consumer works; `FeedConsumer` says what each is."""

    name: str
    handler: FeedHandler
    start: FeedStart
    batch_size: int
    concurrency: int
    strict: bool
    poll_interval: timedelta
    grace_period: timedelta
    backoff: Backoff


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a batch.

    "full": handled, and there may be more at once; "done": handled; "nothing": there was nothing, or somebody else has
    it in hand; "lost": the partition is another worker's; "failed": it will be tried again.
    """

    outcome: Literal["full", "done", "nothing", "lost", "failed"]
    events: int = 0  # that were handled
    attempts: int = 0
    error: BaseException | None = None  # what stops a strict consumer


class FeedDesk:
    """Handles batches, one of a partition at a time."""

    def __init__(self, store: Store, settings: FeedSettings, member: Member, idle_timeout: timedelta) -> None:
        self._store = store
        self._settings = settings
        self._member = member
        self._idle_timeout = idle_timeout
        self._unnoted: Counter[int] = Counter()  # failures that could not be stored
        self.in_hand: dict[int, int] = {}  # partition -> generation under which it is worked in

    async def handle(self, partition_id: int) -> Result:
        """Reads the next batch of a partition, hands it to the handler, and commits."""
        name, began = self._settings.name, time.monotonic()
        with span("cascade_state.feed.batch", consumer=name, partition_id=partition_id) as facts:
            result = await self._handle(partition_id)
            facts.update(outcome=result.outcome, events=result.events)
        add("cascade_state.feed.batches", consumer=name, outcome=result.outcome)
        record("cascade_state.feed.batch.duration", time.monotonic() - began, consumer=name, outcome=result.outcome)
        if result.events:
            add("cascade_state.feed.events", result.events, consumer=name)
        return result

    async def _handle(self, partition_id: int) -> Result:
        try:
            with self._member.working_in(partition_id) as generation:
                self.in_hand[partition_id] = generation
                try:
                    return await self._attempt(partition_id, generation)
                except _Failed as failure:
                    return await self._failed(partition_id, generation, failure.error)
                finally:
                    del self.in_hand[partition_id]
        except LeaseLost as error:
            _log.warning(
                "batch lost, nothing of it is stored consumer=%s partition_id=%d reason=%s",
                self._settings.name,
                partition_id,
                error,
            )
            return Result("lost")

    async def _attempt(self, partition_id: int, generation: int) -> Result:
        """Handles a batch in one transaction.

        Raises:
            LeaseLost: Somebody else has the partition, or the checkpoint is elsewhere.
            _Failed: Anything else; nothing was stored, or, if the connection broke while committing, it is not known:
                the checkpoint tells the next attempt.
        """
        settings = self._settings
        try:
            async with self._store.begin() as uow:
                batch = await uow.feeds.read_batch(
                    settings.name, partition_id, limit=settings.batch_size, idle_timeout=self._idle_timeout
                )
                if batch is None:
                    await uow.rollback()
                    return Result("nothing")
                await _call(settings.handler, list(batch.events), uow)
                await uow.fence(partition_id, generation, self._member.replica_set)
                await uow.feeds.complete(batch)
        except (LeaseLost, _Failed):
            raise
        except Exception as error:
            raise _Failed(error) from error
        self._unnoted.pop(partition_id, None)
        _log.debug("handled consumer=%s partition_id=%d events=%d", settings.name, partition_id, len(batch.events))
        count = len(batch.events)
        return Result("full" if count == settings.batch_size else "done", count)

    async def _failed(self, partition_id: int, generation: int, error: BaseException) -> Result:
        """Notes the failure where everybody can see it.

        Raises:
            LeaseLost: The partition is somebody else's meanwhile; that may well be why it failed.
        """
        self._unnoted[partition_id] += 1
        attempts = self._unnoted[partition_id]
        try:
            async with self._store.begin() as uow:
                await uow.fence(partition_id, generation, self._member.replica_set)
                attempts = await uow.feeds.retry(self._settings.name, partition_id, error=_told(error))
        except LeaseLost:
            raise
        except StoreError as unnoted:
            _log.info("cannot note a failure consumer=%s reason=%s", self._settings.name, unnoted)
        else:
            self._unnoted.pop(partition_id, None)
        passing = isinstance(error, (StoreUnavailable, TransactionAborted))
        _log.log(
            logging.INFO if passing else logging.WARNING,
            "batch failed consumer=%s partition_id=%d attempts=%d error=%s",
            self._settings.name,
            partition_id,
            attempts,
            type(error).__name__,
        )
        _log.debug("batch failed", exc_info=error)
        return Result("failed", attempts=attempts, error=None if passing else error)


class _Failed(Exception):
    """A batch failed, and nothing of it is stored."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


async def _call(handler: FeedHandler, events: list[FlowEvent], uow: UnitOfWork) -> None:
    """Calls the handler.

    Raises:
        _Failed: It raised, a `LeaseLost` of its own included, or cancelled itself.
    """
    try:
        await handler(events, uow)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise _Failed(RuntimeError("the handler cancelled itself")) from error
    except Exception as error:
        raise _Failed(error) from error


def _told(error: BaseException) -> str:
    """Returns an error as it can be stored."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text[:_LONGEST_ERROR].replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
