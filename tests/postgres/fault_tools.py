"""What fault tests share: somebody who ends connections, work that counts, and looks at what is left."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from cascade_state import FlowInstance, Store, StoreUnavailable, TransactionAborted
from tests.wire import Talk, Wire

__all__ = ["PATIENCE_SECONDS", "Count", "LossyWire", "Saboteur", "count_until", "nobody_connected", "pools_are_whole"]

PATIENCE_SECONDS = 20
_POLL_SECONDS = 0.01

_BACKENDS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid()
"""
_WAITING = f"{_BACKENDS} AND wait_event_type = 'Lock'"
_OPEN = f"{_BACKENDS} AND state LIKE 'idle in transaction%'"


class Saboteur:
    """Ends the connections of one application, over a connection of its own."""

    def __init__(self, connection: Any, application_name: str) -> None:
        self.terminated = 0
        self._connection = connection
        self._name = application_name
        self._chance = random.Random(7)

    async def terminate(self, *pids: int) -> None:
        """Ends backends, and returns when they are gone."""
        for pid in pids:
            # Waits up to ten seconds for the backend to be gone; says false when it is gone already.
            self.terminated += await self._connection.fetchval("SELECT pg_terminate_backend($1, 10000)", pid)

    async def terminate_one(self) -> None:
        """Ends one of the application's backends, if it has any."""
        pids = await self._pids(_BACKENDS)
        if pids:
            await self.terminate(self._chance.choice(pids))

    async def terminate_all(self) -> int:
        """Ends all of the application's backends; returns how many there were."""
        pids = await self._pids(_BACKENDS)
        await self.terminate(*pids)
        return len(pids)

    async def waiting_pid(self) -> int:
        """Returns a backend of the application that waits for a lock, as soon as there is one."""
        while True:
            pids = await self._pids(_WAITING)
            if pids:
                return pids[0]
            await asyncio.sleep(_POLL_SECONDS)

    async def open_transactions(self) -> list[int]:
        """Returns the application's backends that are in a transaction in which nobody works."""
        return await self._pids(_OPEN)

    async def connected(self) -> list[int]:
        """Returns the application's backends."""
        return await self._pids(_BACKENDS)

    async def _pids(self, query: str) -> list[int]:
        return [row["pid"] for row in await self._connection.fetch(query, self._name)]


async def nobody_connected(saboteur: Saboteur) -> None:
    """Returns when the application has no connection left; a closed one takes the server a moment to notice."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if not await saboteur.connected():
                return
            await asyncio.sleep(_POLL_SECONDS)


async def pools_are_whole(store: Store, pool_size: int) -> None:
    """Uses every connection of the pool at the same time: one that was never given back would be missed."""
    everybody = asyncio.Barrier(pool_size)

    async def use() -> None:
        async with store.begin() as uow:
            await uow.flow_instances.count()
            await everybody.wait()

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(pool_size):
            group.create_task(use())


@dataclass
class Count:
    """What one flow's counting came to."""

    acknowledged: int = 0
    failures: int = 0

    async def check(self, store: Store, flow: FlowInstance) -> None:
        """Checks that every acknowledged step is stored once, in order, and that nothing else is."""
        stored = await store.flow_instances.get(flow.flow_instance_id)
        assert stored.completed_steps == {f"step-{number}" for number in range(1, self.acknowledged + 1)}
        assert stored.version == flow.version + self.acknowledged
        history = await store.flow_instances.history(flow.flow_instance_id, limit=10_000)
        assert [event.sequence for event in history] == list(range(1, len(history) + 1))
        steps = [event.payload["step_id"] for event in history if event.event_type == "step.completed"]
        assert steps == [f"step-{number}" for number in range(1, self.acknowledged + 1)]
        state = await store.component_states.find(flow.flow_instance_id, "counter")
        assert (None if state is None else state.state) == (self.acknowledged or None)


async def count_until(store: Store, flow: FlowInstance, is_over: asyncio.Event) -> Count:
    """Completes steps one by one until it is over, in turn by a single call and in a unit of work.

    After an error it reads what is stored: a step whose acknowledgement was lost is there or not, and is not repeated
    when it is there.
    """
    count = Count()
    instance: FlowInstance | None = flow
    while instance is None or not is_over.is_set():
        try:
            if instance is None:
                instance = await store.flow_instances.get(flow.flow_instance_id)
                assert len(instance.completed_steps) >= count.acknowledged, "acknowledged work is gone"
                count.acknowledged = len(instance.completed_steps)
            else:
                instance = await _one_step(store, instance, count.acknowledged + 1)
                count.acknowledged += 1
        except (StoreUnavailable, TransactionAborted):
            count.failures += 1
            instance = None
            await asyncio.sleep(_POLL_SECONDS)
    return count


async def _one_step(store: Store, instance: FlowInstance, number: int) -> FlowInstance:
    step = instance.complete_step(f"step-{number}")
    if number % 2:
        return await store.advance(step, put_states={"counter": number})
    async with store.begin() as uow:
        await uow.component_states.put(instance.flow_instance_id, "counter", number)
        advanced = await uow.advance(step)
    return advanced


class LossyWire(Wire):
    """A proxy that, when told so, lets a COMMIT through and cuts the connection before the answer."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.lost = 0
        self._armed = False

    def lose_next_commit(self) -> None:
        """Loses the answer to the next COMMIT."""
        self._armed = True

    def lets_request_through(self, talk: Talk, chunk: bytes) -> bool:
        if self._armed and b"COMMIT" in chunk:
            self._armed, talk.is_ending = False, True
        return super().lets_request_through(talk, chunk)

    def lets_answer_through(self, talk: Talk, chunk: bytes) -> bool:
        if talk.is_ending:  # the server has answered: the commit is done
            self.lost += 1
            raise ConnectionResetError
        return super().lets_answer_through(talk, chunk)
