"""Feed consumers whose processes are killed, stopped and continued, and whose server goes away."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest

from cascade_state import FeedConsumer, FlowEvent, FlowInstance, Store, UnitOfWork, open_store
from cascade_state.postgres.schema import migrate_database
from cascade_state.testing import factories
from cascade_state.testing.contracts import rule
from cascade_state.testing.contracts.feed_consumers import running
from tests.coordination.feed_effects import QUICK, Effects, keep_effects
from tests.postgres.own_server import OwnServer, own_server

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(240)]  # processes start slowly on a busy machine

_ROOT = Path(__file__).resolve().parent.parent.parent
_PATIENCE = 60.0  # several processes start on a machine that is busy
_PAUSE_SECONDS = 0.05
_KILLS = 3


class Process:
    """A worker of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self, word: str) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            while (line := await self._process.stdout.readline()).strip() != word.encode():
                assert line, "the worker has ended"

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go on\n")
        await self._process.stdin.drain()

    async def ended(self) -> int:
        async with asyncio.timeout(_PATIENCE):
            return await self._process.wait()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.ended()


@asynccontextmanager
async def a_worker(url: str, name: str, *options: str) -> AsyncIterator[Process]:
    """Starts a worker; whatever happens, it is gone at the end."""
    process = Process(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.coordination.feed_worker", url, name, *options),
            cwd=_ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
    )
    try:
        await process.says("ready")
        yield process
    finally:
        await process.kill()


@pytest.fixture
async def effects(empty_database_url: str) -> Effects:
    await migrate_database(empty_database_url, partition_count=16)
    found = Effects(empty_database_url)
    await found.make()
    return found


@pytest.fixture
async def flow_store(empty_database_url: str, effects: Effects) -> AsyncIterator[Store]:
    async with open_store(empty_database_url, partition_count=16) as store:
        yield store


async def until_there(effects: Effects, count: int, worker: str | None = None) -> None:
    """Returns when so many events have had their effect, by this worker if one is named."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            by_worker = await effects.workers()
            if (by_worker.get(worker, 0) if worker else sum(by_worker.values())) >= count:
                return
            await asyncio.sleep(_PAUSE_SECONDS)


class Writer:
    """Advances flows without end, and knows what it stored."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.expected: dict[UUID, int] = {}
        self.is_done = False

    @property
    def total(self) -> int:
        return sum(self.expected.values())

    async def write(self, count: int) -> None:
        definition = await factories.deploy_flow_definition(self._store)
        flows: list[FlowInstance] = [await factories.add_flow(self._store, definition) for _ in range(count)]
        self.expected = {flow.flow_instance_id: 2 for flow in flows}
        number = 0
        while not self.is_done:
            place = number % count
            flows[place] = await self._store.advance(flows[place].complete_step(f"step-{number}"))
            self.expected[flows[place].flow_instance_id] += 1
            number += 1
            await asyncio.sleep(0.01)


@rule("ORC-03", "ORC-05")
async def test_effects_are_exactly_once_while_workers_are_killed_and_replaced(
    empty_database_url: str, flow_store: Store, effects: Effects
) -> None:
    writer = Writer(flow_store)
    writing = asyncio.ensure_future(writer.write(24))
    async with a_worker(empty_database_url, "stayer"):
        for number in range(_KILLS):
            async with a_worker(empty_database_url, f"victim-{number}") as victim:
                await until_there(effects, 1, f"victim-{number}")
                await victim.kill()  # with something in hand, more often than not
        writer.is_done = True
        await writing
        await until_there(effects, writer.total)
    await effects.check(writer.expected)
    workers = await effects.workers()
    assert set(workers) == {"stayer", *(f"victim-{number}" for number in range(_KILLS))}
    assert (await flow_store.statistics()).consumer_failures == {}
    assert (await flow_store.feeds.lag("invoices")).events == 0


@rule("ORC-13")
async def test_a_worker_that_is_stopped_with_a_batch_in_hand_is_replaced_and_stores_nothing_later(
    empty_database_url: str, flow_store: Store, effects: Effects
) -> None:
    flow = await factories.add_flow(flow_store)
    async with a_worker(empty_database_url, "stopped", "hold") as stopped:
        await stopped.says("holding")
        stopped.send(signal.SIGSTOP)
        async with a_worker(empty_database_url, "other"):
            await until_there(effects, 2)  # its transaction has been ended by the server, its share taken over
            stopped.send(signal.SIGCONT)
            await stopped.go_on()
            flow = await flow_store.advance(flow.complete_step("charge"))
            await until_there(effects, 3)
            stopped.send(signal.SIGTERM)
            assert await stopped.ended() == 0
    await effects.check({flow.flow_instance_id: 3})
    assert (await effects.workers())["other"] >= 2
    assert (await flow_store.statistics()).consumer_failures == {}


@pytest.fixture(scope="module")
def a_server() -> Iterator[OwnServer]:
    with own_server() as server:
        yield server


@rule("Feed", "ORC-10")
async def test_a_consumer_gets_over_the_restart_of_its_server(a_server: OwnServer) -> None:
    await migrate_database(a_server.url, partition_count=16)
    effects = Effects(a_server.url)
    await effects.make()

    async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
        await keep_effects(uow, events, "one")

    async with open_store(a_server.url, partition_count=16) as store:
        flows = [await factories.add_flow(store) for _ in range(6)]
        consumer = FeedConsumer(store, name="invoices", handler=handle, handle_signals=False, **QUICK)
        async with running(consumer):
            await until_there(effects, 4)
            await a_server.stop_at_once()
            await a_server.start()

            async def advance(flow: FlowInstance) -> FlowInstance:
                return await store.run(lambda uow: uow.advance(flow.complete_step("charge")), retries=20)

            flows = [await advance(flow) for flow in flows]
            await until_there(effects, 18)
        await effects.check({flow.flow_instance_id: 3 for flow in flows})
