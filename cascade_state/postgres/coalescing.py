"""Coalescing: one-statement operations that wait for a connection at the same time travel as one statement.

While a statement of a line is in flight, further items of that line queue; when it returns, all that wait
leave together as one batch statement with a result for each. Nothing waits when the line is idle and was idle before:
then the caller runs its own item itself, without a task in between. Sixteen concurrent tasks so share round trips
and commits instead of queueing for them.

Tasks that were answered together come back together. So a line that was busy takes one turn of the event loop before it
forms the next batch: nobody waits for a clock, and none of them leaves alone ahead of the others. A line has two lanes,
so that this process prepares one half of the items while the server works on the other.

- Items with a key in common (one flow instance, say) never share a batch, and keep their order.
- A batch that the database refuses as a whole has changed nothing, and is replayed one by one, so that one
  item's error is its own. A batch whose connection broke may have been committed or not: all its callers
  learn that (`StoreUnavailable`).
- A cancelled caller's item is taken out if it has not left yet. One that left with others runs to its end; one
  that its caller runs itself is stopped, and then the statement took effect or it did not. Never half of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from typing import Any, Generic, TypeVar

from cascade_state.errors import StoreUnavailable

__all__ = ["Line"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAXIMUM_BATCH = 64  # beyond this a batch saves little more, and its callers wait for each other
_WHOLE_BATCH = 8  # so few are not divided between the lanes: a statement costs as much as five small items


class Line(Generic[Item, Result]):
    """The queue of one kind of operation.

    Args:
        run: Runs a batch (of one or more items) and returns a result for each.
        keys: What an item must have for itself in a batch.
        lanes: How many statements of this line may be in flight at once.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        keys: Callable[[Item], Collection[Hashable]],
        *,
        lanes: int = 2,
    ) -> None:
        self._run = run
        self._keys = keys
        self._lanes = lanes
        self._in_flight = 0
        self._items_in_flight = 0
        self._is_crowded = False  # the last statement carried several items
        self._busy_keys: set[Hashable] = set()
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._drains: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def submit(self, item: Item) -> Result:
        """Returns the item's result, or raises its error."""
        if not (self._in_flight or self._queue or self._is_crowded):
            return await self._run_alone(item)
        waiting: _Waiting[Item, Result] = _Waiting(item, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if not self._in_flight:
            self._start_drain()
        try:
            return await waiting.outcome
        except asyncio.CancelledError:
            if not waiting.left:
                self._queue.remove(waiting)
                if not self._in_flight and not self._queue:
                    self._idle.set()
            raise

    async def close(self) -> None:
        """Waits until everything that was submitted has its result."""
        await self._idle.wait()

    async def _run_alone(self, item: Item) -> Result:
        keys = self._keys(item)
        self._begin_flight()
        self._items_in_flight += 1
        self._busy_keys.update(keys)
        try:
            results: Sequence[Result] = await self._run((item,))
            return results[0]
        finally:
            self._items_in_flight -= 1
            self._busy_keys.difference_update(keys)
            self._end_flight()
            self._start_drain()

    def _begin_flight(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    def _end_flight(self) -> None:
        self._in_flight -= 1
        if not self._in_flight and not self._queue:
            self._idle.set()

    def _start_drain(self) -> None:
        """Sends what waits in the next turn of the event loop, if there is a lane for it."""
        if self._queue and self._in_flight < self._lanes:
            self._begin_flight()
            task = asyncio.get_running_loop().create_task(self._drain())
            self._drains.add(task)
            task.add_done_callback(self._drains.discard)

    async def _drain(self) -> None:
        try:
            while batch := self._next_batch():
                self._start_drain()  # the other lane takes the rest
                self._is_crowded = len(batch) > 1
                keys = {key for waiting in batch for key in self._keys(waiting.item)}
                self._busy_keys |= keys
                self._items_in_flight += len(batch)
                try:
                    await self._settle(batch)
                finally:
                    self._items_in_flight -= len(batch)
                    self._busy_keys -= keys
                await asyncio.sleep(0)  # those who were answered may come again
        finally:
            self._end_flight()

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        """Takes this lane's share of what waits and may leave now."""
        share = -(-(len(self._queue) + self._items_in_flight) // self._lanes)
        size = min(_MAXIMUM_BATCH, max(_WHOLE_BATCH, share))
        batch: list[_Waiting[Item, Result]] = []
        seen = set(self._busy_keys)
        held_back: list[_Waiting[Item, Result]] = []
        while self._queue and len(batch) < size:
            waiting = self._queue.popleft()
            keys = self._keys(waiting.item)
            if seen.isdisjoint(keys):
                waiting.left = True
                batch.append(waiting)
            else:
                held_back.append(waiting)
            seen.update(keys)  # a later item of a key that is held back must not overtake it
        self._queue.extendleft(reversed(held_back))
        return batch

    async def _settle(self, batch: list[_Waiting[Item, Result]]) -> None:
        """Runs a batch and hands each caller its outcome; never raises an item's error."""
        try:
            results = await self._run([waiting.item for waiting in batch])
        except StoreUnavailable as error:
            for waiting in batch:
                waiting.fail(error)
        except Exception as error:
            if len(batch) == 1:
                batch[0].fail(error)
            else:
                for waiting in batch:
                    await self._settle([waiting])
        except BaseException as error:
            for waiting in batch:
                waiting.fail(error)
            raise
        else:
            for waiting, result in zip(batch, results, strict=True):
                waiting.succeed(result)


class _Waiting(Generic[Item, Result]):
    """An item in the queue, with its caller's future."""

    __slots__ = ("item", "left", "outcome")

    def __init__(self, item: Item, outcome: asyncio.Future[Result]) -> None:
        self.item = item
        self.outcome = outcome
        self.left = False

    def succeed(self, result: Any) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)
