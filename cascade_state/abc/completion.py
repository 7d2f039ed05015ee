"""Finishing what must not stay half done when the calling task is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_to_completion"]

T = TypeVar("T")


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end even if the caller is cancelled meanwhile; the cancellation is raised afterwards.

    Commit, rollback and giving back a connection run this way: after them there is no open transaction and no
    connection out of its pool, whatever happened to the caller.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:  # the work's own error; read from the task below
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # the cancellation wins; mark the work's error as seen
        raise cancelled
    return task.result()
