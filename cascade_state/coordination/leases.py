"""Keeps the leases of what a worker has in hand, in one statement for all of a kind."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta

from cascade_state.coordination.handling import Desk, Work
from cascade_state.coordination.kinds import Kind
from cascade_state.errors import StoreError

__all__ = ["keep_leases"]

_log = logging.getLogger("cascade_state.worker")

_RENEWALS_A_LEASE = 3  # two may fail before a lease ends
_ATTEMPTS_A_RENEWAL = 4


async def keep_leases(desk: Desk, lease_duration: timedelta) -> None:
    """Renews at a third of a lease's length, until it is cancelled; sooner again when the store could not be reached.

    A handler whose lease is lost is cancelled: its commit would be refused.
    """
    pause = lease_duration.total_seconds() / _RENEWALS_A_LEASE
    succeeded = True
    while True:
        await asyncio.sleep(pause if succeeded else pause / _ATTEMPTS_A_RENEWAL)
        by_kind: dict[Kind, list[Work]] = {}
        for work in desk.in_hand:
            by_kind.setdefault(work.kind, []).append(work)
        succeeded = True
        for kind, works in by_kind.items():
            try:
                async with asyncio.timeout(pause):
                    await _renew(kind, works, lease_duration)
            except (StoreError, TimeoutError) as error:
                succeeded = False
                _log.warning(
                    "cannot renew kind=%s count=%d reason=%s", kind.name, len(works), error or type(error).__name__
                )


async def _renew(kind: Kind, works: list[Work], lease_duration: timedelta) -> None:
    renewed_at = time.monotonic()
    renewed = {kind.identity(item): item for item in await kind.renew([work.item for work in works], lease_duration)}
    for work in works:
        item = renewed.get(kind.identity(work.item))
        if item is not None and item.lease.token == work.item.lease.token:
            work.lease_until = renewed_at + lease_duration.total_seconds()
        else:
            work.cancel("lost")
