"""What a handler can say besides "done" (it returns) and "something went wrong" (it raises)."""

from __future__ import annotations

from datetime import timedelta

from cascade_state.model.arguments import check_duration, check_text

__all__ = ["GiveUp", "Retry"]


class Retry(Exception):
    """Raised by a handler: undo what it did, and call it again `after` a while.

    Counts as an attempt, like any other failure; only the waiting is the handler's own.
    """

    def __init__(self, after: timedelta, reason: str = "") -> None:
        """Takes the time to wait, from zero on, and what to record as `last_error`."""
        self.after: timedelta = check_duration(after, "after", allow_zero=True)
        self.reason: str = check_text(reason, "reason") or "the handler asked for another attempt"
        super().__init__(self.reason)


class GiveUp(Exception):
    """Raised by a handler: undo what it did, and never call it again for this item.

    A timer is DEAD then, and can be revived; a delivery becomes a dead letter, and can be published again; the lease
    of an orphan is given back, so that it is no orphan any more. `reason` is kept with the first two.
    """

    def __init__(self, reason: str) -> None:
        """Takes why."""
        self.reason: str = check_text(reason, "reason") or "the handler gave up"
        super().__init__(self.reason)
