"""What a contract test must see of a back end that the contract itself does not show."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from cascade_state.abc import Store

__all__ = ["Observer"]

_TURNS = 100  # of the event loop: more than any call inside one process takes to reach the point where it waits


class Observer:
    """Sees a back end from outside. This one fits a back end that lives inside the process; others override it."""

    async def settled(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        """Returns when each task is done or waits for somebody else's transaction."""
        for _ in range(_TURNS):
            if all(task.done() for task in tasks):
                return
            await asyncio.sleep(0)

    async def open_transactions(self) -> list[str]:
        """Returns a description of each transaction that is open although nobody works in it."""
        return []

    async def make_undecodable(self, store: Store, flow_instance_id: UUID) -> None:
        """Damages a stored flow so that it cannot be decoded."""
        pytest.skip("SKIP-OBSERVER: this back end has no way to damage a stored flow")
