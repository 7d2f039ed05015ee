"""Hints: where something may have become claimable, was recorded, or has changed; never the guarantee."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias

from cascade_state.errors import UsageError
from cascade_state.model.arguments import check_duration

if TYPE_CHECKING:
    from typing import Self

__all__ = ["HintListener", "HintTopic"]

# "work": a timer, a delivery or a flow may be claimable, now or later; "events": history was recorded (the feed);
# "members": the workers or the owners of a replica set changed, told by the partition of the set's name.
HintTopic: TypeAlias = Literal["work", "events", "members"]


class HintListener(ABC):
    """Hears soon after a commit in which partitions something happened: `async with store.listen() as hints:`.

    What is committed once it was entered is heard within some milliseconds, unless the hint is lost: the store that
    committed has hints switched off, the transaction was the caller's own (`enlist`), or the connection was broken.
    So whoever listens also polls, seldom. A broken connection is made again by itself, and counts as a hint of every
    partition. It belongs to one task.
    """

    def __init__(self) -> None:
        self._heard: set[int] = set()
        self._wake = asyncio.Event()
        self._is_entered = False

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise UsageError("a listener is entered once; listen again")
        self._is_entered = True
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    @abstractmethod
    def is_listening(self) -> bool:
        """Whether hints can arrive now; while they cannot, `wait` only lets its time-out pass."""

    async def wait(self, timeout: timedelta | None = None) -> frozenset[int]:
        """Returns the partitions hinted since the last call, as soon as there is one; none when the time is over.

        Args:
            timeout: None waits for ever.
        """
        if timeout is not None:
            check_duration(timeout, "timeout", allow_zero=True)
        if not self._heard:
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                    await self._wake.wait()
        heard, self._heard = frozenset(self._heard), set()
        return heard

    def hear(self, partitions: Iterable[int]) -> None:
        """Takes hints in; the back end calls it."""
        self._heard.update(partitions)
        if self._heard:
            self._wake.set()

    @abstractmethod
    async def _start(self) -> None: ...

    @abstractmethod
    async def _stop(self) -> None: ...
