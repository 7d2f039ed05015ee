"""Which calls fail, and how: written down beforehand, or drawn from a seed; never left to chance."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, get_args

from cascade_state.errors import InvalidArgument, StoreUnavailable
from cascade_state.model.arguments import check_count, check_duration, check_key

__all__ = ["Fault", "FaultKind", "FaultSchedule", "FiredFault"]

FaultKind: TypeAlias = Literal["before_commit", "after_commit", "drop_connection", "delay"]

_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong: `Fault("advance", "after_commit", at=3)`.

    Attributes:
        call: The call it befalls, as in `FaultPlan.calls`; `*` stands for any text, so that `timers.*` is every call of
            a repository.
        kind: What happens. "before_commit": the call fails, and nothing of it is stored. "after_commit": it is stored,
            and fails all the same: the answer got lost. "drop_connection": the connection breaks under it, and
            nothing is stored; a unit of work is of no use any more. "delay": it waits, then goes on.
        at: The first of the matching calls that it befalls, counted from 1.
        times: How many of them in a row; None: all from there on.
        error: Makes what is raised; None: `StoreUnavailable`, as a store raises when its connection fails.
        duration: How long "delay" waits.
        wait: What "delay" waits for instead, such as the `wait` of an `asyncio.Event`.
    """

    call: str
    kind: FaultKind
    at: int = 1
    times: int | None = 1
    error: Callable[[], BaseException] | None = None
    duration: timedelta = timedelta(0)
    wait: Callable[[], Awaitable[object]] | None = None

    def __post_init__(self) -> None:
        check_key(self.call, "call")
        if self.kind not in _KINDS:
            raise InvalidArgument(argument="kind", reason=f"must be one of {', '.join(_KINDS)}")
        check_count(self.at, "at")
        if self.times is not None:
            check_count(self.times, "times")
        check_duration(self.duration, "duration", allow_zero=True)

    def matches(self, call: str) -> bool:
        """Tells whether a call is one of those that it counts."""
        return fnmatchcase(call, self.call)

    def befalls(self, number: int) -> bool:
        """Tells whether it befalls the matching call of this number."""
        return number >= self.at and (self.times is None or number < self.at + self.times)

    def made_error(self, call: str) -> BaseException:
        """Returns what is to be raised."""
        return StoreUnavailable(reason=f"injected fault at {call}") if self.error is None else self.error()


@dataclass(frozen=True, slots=True)
class FiredFault:
    """A fault that happened: at which call, and the how many-th of this name it was."""

    call: str
    number: int
    kind: FaultKind


class FaultSchedule:
    """Decides for each call, in the order in which they come, what is to befall it."""

    def __init__(self, faults: Iterable[Fault], *, seed: int | None, rate: float, kinds: Iterable[FaultKind]) -> None:
        self._faults = [(fault, Counter[str]()) for fault in faults]
        self._seed = seed
        self._kinds = tuple(kinds)
        if not 0 <= rate <= 1:
            raise InvalidArgument(argument="rate", reason="must be from 0 to 1")
        if any(kind not in _KINDS for kind in self._kinds) or not self._kinds:
            raise InvalidArgument(argument="kinds", reason=f"must be some of {', '.join(_KINDS)}")
        self._rate = rate
        self._numbers: Counter[str] = Counter()
        self.calls: list[str] = []
        self.fired: list[FiredFault] = []

    def next_fault(self, call: str) -> Fault | None:
        """Notes a call, and returns what befalls it: the first fault that does, else one drawn from the seed."""
        self.calls.append(call)
        self._numbers[call] += 1
        chosen: Fault | None = None
        for fault, seen in self._faults:
            if fault.matches(call):
                seen["matching"] += 1
                if chosen is None and fault.befalls(seen["matching"]):
                    chosen = fault
        chosen = chosen or self._drawn(call)
        if chosen is not None:
            self.fired.append(FiredFault(call, self._numbers[call], chosen.kind))
        return chosen

    def _drawn(self, call: str) -> Fault | None:
        """Depends on the seed, the name and its number only: tasks that take turns differently meet the same faults."""
        if self._seed is None:
            return None
        dice = random.Random(f"{self._seed}/{call}/{self._numbers[call]}")  # noqa: S311 - reproducible on purpose
        return Fault(call, dice.choice(self._kinds)) if dice.random() < self._rate else None
