"""The settings of a worker that its parts share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from cascade_state.coordination.backoff import Backoff

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """See `Worker`."""

    concurrency: int
    batch_size: int
    lease_duration: timedelta
    poll_interval: timedelta
    backoff: Backoff
