"""Claims with the arguments that tests of claimed things do not care about."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

from cascade_state.abc import Store, UnitOfWork
from cascade_state.model.correlations import Delivery
from cascade_state.model.timers import Timer
from cascade_state.testing.contracts.base import LEASE

__all__ = ["MOMENT", "Target", "claim_deliveries", "claim_timers"]

Target: TypeAlias = Store | UnitOfWork

MOMENT = timedelta(microseconds=1)  # the smallest step of time that a store knows


async def claim_deliveries(
    target: Target, holder: str = "worker-1", *, limit: int = 100, lease_duration: timedelta = LEASE
) -> list[Delivery]:
    """Returns the deliveries that can be claimed now, claimed."""
    return await target.correlations.claim_delivered(holder, limit=limit, lease_duration=lease_duration)


async def claim_timers(
    target: Target, holder: str = "worker-1", *, limit: int = 100, lease_duration: timedelta = LEASE
) -> list[Timer]:
    """Returns the timers that can be claimed now, claimed."""
    return await target.timers.claim_due(holder, limit=limit, lease_duration=lease_duration)
