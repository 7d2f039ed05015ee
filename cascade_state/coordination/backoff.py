"""How long to wait before the next attempt."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import timedelta

from cascade_state.errors import InvalidArgument
from cascade_state.model.arguments import check_count, check_duration

__all__ = ["Backoff"]

_LARGEST_FACTOR = 100
_FARTHEST = 100  # a hundred doublings are more than any maximum


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits that grow by `factor` from `initial` to `maximum`, each longer or shorter by up to `jitter` of it.

    The jitter keeps what failed together from coming back together.
    """

    initial: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    maximum: timedelta = timedelta(minutes=5)
    jitter: float = 0.2

    def __post_init__(self) -> None:
        check_duration(self.initial, "initial")
        check_duration(self.maximum, "maximum")
        if self.maximum < self.initial:
            raise InvalidArgument(argument="maximum", reason="must not be shorter than initial")
        if not _is_number(self.factor) or not 1 <= self.factor <= _LARGEST_FACTOR:
            raise InvalidArgument(argument="factor", reason=f"must be from 1 to {_LARGEST_FACTOR}")
        if not _is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise InvalidArgument(argument="jitter", reason="must be from 0 to 1")

    def delay(self, attempt: int) -> timedelta:
        """Returns how long to wait after an attempt failed.

        Args:
            attempt: Its number, from 1.
        """
        check_count(attempt, "attempt", maximum=1 << 31)
        growth = self.factor ** min(attempt - 1, _FARTHEST)
        seconds = min(self.initial.total_seconds() * growth, self.maximum.total_seconds())
        return timedelta(seconds=seconds * random.uniform(1 - self.jitter, 1 + self.jitter))  # noqa: S311 - no secret


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
