"""A lease: the time-limited right over one row, with its fencing token."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["Lease"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of `holder` over one row. The token only ever grows for one row; it decides, not the time."""

    holder: str
    token: int
    expires_at: datetime
