"""SIGTERM and SIGINT as calls to stop, for any number of loops in one process.

Handlers are set for as long as some loop runs, and what was set before is put back afterwards.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["called_on_signals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_callbacks: list[Callable[[], None]] = []
_before: dict[signal.Signals, Any] = {}


@contextmanager
def called_on_signals(callback: Callable[[], None]) -> Iterator[None]:
    """Has `callback` called in the running event loop at each SIGTERM and SIGINT, if this is the main thread.

    Python delivers signals to its main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    if not _callbacks:
        _set(loop)
    _callbacks.append(callback)
    try:
        yield
    finally:
        _callbacks.remove(callback)
        if not _callbacks:
            _put_back(loop)


def _set(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(NotImplementedError):  # a loop without signals: Windows
        for number in _SIGNALS:
            before = signal.getsignal(number)
            loop.add_signal_handler(number, _call)
            _before[number] = before


def _put_back(loop: asyncio.AbstractEventLoop) -> None:
    for number, before in _before.items():
        loop.remove_signal_handler(number)
        if before is not None:  # None: set by something that is not Python
            signal.signal(number, before)
    _before.clear()


def _call() -> None:
    for callback in _callbacks:
        callback()
