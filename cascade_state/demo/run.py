"""The run itself: a server, three workers, one killed and one joining in the middle, and the checks at the end."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from cascade_state import Store, UsageError, open_store
from cascade_state.demo.definition_files import load_definitions
from cascade_state.demo.effects import TableEffects
from cascade_state.demo.invariants import Evidence, Verdict, check_all
from cascade_state.demo.scenario import Scenario
from cascade_state.demo.worker_process import WorkerProcess
from cascade_state.demo.world import World

__all__ = ["Kill", "Options", "Run", "Show", "run_demo"]

_WORKERS = 3
_OBSERVE_SECONDS = 0.02
_KILL_SHARE = 0.25  # of the flows have ended: late enough to have everything under way, early enough to leave work
_ALL_KINDS_SHARE = 0.5  # up to here the kill waits for a moment with every kind of claim in hand
_SURELY_SECONDS = 1.0  # a slow call that began less than this ago cannot be over yet


class Show(Protocol):
    """Whoever is told how the run goes."""

    def say(self, text: str) -> None:
        """Something happened."""

    def progress(self, world: World, total: int) -> None:
        """This far it has come; called often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run. `url` None: an embedded server in a temporary directory."""

    flow_count: int = 240
    seed: int = 1
    url: str | None = None
    timeout_seconds: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """The kill of a worker. `held` is what it had in hand; `again` what the others began once more.

    `killed_at` is by the database's clock.
    """

    worker: str
    killed_at: datetime
    process_id: int
    after_seconds: float
    held: tuple[tuple[str, str, str], ...]
    again: tuple[tuple[str, str], ...]
    recovered_seconds: float | None

    @property
    def flows(self) -> set[str]:
        """The business keys of the flows that it had in hand."""
        return {key for _, key, _ in self.held}


@dataclass(kw_only=True)
class Run:
    """All that a run brought to light. `seconds` tells how long each phase took."""

    options: Options
    scenario: Scenario
    server_version: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    world: World
    kill: Kill | None = None
    evidence: Evidence
    verdicts: list[Verdict]

    @property
    def is_good(self) -> bool:
        """Whether every invariant holds."""
        return all(verdict.holds for verdict in self.verdicts)


async def run_demo(options: Options, show: Show) -> Run:
    """Returns a run that has ended, well or not; everything that it started is stopped and removed.

    Raises:
        WorkerFailed: A worker ended by itself.
        CascadeStateError: The server does not start, or the store cannot be used.
    """
    scenario = Scenario.make(flow_count=options.flow_count, seed=options.seed)
    seconds: dict[str, float] = {}
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        with _phase(seconds, "server"):
            store = await stack.enter_async_context(_opened_store(options))
        run = await _run_on(store, options, scenario, seconds, show)
    seconds["total"] = time.monotonic() - started
    return run


async def _run_on(store: Store, options: Options, scenario: Scenario, seconds: dict[str, float], show: Show) -> Run:
    version = await _server_version(store)
    show.say(f"PostgreSQL {version} is up after {seconds['server']:.1f} s ({_place(options)})")
    effects = TableEffects(store)
    with _phase(seconds, "migration"):
        await store.migrate()
        await effects.create_table()
    show.say(f"migrated in {seconds['migration']:.1f} s")
    for definition in load_definitions().values():
        await store.flow_definitions.deploy(definition)
    world = World(store, scenario)
    workers: list[WorkerProcess] = []
    with _phase(seconds, "work"):
        kill = await _work(store, options, world, show, workers)
    with _phase(seconds, "checks"):
        evidence = Evidence(
            scenario=scenario,
            flows=[flow async for flow in store.flow_instances.iterate()],
            history=world.history,
            effects=await effects.list_all(),
            statistics=await store.statistics(),
            logs=[worker.log() for worker in workers],
        )
        verdicts = check_all(evidence)
    return Run(
        options=options,
        scenario=scenario,
        server_version=version,
        seconds=seconds,
        world=world,
        kill=kill,
        evidence=evidence,
        verdicts=verdicts,
    )


async def _work(store: Store, options: Options, world: World, show: Show, workers: list[WorkerProcess]) -> Kill | None:
    """Lets the workers do it, kills one and starts another one; returns how it went, None if it never got that far."""
    total = sum(1 for _ in world.scenario.all_flows())
    end = time.monotonic() + options.timeout_seconds
    kill: Kill | None = None
    shares = _Shares(store.options.partition_count, workers, show)
    try:
        await _start_workers(store, options, workers, show)
        begun = time.monotonic()
        await world.begin()
        show.say(f"{world.published.total()} events published, then {len(world.scenario.flows)} flows added")
        while world.ended < total and time.monotonic() < end:
            _check_alive(workers)
            await world.observe()
            show.progress(world, total)
            shares.tell(total - world.ended)
            victim = next((worker for worker in workers if _is_time_to_kill(world, worker, workers, total)), None)
            if kill is None and victim is not None:
                await victim.kill()
                moment = time.monotonic()
                kill = _killed(victim, await _database_time(store), moment - begun)
                show.say(f"{victim.name} killed (SIGKILL) with {_counted(kill.held)} in hand")
                await _start_worker(store, options, f"worker-{_WORKERS + 1}", workers, show)
            await asyncio.sleep(_OBSERVE_SECONDS)
        living = _living(workers)
        await asyncio.gather(*(worker.stop() for worker in living))
        await world.observe()  # what they committed last
        show.say(f"{world.ended} of {total} flows have ended; {len(living)} workers stopped")
        return None if kill is None else _recovered(kill, living, moment)
    finally:
        for worker in _living(workers):
            await worker.kill()


def _living(workers: list[WorkerProcess]) -> list[WorkerProcess]:
    return [worker for worker in workers if worker.is_running]


def _check_alive(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        if not worker.killed:
            worker.check_alive()


class _Shares:
    """Tells how the partitions are shared, each time that all of them are and it is another way than before."""

    def __init__(self, partition_count: int, workers: list[WorkerProcess], show: Show) -> None:
        self._partition_count = partition_count
        self._workers = workers
        self._show = show
        self._told: dict[str, int] = {}

    def tell(self, open_flows: int) -> None:
        for worker in self._workers:
            if worker.partition_count and worker.work_left is None:
                worker.work_left = open_flows
        shares = {worker.name: worker.partition_count for worker in _living(self._workers)}
        if shares != self._told and min(shares.values()) and sum(shares.values()) == self._partition_count:
            self._told = shares
            told = ", ".join(f"{name} {count}" for name, count in shares.items())
            self._show.say(f"the {self._partition_count} partitions are shared: {told}")


async def _start_workers(store: Store, options: Options, workers: list[WorkerProcess], show: Show) -> None:
    names = [f"worker-{number + 1}" for number in range(_WORKERS)]
    starts = (_start_worker(store, options, name, workers, show) for name in names)
    failures = [item for item in await asyncio.gather(*starts, return_exceptions=True) if item is not None]
    if failures:  # all have come up or failed by now, so none is left behind
        raise failures[0]
    workers.sort(key=attrgetter("name"))


async def _start_worker(store: Store, options: Options, name: str, workers: list[WorkerProcess], show: Show) -> None:
    # The given URL may hold a password; that of the embedded server, known only now, has none.
    url = store.url if options.url is None else options.url
    worker = await WorkerProcess.start(name, url, store.options.schema)
    workers.append(worker)
    show.say(f"{name} works as process {worker.process_id}")


def _is_time_to_kill(world: World, worker: WorkerProcess, workers: list[WorkerProcess], total: int) -> bool:
    """Returns whether the worker surely has work in hand, at best of every kind, in the middle of the run."""
    slow = world.scenario.slow
    surely_until = time.monotonic() - _SURELY_SECONDS
    is_busy = any((key, step) in slow and since > surely_until for (_, key, step), since in worker.in_hand.items())
    if not is_busy:
        return False
    if slow.issubset(pair for other in workers for pair in other.first_began):
        return True  # there will not be another slow call to be sure of
    share = world.ended / total
    kinds = {claim for claim, _, _ in worker.in_hand}
    return share >= _KILL_SHARE and (len(kinds) == 3 or share >= _ALL_KINDS_SHARE)


def _killed(worker: WorkerProcess, killed_at: datetime, after_seconds: float) -> Kill:
    return Kill(
        killed_at=killed_at,
        worker=worker.name,
        process_id=worker.process_id,
        after_seconds=after_seconds,
        held=tuple(sorted(worker.in_hand)),
        again=(),
        recovered_seconds=None,
    )


def _recovered(kill: Kill, others: list[WorkerProcess], killed_at: float) -> Kill:
    """Returns the kill with what became of the work in hand; `killed_at` is by the clock of `first_began`."""
    held = {(key, step) for _, key, step in kill.held}
    begun: dict[tuple[str, str], float] = {}
    for worker in others:
        for pair, at in worker.first_began.items():
            if pair in held and at > killed_at:
                begun[pair] = min(at, begun.get(pair, at))
    recovered_seconds = max(begun.values()) - killed_at if begun else None
    return replace(kill, again=tuple(sorted(begun)), recovered_seconds=recovered_seconds)


def _counted(held: tuple[tuple[str, str, str], ...]) -> str:
    names = {"flow": "flows", "delivery": "deliveries", "timer": "timers"}
    counts = Counter(claim for claim, _, _ in held)
    parts = [f"{count} {claim if count == 1 else names[claim]}" for claim, count in counts.most_common()]
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else "".join(parts)


# Where it runs


@asynccontextmanager
async def _opened_store(options: Options) -> AsyncIterator[Store]:
    """Opens a store that is all the demo's own: on a server of its own, or in a schema of its own."""
    if options.url is None:
        with _temporary_directory() as directory:
            async with open_store(
                f"embedded://{quote(str(directory))}", application_name="cascade_state demo"
            ) as store:
                yield store
        return
    schema = f"cascade_state_demo_{secrets.token_hex(4)}"
    async with open_store(options.url, schema=schema, application_name="cascade_state demo") as store:
        if not (store.capabilities.cross_process and store.capabilities.caller_sql):
            raise UsageError("the demo kills a worker process; it needs a store that several processes can open")
        try:
            yield store
        finally:
            async with store.begin() as uow:
                await uow.connection.exec_driver_sql(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cascade-state-demo-", dir=_memory_disk()))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _memory_disk() -> str | None:
    """Returns a directory on tmpfs with room for the demo's database, None if there is none."""
    disk = Path("/dev/shm")  # noqa: S108 - the directory made there has a name of its own
    try:
        has_room = shutil.disk_usage(disk).free > 512 * 1024 * 1024
        with tempfile.TemporaryFile(dir=disk):
            return str(disk) if has_room else None
    except OSError:
        return None


def _place(options: Options) -> str:
    if options.url is not None:
        return "a server of yours, in a schema of its own"
    return "embedded, on tmpfs" if _memory_disk() else "embedded, in a temporary directory"


async def _server_version(store: Store) -> str:
    async with store.begin(read_only=True) as uow:
        result = await uow.connection.exec_driver_sql("SHOW server_version")
        return str(result.scalar_one())


async def _database_time(store: Store) -> datetime:
    async with store.begin(read_only=True) as uow:
        result = await uow.connection.exec_driver_sql("SELECT statement_timestamp()")
        now: datetime = result.scalar_one()
        return now


@contextmanager
def _phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begun
