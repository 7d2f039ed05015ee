"""Coroutines run to their end for callers that block: from any thread, and inside a running event loop.

One thread with one event loop does it for the whole process, made at the first call. So what a coroutine
leaves behind (a connection, a task that refills a pool) lives on for the next call, and a call costs
microseconds. A call from that very thread would wait for itself; it gets a loop of its own instead.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["as_plain_function", "run_blocking"]

T = TypeVar("T")

_END_SECONDS = 5.0  # what a process that ends grants to work that nobody waits for


class _LoopThread:
    """A daemon thread that runs an event loop until the process ends."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="cascade_state blocking calls", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            with contextlib.suppress(Exception):
                self.loop.run_until_complete(_end_tasks())
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(_END_SECONDS)


_lock = threading.Lock()
_shared: _LoopThread | None = None


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Returns what the coroutine returns, or raises what it raises.

    An exception that ends the wait (Ctrl-C, a time-out by signal) cancels the coroutine.
    """
    shared = _loop_thread()
    if threading.current_thread() is shared.thread:
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(asyncio.run, coroutine).result()
    future: Future[T] = Future()
    try:
        shared.loop.call_soon_threadsafe(_start, shared.loop, coroutine, future)
        return future.result()
    except BaseException:
        future.cancel()  # does nothing when it was the coroutine that raised
        raise


def _start(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], future: Future[T]) -> None:
    if future.cancelled():
        coroutine.close()
        return
    task = loop.create_task(coroutine)

    def pass_on(task: asyncio.Task[T]) -> None:
        if not future.set_running_or_notify_cancel():
            task.cancelled() or task.exception()  # nobody waits for it any more
        elif task.cancelled():
            future.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def cancel(future: Future[T]) -> None:
        if future.cancelled():
            loop.call_soon_threadsafe(task.cancel)

    task.add_done_callback(pass_on)
    future.add_done_callback(cancel)


def as_plain_function(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """Returns a function that runs a coroutine function in a loop of its own; a plain function stays as it is.

    Somebody else's coroutine may block, and must not hold up everybody's loop.
    """
    if not inspect.iscoroutinefunction(function):
        return function
    return lambda argument: asyncio.run(function(argument))


def _loop_thread() -> _LoopThread:
    global _shared
    with _lock:
        if _shared is None:
            _shared = _LoopThread()
            atexit.register(_end, os.getpid())
        return _shared


def _end(process_id: int) -> None:
    if _shared is not None and os.getpid() == process_id:
        _shared.end()


async def _end_tasks() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), _END_SECONDS)


def _forget_in_child() -> None:
    """A forked child has no threads but its own: it makes a loop thread when it needs one."""
    global _shared, _lock
    _shared, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)
