"""A loop that claims one kind of item, and sleeps exactly until there may be the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import Any, Protocol

from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.coordination.backoff import Backoff
from cascade_state.coordination.handling import Desk
from cascade_state.coordination.kinds import Kind
from cascade_state.coordination.member import Member
from cascade_state.coordination.settings import Settings
from cascade_state.coordination.slots import Slots
from cascade_state.coordination.store_time import StoreTime
from cascade_state.errors import SchemaMismatch, StoreError
from cascade_state.telemetry import add

__all__ = ["ClaimLoop", "Seat"]

_log = logging.getLogger("cascade_state.worker")

# How long to wait when something is ready that a claim does not get, because another transaction holds it; doubled each
# time, up to the poll.
_CONTENDED_SECONDS = 0.01
_LONGEST_DOUBLING = 16
_RECOVERY = Backoff(initial=timedelta(milliseconds=100), maximum=timedelta(seconds=5))


class Seat(Protocol):
    """Whom a loop claims for."""

    @property
    def worker_id(self) -> str:
        """Who holds the leases."""
        ...

    @property
    def member(self) -> Member | None:
        """The membership in the replica set, if there is one."""
        ...

    def partitions(self) -> Collection[int] | None:
        """Returns where to claim; None: everywhere."""
        ...


class ClaimLoop:
    """Claims one kind of item for as long as it is not stopped.

    On the happy path nothing is polled: what is due later is known by its instant, what comes new is hinted. The poll
    bounds what a lost hint costs, and is enough alone.
    """

    def __init__(
        self,
        kind: Kind,
        handler: Callable[[Any, UnitOfWork], Awaitable[object]],
        seat: Seat,
        desk: Desk,
        slots: Slots,
        store_time: StoreTime,
        settings: Settings,
    ) -> None:
        self.kind: Kind = kind
        self._handler = handler
        self._seat = seat
        self._desk = desk
        self._slots = slots
        self._time = store_time
        self._settings = settings
        self._poll_seconds = settings.poll_interval.total_seconds()
        self._wake = asyncio.Event()
        self._is_hinted = False
        self._is_stopped = False
        self._in_vain = 0  # claims in a row that got nothing though something was ready

    def wake(self, reason: str | None) -> None:
        """Has the loop look for work: because of a "hint", or in any case."""
        if reason == "hint":
            if not self.kind.is_hinted:
                return
            self._is_hinted = True
        self._wake.set()

    def stop(self) -> None:
        """Has the loop end after the claim that is under way."""
        self._is_stopped = True
        self._wake.set()

    async def run(self) -> None:
        """Claims until it is stopped. Errors of the store are got over; any other ends the loop."""
        failures = 0
        gather = False
        while not self._is_stopped:
            self._wake.clear()
            self._is_hinted = False
            try:
                partitions = self._seat.partitions()
                if partitions is not None and not partitions:
                    await self._time.wait(self._wake, None, self._poll_seconds)  # the next share wakes it
                    continue
                reserved, claimed = await self._claim(partitions, gather=gather)
                failures = 0
                gather = reserved == claimed  # there is probably more
                if not gather:
                    await self._sleep(partitions, claimed)
            except SchemaMismatch:
                raise
            except StoreError as error:
                failures += 1
                add("cascade_state.worker.store_errors", kind=self.kind.name)
                pause = min(_RECOVERY.delay(failures).total_seconds(), max(self._poll_seconds, 0.1))
                _log.warning(
                    "cannot claim kind=%s worker_id=%s attempt=%d again_after=%.1fs reason=%s",
                    self.kind.name,
                    self._seat.worker_id,
                    failures,
                    pause,
                    error,
                )
                self._time.distrust()
                await self._time.wait(self._wake, None, pause)

    async def _claim(self, partitions: Collection[int] | None, *, gather: bool) -> tuple[int, int]:
        """Claims as much as can start at once; returns how much that could have been, and how much it was."""
        reserved = unused = await self._slots.reserve(self._settings.batch_size, gather=gather)
        try:
            if not reserved or self._is_stopped:
                return -1, 0
            claimed_at = time.monotonic()
            items = await self.kind.claim(self._seat.worker_id, reserved, self._settings.lease_duration, partitions)
            unused -= len(items)
        finally:
            self._slots.give_back(unused)
        if items:
            add("cascade_state.worker.claimed", len(items), kind=self.kind.name)
            _log.debug("claimed kind=%s worker_id=%s count=%d", self.kind.name, self._seat.worker_id, len(items))
        for item in items:
            self._desk.take(self.kind, self._handler, item, claimed_at, self._seat.member)
        return reserved, len(items)

    async def _sleep(self, partitions: Collection[int] | None, claimed: int) -> None:
        """Returns when a claim is worth while again."""
        self._in_vain = 0 if claimed else self._in_vain + 1
        may_be_ready = claimed > 0
        while not self._is_stopped:
            until = await self.kind.next_at(partitions)
            longest = self._poll_seconds
            if until is not None and await self._time.seconds_since(until) >= 0:
                if may_be_ready:
                    return self._woken("hint" if self._is_hinted else "due")
                until = None
                longest = min(longest, _CONTENDED_SECONDS * 2 ** min(self._in_vain, _LONGEST_DOUBLING))
            else:
                self._in_vain = 0
            if not await self._time.wait(self._wake, until, longest):
                is_due = until is not None and await self._time.seconds_since(until) >= 0
                return self._woken("due" if is_due else "poll")
            if not self._is_hinted or self.kind.is_ready_when_hinted:
                return self._woken("hint")
            self._wake.clear()
            may_be_ready = True
        return None

    def _woken(self, reason: str) -> None:
        add("cascade_state.worker.wakes", kind=self.kind.name, reason=reason)
