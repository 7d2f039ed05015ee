"""The settings of a worker that its parts share, and the check of the store that each loop is given."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from cascade_state.abc.store import Store
from cascade_state.coordination.backoff import Backoff
from cascade_state.errors import InvalidArgument

__all__ = ["Settings", "check_store"]


def check_store(store: object) -> Store:
    """Returns `store` if it is one; its URL, say, is none."""
    if not isinstance(store, Store):
        raise InvalidArgument(argument="store", reason=f"must be a Store, not {type(store).__name__}")
    return store


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """See `Worker`."""

    concurrency: int
    batch_size: int
    lease_duration: timedelta
    poll_interval: timedelta
    backoff: Backoff
