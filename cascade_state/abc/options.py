"""The options a store is opened with, the same for every back end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cascade_state.clock import Clock
from cascade_state.errors import InvalidArgument
from cascade_state.ids import DEFAULT_PARTITION_COUNT, MAXIMUM_PARTITION_COUNT, MINIMUM_PARTITION_COUNT
from cascade_state.model.advance import Limits
from cascade_state.model.arguments import check_count, check_key, check_kind

__all__ = ["StoreOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """See `open_store` for what each option does. Durations are in seconds where the name says so."""

    schema: str | None = None
    partition_count: int = DEFAULT_PARTITION_COUNT
    pool_size: int = 10
    pool_timeout_seconds: float = 30.0
    pooler: Literal["pgbouncer"] | None = None
    direct_url: str | None = field(default=None, repr=False)  # carries a password
    clock: Clock | None = None
    hints: bool = True
    coalesce: bool = True
    max_document_bytes: int = 1024 * 1024
    max_attempts: int = 20
    application_name: str = "cascade_state"

    def __post_init__(self) -> None:
        count = check_count(self.partition_count, "partition_count", maximum=MAXIMUM_PARTITION_COUNT)
        if count < MINIMUM_PARTITION_COUNT or count & (count - 1):
            raise InvalidArgument(
                argument="partition_count",
                reason=f"must be a power of two from {MINIMUM_PARTITION_COUNT} to {MAXIMUM_PARTITION_COUNT}",
            )
        for name in ("hints", "coalesce"):
            check_kind(getattr(self, name), bool, name)
        timeout = self.pool_timeout_seconds
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout < math.inf:
            raise InvalidArgument(argument="pool_timeout_seconds", reason="must be a finite number above 0")
        check_count(self.pool_size, "pool_size", maximum=1_000)
        check_count(self.max_document_bytes, "max_document_bytes", maximum=1 << 28)
        check_count(self.max_attempts, "max_attempts", maximum=1_000_000)
        check_key(self.application_name, "application_name")
        if self.pooler not in (None, "pgbouncer"):
            raise InvalidArgument(argument="pooler", reason="must be None or 'pgbouncer'")
        if self.schema is not None and len(check_key(self.schema, "schema").encode()) > 63:
            raise InvalidArgument(argument="schema", reason="is longer than 63 bytes of UTF-8")
        if self.clock is not None and not isinstance(self.clock, Clock):
            raise InvalidArgument(argument="clock", reason="must have a now() method")

    @property
    def limits(self) -> Limits:
        """What validation needs to know."""
        return Limits(
            max_document_bytes=self.max_document_bytes,
            max_attempts=self.max_attempts,
            partition_count=self.partition_count,
        )
