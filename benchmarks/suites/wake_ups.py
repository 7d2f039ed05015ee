"""Wake-ups: from a commit to the handler, and what hints cost those who commit.

Every way has an installation of its own, a schema of the database: a worker claims whatever there is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import asyncpg

from benchmarks.bench import STEP_IDS, Bench
from benchmarks.registry import TASKS, Latency, Operation, Prepare, benchmark
from cascade_state import Delivery, FlowDefinition, FlowInstance, StepDefinition, Store, UnitOfWork, open_store
from cascade_state.coordination import Worker

_GROUP = "wake-ups"
_POLLED = "polling every 100 ms"
_WITHOUT_HINTS = "without hints"
_LEASE = timedelta(seconds=30)
_PATIENCE_SECONDS = 20
# A hint leaves at once, unless another one left in the ten milliseconds before: what is published without a pause waits
# for the rest of them. That is what hints cost less for, and not what is measured here.
_QUIET_SECONDS = 0.02

# Makes a flow wait, publishes its event, and returns the seconds from the commit to whoever handles it.
WakeUp: TypeAlias = Callable[[str], Awaitable[float]]
_opened: WeakKeyDictionary[Bench, dict[str, Any]] = WeakKeyDictionary()


def _waking(name: str, opened: Callable[[str, str], Any]) -> Prepare:
    """Returns the preparation of a way to be woken, which is opened once for the whole run."""

    async def prepare(bench: Bench, tasks: int) -> Operation:
        ways = _opened.setdefault(bench, {})
        if name not in ways:
            ways[name] = await bench.enter(opened(bench.url, f"wake_up_{len(ways)}"))
        wake_up: WakeUp = ways[name]
        round_begun = time.monotonic_ns()

        async def operation(lane: int, index: int) -> Latency:
            key = f"{round_begun} {lane} {index}"
            return Latency(await asyncio.wait_for(wake_up(key), _PATIENCE_SECONDS))

        return operation

    return prepare


@asynccontextmanager
async def _installation(url: str, schema: str) -> AsyncIterator[tuple[Store, FlowDefinition]]:
    """A store that publishes without hints, and the definition of the flows that wait."""
    async with open_store(url, schema=schema, hints=False) as store:
        await store.migrate()
        definition = FlowDefinition(flow_id="bench", steps=(StepDefinition(step_id="s0", component_type="x"),))
        yield store, await store.flow_definitions.deploy(definition)


async def _wait_for(store: Store, definition: FlowDefinition, key: str) -> None:
    await store.advance(FlowInstance.create(definition).start().suspend_for_event("s0", key))


@asynccontextmanager
async def _worker(url: str, schema: str, *, hints: bool, poll_interval: timedelta) -> AsyncIterator[WakeUp]:
    began: dict[str, asyncio.Future[float]] = {}

    async def on_delivery(delivery: Delivery, uow: UnitOfWork) -> None:
        beginning = began.pop(delivery.correlation_key, None)
        if beginning is not None:  # a second attempt would find none
            beginning.set_result(time.perf_counter())

    async with (
        _installation(url, schema) as (waiting, definition),
        open_store(url, schema=schema, hints=hints) as publisher,
        open_store(url, schema=schema) as store,
    ):
        worker = Worker(
            store, on_delivery=on_delivery, lease_duration=_LEASE, poll_interval=poll_interval, handle_signals=False
        )
        running = asyncio.create_task(worker.run())

        async def wake_up(key: str) -> float:
            beginning: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            began[key] = beginning
            await _wait_for(waiting, definition, key)
            await asyncio.sleep(_QUIET_SECONDS)
            await publisher.correlations.publish(key, {})
            committed = time.perf_counter()
            return await beginning - committed

        try:
            yield wake_up
        finally:
            await worker.stop()
            await running


def _with_hints(url: str, schema: str) -> Any:
    return _worker(url, schema, hints=True, poll_interval=timedelta(seconds=5))


def _polling(url: str, schema: str) -> Any:
    return _worker(url, schema, hints=False, poll_interval=timedelta(milliseconds=100))


@asynccontextmanager
async def _bare(url: str, schema: str) -> AsyncIterator[WakeUp]:
    """NOTIFY right behind the commit, and whoever hears it claims with the store, all by hand."""
    heard = asyncio.Event()
    turn = asyncio.Lock()  # whoever hears a notification of another lane would find nothing
    async with _installation(url, schema) as (store, definition):
        listening, notifying = await asyncpg.connect(url), await asyncpg.connect(url)
        await listening.add_listener(schema, lambda *_: heard.set())

        async def wake_up(key: str) -> float:
            async with turn:
                return await _one(key)

        async def _one(key: str) -> float:
            await _wait_for(store, definition, key)
            await asyncio.sleep(_QUIET_SECONDS)
            await store.correlations.publish(key, {})
            committed = time.perf_counter()
            await notifying.execute(f"NOTIFY {schema}")
            await heard.wait()
            heard.clear()
            (delivery,) = await store.correlations.claim_delivered("bare", lease_duration=_LEASE)
            seconds = time.perf_counter() - committed
            await store.correlations.complete([delivery])
            return seconds

        try:
            yield wake_up
        finally:
            await listening.close()
            await notifying.close()


wake_up = benchmark(_GROUP, "commit to handler", tasks=TASKS[:1], counts_round_trips=False, share=0.5)(
    _waking("hints", _with_hints)
)
wake_up.against("bare LISTEN, NOTIFY and claim")(_waking("bare", _bare))
wake_up.against(_POLLED, share=0.2)(_waking(_POLLED, _polling))


# What hints cost


def _committing(name: str, **options: Any) -> Prepare:
    async def prepare(bench: Bench, tasks: int) -> Operation:
        stores = _opened.setdefault(bench, {})
        if name not in stores:
            stores[name] = await bench.enter(open_store(bench.url, **options))
        store: Store = stores[name]
        flows = await bench.stored_flows(tasks)

        async def operation(lane: int, index: int) -> None:
            flows[lane] = await store.advance(flows[lane].complete_step(STEP_IDS[0], {"receipt": "r-1"}))

        return operation

    return prepare


hinting = benchmark(_GROUP, "advance, hints on", tasks=TASKS[:2], counts_round_trips=False)(_committing("hinting"))
hinting.against(_WITHOUT_HINTS)(_committing(_WITHOUT_HINTS, hints=False))
