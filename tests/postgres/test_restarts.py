"""C-45: timers outlive restarts of every process and of the server; none is lost, none is early."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest

from cascade_state import FlowEvent, FlowInstanceFilter, FlowStatus, Store, StoreUnavailable, TimerStatus, open_store
from cascade_state.testing import factories
from tests.postgres.own_server import OwnServer, own_server

pytestmark = pytest.mark.postgres

T = TypeVar("T")

_LEASE = timedelta(seconds=30)
_HOUR = timedelta(hours=1)
_WORKER = Path(__file__).with_name("timer_worker.py")
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 45


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with own_server() as started:
        yield started


@pytest.fixture
async def store(server: OwnServer) -> AsyncIterator[Store]:
    await server.start()  # a test that failed may have left it stopped
    async with open_store(server.url) as opened:
        await opened.migrate()
        async for flow in opened.flow_instances.iterate():
            await opened.flow_instances.remove(flow.flow_instance_id)
        yield opened


@pytest.mark.parametrize("way", ["stop", "stop at once", "crash"])
async def test_timers_are_as_they_were_after_a_restart(server: OwnServer, store: Store, way: str) -> None:
    flow = await factories.add_flow(store)
    schedule = store.timers.schedule
    timers = [
        await schedule(flow.flow_instance_id, "ship", after=after, payload={"number": number})
        for number, after in enumerate((_HOUR, 2 * _HOUR, timedelta(0), timedelta(0), timedelta(0)))
    ]
    held, given_up, released = await store.timers.claim_due("worker-1", lease_duration=_LEASE)
    dead = await store.timers.give_up(given_up, reason="enough")
    await store.timers.release([released])
    await {"stop": server.stop, "stop at once": server.stop_at_once, "crash": server.crash}[way]()
    await server.start()
    async with open_store(server.url) as later:
        listed = await later.timers.list_for_instance(flow.flow_instance_id)
        assert {timer.timer_id: timer.due_at for timer in listed} == {timer.timer_id: timer.due_at for timer in timers}
        assert await later.timers.get(timers[0].timer_id) == timers[0]
        assert await later.timers.list_dead() == [dead]
        assert await later.timers.get(held.timer_id) == held
        (claimed,) = await later.timers.claim_due("worker-2", lease_duration=_LEASE)  # neither held nor early ones
        assert (claimed.timer_id, claimed.attempts, claimed.status) == (released.timer_id, 2, TimerStatus.CLAIMED)
    await _patiently(lambda: store.timers.complete([held]))  # the lease outlived the server, and so did its holder
    assert await store.timers.find(held.timer_id) is None


async def test_a_timer_that_falls_due_while_nobody_is_there_fires_afterwards(server: OwnServer) -> None:
    await server.start()
    async with open_store(server.url) as store:
        await store.migrate()
        flow = await factories.add_flow(store)
        flow = await store.advance(flow.suspend_for_timer("ship", after=timedelta(milliseconds=200)))
    await server.stop()
    await asyncio.sleep(0.3)  # time itself has to pass here
    await server.start()
    async with open_store(server.url) as store:
        claimed = await store.timers.claim_due("worker-1", lease_duration=_LEASE)
        assert flow.pending_timers["ship"] in {timer.timer_id for timer in claimed}


async def test_while_workers_are_killed_and_the_server_restarts_every_timer_fires_once_and_none_early(
    server: OwnServer, store: Store
) -> None:
    definition = await factories.deploy_flow_definition(store)
    timer_count = 80
    for number in range(timer_count):
        flow = factories.running_flow(definition)
        await store.advance(flow.suspend_for_timer("ship", after=timedelta(milliseconds=500 + 40 * number)))
    async with _Workers(server.url).running(3) as workers, asyncio.timeout(_PATIENCE_SECONDS):
        await _fired(store, 10)
        await workers.kill_one()
        await _fired(store, 20)
        await server.stop_at_once()
        await workers.kill_one()
        await server.start()
        await _fired(store, 35)
        await workers.kill_one()
        await server.crash()
        await server.start()
        await _fired(store, 50)
        await workers.kill_all()  # for a while nobody is there at all
        await server.stop()
        await server.start()
        await workers.start(2)
        await _fired(store, timer_count)
    assert await _patiently(store.timers.next_due_at) is None
    assert (await store.statistics()).timers_dead == 0
    fired = await _firings(store)
    assert len(fired) == timer_count
    assert len({event.flow_instance_id for event in fired}) == timer_count
    for event in fired:
        assert event.recorded_at >= datetime.fromisoformat(event.payload["due_at"]), "early"
    assert max(event.payload["attempts"] for event in fired) < 20


async def _fired(store: Store, wanted: int) -> None:
    """Returns when so many flows have ended."""
    ended = FlowInstanceFilter(statuses=[FlowStatus.COMPLETED])
    while True:
        if await _patiently(lambda: store.flow_instances.count(ended)) >= wanted:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _firings(store: Store) -> list[FlowEvent]:
    """Returns the events that the workers recorded, of the flows that are there now."""
    flows = [flow.flow_instance_id async for flow in store.flow_instances.iterate()]
    history = [event for flow in flows for event in await store.flow_instances.history(flow)]
    return [event for event in history if event.event_type == "test.fired"]


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Returns what the call returns once the server answers again."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(_POLL_SECONDS)


class _Workers:
    """Worker processes, and their sudden ends."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = count(1)
        self._processes: list[asyncio.subprocess.Process] = []

    @asynccontextmanager
    async def running(self, number: int) -> AsyncIterator[_Workers]:
        """Starts so many, and kills at the end whoever is left."""
        try:
            await self.start(number)
            yield self
        finally:
            await self.kill_all()

    async def start(self, number: int) -> None:
        """Starts workers; returns when each is at work."""
        for _ in range(number):
            await self._spawn()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for process in self._processes[-number:]:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"

    async def kill_one(self) -> None:
        """Kills the oldest worker, and starts another."""
        await self._kill(self._processes.pop(0))
        await self._spawn()

    async def kill_all(self) -> None:
        """Kills all workers."""
        while self._processes:
            await self._kill(self._processes.pop())

    async def _spawn(self) -> None:
        holder = f"worker-{next(self._numbers)}"
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(_WORKER), self._url, holder, stdout=asyncio.subprocess.PIPE
        )
        self._processes.append(process)

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.kill()
        await process.communicate()
