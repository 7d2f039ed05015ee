"""Worker processes that are killed, stopped, continued, and come and go: effects are counted in the database."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cascade_state import CascadeStateError, Store, open_store
from cascade_state.testing import factories
from cascade_state.testing.contracts import rule
from tests.postgres.own_server import OwnServer, own_server

# Each test starts several processes, of which each imports everything; a busy machine takes a minute for that.
pytestmark = [pytest.mark.postgres, pytest.mark.timeout(180)]

_PROGRAM = Path(__file__).with_name("worker_process.py")
_PATIENCE = 45.0
_EVER = datetime.min.replace(tzinfo=UTC)
_More = Callable[[], Awaitable[None]]
_EFFECTS = "CREATE TABLE effects (flow_instance_id text, step_id text, worker text, at timestamptz DEFAULT now())"


class _Process:
    """A worker process, and what it said."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.said: list[str] = []
        self._process = process
        self._heard = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def says(self, *words: str) -> str:
        """Returns the first line that begins with one of the words, as soon as there is one."""
        async with asyncio.timeout(_PATIENCE), self._heard:
            while True:
                for line in self.said:
                    if line.split()[0] in words:
                        return line
                assert self._process.returncode is None or not self._reading.done(), f"{self.name} ended: {self.said}"
                await self._heard.wait()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def stop(self) -> None:
        """Stops it as a deployment does; it must end by itself, and well."""
        self._process.terminate()
        async with asyncio.timeout(_PATIENCE):
            assert await self._process.wait() == 0
        await self._reading
        assert self.said[-1] == "stopped"

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._heard:
                self.said.append(line.decode().strip())
                self._heard.notify_all()
        async with self._heard:
            self._heard.notify_all()


@asynccontextmanager
async def _started(url: str, name: str, replica_set: str | None) -> AsyncIterator[_Process]:
    arguments = [sys.executable, str(_PROGRAM), url, name, *([replica_set] if replica_set else [])]
    process = _Process(name, await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE))
    try:
        yield process
    finally:
        await process.kill()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store with the table of effects."""
    async with open_store(database_url) as opened:
        await _execute(database_url, _EFFECTS)
        yield opened


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _counted(url: str) -> Counter[tuple[str, str]]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT flow_instance_id, step_id FROM effects")
        return Counter((row["flow_instance_id"], row["step_id"]) for row in rows)
    finally:
        await connection.close()


async def _workers(url: str, since: datetime = _EVER) -> set[str]:
    """Returns who has left an effect: each of these really worked."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT DISTINCT worker FROM effects WHERE at > $1", since)
        return {row["worker"] for row in rows}
    finally:
        await connection.close()


async def _all_worked(url: str, workers: Iterable[_Process], more: _More, since: datetime = _EVER) -> None:
    """Gives more work until each of them has left an effect since then."""
    async with asyncio.timeout(_PATIENCE):
        while not {worker.name for worker in workers} <= await _workers(url, since):
            await more()
            await asyncio.sleep(0.1)


async def _add_timers(store: Store, count: int, definition: Any) -> set[tuple[str, str]]:
    """Adds a flow with timers, some of them due later; returns the effects to be."""
    flow = await factories.add_flow(store, definition)
    expected = set()
    for number in range(count):
        after = timedelta(milliseconds=number * 10)
        await store.timers.schedule(flow.flow_instance_id, f"timer-{number}", after=after)
        expected.add((str(flow.flow_instance_id), f"timer-{number}"))
    return expected


async def _add_deliveries(store: Store, count: int, definition: Any) -> set[tuple[str, str]]:
    expected = set()
    for _ in range(count):
        key = factories.unique("key")
        flow = await factories.add_flow(store, definition, waits_for=key)
        await store.correlations.publish(key, {"n": 1}, event_id="evt-1")
        expected.add((str(flow.flow_instance_id), "ship"))
    return expected


async def _all_done(url: str, expected: set[tuple[str, str]], *, patience: float = _PATIENCE) -> None:
    """Waits until every effect is there, and checks that each is there once and no other."""
    async with asyncio.timeout(patience):
        while True:
            if set(await _counted(url)) >= expected:
                break
            await asyncio.sleep(0.1)
    await asyncio.sleep(0.3)  # time for what must not come
    counted = await _counted(url)
    assert {item: times for item, times in counted.items() if times != 1} == {}
    assert set(counted) == expected


@pytest.mark.parametrize("replica_set", [None, "shipping"])
@rule("Workers", "ORC-05")
async def test_one_of_three_workers_is_killed_in_the_middle(
    store: Store, database_url: str, replica_set: str | None
) -> None:
    definition = await factories.deploy_flow_definition(store)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(_started(database_url, name, replica_set)) for name in ("a", "b", "c")
        ]
        for worker in workers:
            await worker.says("ready")
        if replica_set is not None:
            await _shared_by(store, replica_set, 3)
        expected: set[tuple[str, str]] = set()
        for _ in range(12):
            expected |= await _add_timers(store, 10, definition)
        expected |= await _add_deliveries(store, 40, definition)

        async def more() -> None:
            nonlocal expected
            expected |= await _add_timers(store, 10, definition)

        await _all_worked(database_url, workers, more)
        await more()  # so that it is in the middle of something
        victim = workers[1]
        await victim.kill()
        for _ in range(6):
            expected |= await _add_timers(store, 10, definition)
        await _all_done(database_url, expected)
        assert await _workers(database_url) == {"a", "b", "c"}
        if replica_set is not None:
            await _shared_by(store, replica_set, 2)
        for worker in (workers[0], workers[2]):
            await worker.stop()
    assert (await store.statistics()).timers_pending == 0


async def _shared_by(store: Store, replica_set: str, count: int) -> None:
    async with asyncio.timeout(_PATIENCE):
        while True:
            owners = Counter(item.owner for item in await store.replica_sets.list_assignments(replica_set))
            if None not in owners and len(owners) == count and max(owners.values()) - min(owners.values()) <= 1:
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("replica_set", [None, "shipping"])
@rule("Workers", "C-50")
async def test_a_worker_that_was_stopped_past_its_lease_stores_nothing_stale(
    store: Store, database_url: str, replica_set: str | None
) -> None:
    flow = await factories.add_flow(store)
    async with _started(database_url, "sleeper", replica_set) as sleeper:
        await sleeper.says("ready")
        timer = await store.timers.schedule(flow.flow_instance_id, "slow", after=timedelta(0))
        await sleeper.says("holding")
        sleeper.send(signal.SIGSTOP)
        # Its transaction holds no row lock and no fence for longer than its lease: others get the timer and fire it.
        async with _started(database_url, "heir", replica_set) as heir:
            await heir.says("accepted")
            sleeper.send(signal.SIGCONT)
            line = await sleeper.says("refused", "accepted")
            assert line.split()[0] == "refused", line
            await heir.stop()
        await sleeper.stop()
    assert await store.timers.find(timer.timer_id) is None
    assert await _counted(database_url) == {(str(flow.flow_instance_id), "slow"): 1}
    assert await _workers(database_url) == {"heir"}
    assert (await store.flow_instances.get(flow.flow_instance_id)).completed_steps == {"slow"}


@rule("Workers")
async def test_orphans_of_a_killed_process_are_taken_over(store: Store, database_url: str) -> None:
    definition = await factories.deploy_flow_definition(store)
    flows = [await factories.add_flow(store, definition) for _ in range(20)]
    await store.flow_instances.claim("killed", lease_duration=timedelta(milliseconds=200))
    async with _started(database_url, "a", None) as one, _started(database_url, "b", None) as two:
        await _all_done(database_url, {(str(flow.flow_instance_id), "orphan") for flow in flows})
        await one.stop()
        await two.stop()


@pytest.fixture
def restartable() -> Iterator[OwnServer]:
    with own_server() as started:
        yield started


@rule("Workers")
async def test_workers_get_over_a_server_that_breaks_off(restartable: OwnServer) -> None:
    url = restartable.url
    async with open_store(url) as store:
        await store.migrate()
        await _execute(url, _EFFECTS)
        definition = await factories.deploy_flow_definition(store)
        async with (
            _started(url, "a", "shipping") as one,
            _started(url, "b", "shipping") as two,
            _started(url, "c", None) as three,
        ):
            for worker in (one, two, three):
                await worker.says("ready")
            await _shared_by(store, "shipping", 2)
            expected: set[tuple[str, str]] = set()
            for _ in range(10):
                expected |= await _add_timers(store, 10, definition)
            expected |= await _add_deliveries(store, 30, definition)
            for worker in (one, two, three):
                await worker.says("busy")
            await restartable.stop_at_once()
            await restartable.start()

            async def more() -> None:
                nonlocal expected
                try:
                    expected |= await _add_timers(store, 10, definition)
                except CascadeStateError:  # the store's connections broke, too
                    expected |= await _left_behind(url)

            await _all_worked(url, (one, two, three), more, since=await _now(url))
            await _all_done(url, expected)
            for worker in (one, two, three):
                await worker.stop()


async def _now(url: str) -> datetime:
    connection = await asyncpg.connect(url)
    try:
        now: datetime = await connection.fetchval("SELECT clock_timestamp()")
        return now
    finally:
        await connection.close()


async def _left_behind(url: str) -> set[tuple[str, str]]:
    """What a call that broke off had already scheduled."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT flow_instance_id, step_id FROM timers")
        effects = await connection.fetch("SELECT flow_instance_id, step_id FROM effects")
        return {(str(row["flow_instance_id"]), row["step_id"]) for row in (*rows, *effects)}
    finally:
        await connection.close()


@rule("Workers", "ORC-03", "ORC-04")
async def test_a_minute_of_joining_and_leaving_under_load(store: Store, database_url: str) -> None:
    """Workers are started, stopped and killed at random; in the end each effect is there once."""
    chance = random.Random(4)
    definition = await factories.deploy_flow_definition(store)
    expected: set[tuple[str, str]] = set()
    names: set[str] = set()
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        alive: list[_Process] = []

        async def join() -> None:
            name = f"worker-{len(names)}"
            names.add(name)
            alive.append(await stack.enter_async_context(_started(database_url, name, "shipping")))

        for _ in range(3):
            await join()
        end = loop.time() + 60
        while loop.time() < end:
            expected |= await _add_timers(store, 12, definition)
            expected |= await _add_deliveries(store, 6, definition)
            if chance.random() < 0.25:
                busy = await _workers(database_url)
                worked = [worker for worker in alive if worker.name in busy]
                what = chance.choice(["join", "stop", "kill"])
                if len(alive) < 3 or (what == "join" and len(alive) < 5):
                    await join()
                elif worked:
                    worker = chance.choice(worked)
                    alive.remove(worker)
                    await (worker.kill() if what == "kill" else worker.stop())
            await asyncio.sleep(chance.uniform(0.1, 0.6))

        async def more() -> None:
            nonlocal expected
            expected |= await _add_timers(store, 12, definition)

        await _all_worked(database_url, alive, more)
        await _all_done(database_url, expected, patience=90)
        for worker in alive:
            await worker.stop()
    assert await _workers(database_url) == names
    assert len(names) > 4
    assert (await store.statistics()).deliveries_pending == 0
