"""What all contract classes share: the fixtures a back end gives, and ways to order concurrency without sleeping.

A back end is tested by subclassing each contract class with a `store` fixture:

    class TestTransactions(TransactionsContract):
        @pytest_asyncio.fixture
        async def store(self, clock):
            async with open_store("memory://some-unique-name", clock=clock) as store:
                yield store

`store` is open, migrated and empty, and takes its time from `clock`. The other fixtures have defaults that a back end
may replace: `open_store_again` opens a further store on the same data (by default with the class of `store`, its `url`
and its options), `other_store` is one such store, and `observer` sees what a test cannot see through the contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol, TypeAlias, TypeVar

import pytest
import pytest_asyncio

from cascade_state.abc import Store
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.observing import Observer
from cascade_state.testing.contracts.rules import capabilities_of

__all__ = ["LEASE", "PATIENCE", "OpenStore", "StoreContract"]

T = TypeVar("T")

LEASE = timedelta(seconds=30)  # a lease long enough for a test that does not move the clock

# Seconds of real time after which a wait that should have ended fails its test; a loaded machine needs some of them.
PATIENCE = 20.0


class OpenStore(Protocol):
    """Opens a further store on the same data; options replace those of the store under test."""

    def __call__(self, **options: Any) -> AbstractAsyncContextManager[Store]:
        """Returns the store, to be entered."""
        ...


Check: TypeAlias = Callable[[bool], Awaitable[None]]


class StoreContract:
    """The base of all contract classes."""

    pytestmark: pytest.MarkDecorator = pytest.mark.asyncio

    observer: Observer

    @pytest.fixture
    def clock(self) -> FrozenClock:
        """The clock of every store of the test; it stands still until the test moves it."""
        return FrozenClock()

    @pytest.fixture
    def store(self) -> Store:
        """The store under test; each back end gives its own."""
        raise NotImplementedError("a contract class is subclassed with a `store` fixture")

    @pytest.fixture
    def open_store_again(self, store: Store) -> OpenStore:
        """Opens a further store on the data of `store`, through connections of its own."""
        back_end: Any = type(store)
        return lambda **options: back_end(store.url, replace(store.options, **options))

    @pytest_asyncio.fixture
    async def other_store(self, open_store_again: OpenStore) -> AsyncIterator[Store]:
        """A second store on the data of `store`: what another process would use."""
        async with open_store_again() as opened:
            yield opened

    @pytest.fixture(name="observer")
    def make_observer(self) -> Observer:
        """What sees the back end from outside; the default fits a back end inside this process."""
        return Observer()

    @pytest.fixture(autouse=True)
    def _prepared(self, request: pytest.FixtureRequest, observer: Observer) -> None:
        """Gives the test its observer, or skips it when the back end does not declare what it needs."""
        self.observer = observer
        needed = capabilities_of(request.function)
        if needed:
            capabilities = request.getfixturevalue("store").capabilities
            missing = [name for name in needed if not getattr(capabilities, name)]
            if missing:
                pytest.skip(f"SKIP-CAPABILITY: {', '.join(missing)}")

    # Ordering concurrency

    def started(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Returns `work` as a task of its own; await it with `finished`."""
        return asyncio.ensure_future(work)

    async def settled(self, *tasks: asyncio.Task[Any]) -> None:
        """Returns when each task is done or waits for somebody else's transaction: nothing more happens by itself."""
        async with asyncio.timeout(PATIENCE):
            await self.observer.settled(tasks)

    async def blocked(self, *tasks: asyncio.Task[Any]) -> None:
        """Waits as `settled` does, and fails the test if one of the tasks did not have to wait."""
        await self.settled(*tasks)
        for task in tasks:
            assert not task.done(), f"did not wait for the other transaction: {task!r}"

    async def finished(self, work: Awaitable[T]) -> T:
        """Returns the result of a task (or any awaitable) that must end by itself now."""
        async with asyncio.timeout(PATIENCE):
            return await work

    # Cancelling at every await

    async def cancelled_at_every_await(self, operation: Callable[[], Coroutine[Any, Any, Any]], check: Check) -> int:
        """Runs `operation` again and again, cancelling it at its first await, its second, … until one runs to its end.

        After each run `check(completed)` looks at what is left. Each await is cancelled twice: when the task has just
        begun to wait, and when what it waits for has happened but the task does not know yet (where results get lost).
        Returns how many cancellations there were.
        """
        cancellations = 0
        for late in (False, True):
            number = 1
            while await self._cancelled(operation(), number, late=late):
                await check(False)
                cancellations += 1
                number += 1
            await check(True)
        return cancellations

    async def _cancelled(self, operation: Coroutine[Any, Any, Any], number: int, *, late: bool) -> bool:
        """Runs `operation` in a task that is cancelled at its await of this number; returns whether it got that far."""
        steps = CancelledAt(operation, number, late=late)

        async def run() -> None:
            await steps

        task = asyncio.ensure_future(run())
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([task])
        if task.cancelled():
            return True
        task.result()  # raises what went wrong
        assert not steps.is_cancelled, f"the cancellation at await {number} was swallowed"
        return False


class CancelledAt:
    """Awaits a coroutine, and cancels the task it runs in at the await of the given number."""

    def __init__(self, work: Coroutine[Any, Any, Any], number: int, *, late: bool) -> None:
        self.is_cancelled: bool = False
        self._work = work
        self._number = number
        self._late = late

    def __await__(self) -> Any:
        steps = self._work.__await__()
        awaits = 0
        resume: Callable[[], Any] = lambda: next(steps)  # noqa: E731 - replaced after each await
        while True:
            try:
                awaited = resume()
            except StopIteration as stop:
                return stop.value
            awaits += 1
            if awaits == self._number:
                self._cancel(awaited)
            try:
                yield awaited
            except BaseException as error:  # whatever the loop throws in goes to the work
                thrown = error
                resume = lambda: steps.throw(thrown)  # noqa: E731, B023 - called before the next turn
            else:
                resume = lambda: next(steps)  # noqa: E731

    def _cancel(self, awaited: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.is_cancelled = True
        if not self._late:
            task.cancel()
        elif awaited is None:
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            awaited.add_done_callback(lambda _: task.cancel())
