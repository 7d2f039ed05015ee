"""Actors whose steps run in an order that a test chooses: concurrency without chance.

Each actor is one unit of work: begin, operations, commit (or rollback). `run_schedule` lets the actors take their
steps in the given order. A step that has to wait for another actor's transaction does so while the others go on; its
own later steps follow it. So every order can be tried, on back ends that block as well as on those that do not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from cascade_state.abc import Store, UnitOfWork
from cascade_state.abc.store import Isolation
from cascade_state.errors import TransactionAborted
from cascade_state.testing.contracts.base import PATIENCE, StoreContract

__all__ = ["Actor", "all_orders", "run_schedule"]

Operation: TypeAlias = Callable[[UnitOfWork], Awaitable[object]]


class Actor:
    """A unit of work that goes on one step at a time.

    Args:
        isolation: With one that may abort it, an aborted actor does all again in its last step, as `store.run` would.
    """

    def __init__(
        self, store: Store, *operations: Operation, commits: bool = True, isolation: Isolation | None = None
    ) -> None:
        self.commits = commits
        self.is_finished: bool = False
        self._is_aborted = False
        self._store = store
        self._isolation = isolation
        self._uow = store.begin(isolation=isolation)
        self._operations = operations
        self._steps: deque[Callable[[], Awaitable[object]]] = deque(
            [self._begin, *(partial(operation, self._uow) for operation in operations), self._end]
        )
        self._latest: asyncio.Task[None] | None = None

    @property
    def step_count(self) -> int:
        """How many steps the actor takes from begin to end."""
        return len(self._operations) + 2

    def take_step(self) -> asyncio.Task[None]:
        """Starts the next step, which waits for the actor's earlier ones."""
        self._latest = asyncio.ensure_future(self._after(self._latest, self._steps.popleft()))
        return self._latest

    async def abandon(self) -> None:
        """Ends the unit of work of an actor that a failing test left open."""
        if self._latest is not None and not self._latest.done():
            self._latest.cancel()
            await asyncio.wait([self._latest], timeout=PATIENCE)
        if self._latest is not None and not self.is_finished:
            await self._uow.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)

    async def _after(self, earlier: asyncio.Task[None] | None, step: Callable[[], Awaitable[object]]) -> None:
        if earlier is not None:
            await earlier
        if step == self._end:
            self.is_finished = True
        try:
            if not self._is_aborted:
                await step()
        except TransactionAborted:
            if self._isolation is None:
                raise
            self._is_aborted = True
            if step != self._end:
                await self._uow.rollback()
        if self._is_aborted and self.is_finished and self.commits:
            await self._store.run(self._do_all, isolation=self._isolation)

    async def _begin(self) -> None:
        await self._uow.__aenter__()

    async def _do_all(self, uow: UnitOfWork) -> None:
        for operation in self._operations:
            await operation(uow)

    async def _end(self) -> None:
        if self.commits:
            await self._uow.__aexit__(None, None, None)
        else:
            await self._uow.rollback()


async def run_schedule(
    test: StoreContract,
    actors: Sequence[Actor],
    schedule: Iterable[int],
    *,
    after_each: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Runs all steps of the actors; the schedule names the actor of each step by its place in `actors`.

    Args:
        after_each: Called after every step, done or blocked: somebody who watches.
    """
    tasks: list[asyncio.Task[None]] = []
    try:
        for place in schedule:
            tasks.append(actors[place].take_step())
            await test.settled(*(task for task in tasks if not task.done()))
            if after_each is not None:
                await test.finished(after_each())
        for task in tasks:
            await test.finished(task)
        assert all(actor.is_finished for actor in actors), "the schedule does not run every actor to its end"
    finally:
        for actor in actors:
            await actor.abandon()


def all_orders(*counts: int) -> Iterator[tuple[int, ...]]:
    """Yields every order of the actors' steps; `counts` says how many steps each actor takes."""
    if not any(counts):
        yield ()
    for place, count in enumerate(counts):
        if count:
            rest = (*counts[:place], count - 1, *counts[place + 1 :])
            for order in all_orders(*rest):
                yield (place, *order)
