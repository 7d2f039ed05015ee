"""Wake-ups: from a commit to the handler, and what hints cost those who commit.

Every way has an installation of its own, a schema of the database: a worker claims whatever there is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import asyncpg

from benchmarks.bench import STEP_IDS, Bench
from benchmarks.registry import TASKS, Benchmark, Latency, Operation, Prepare, benchmark
from cascade_state import (
    Delivery,
    FlowDefinition,
    FlowEvent,
    FlowInstance,
    StepDefinition,
    Store,
    Timer,
    UnitOfWork,
    open_store,
)
from cascade_state.coordination import FeedConsumer, Worker

_GROUP = "wake-ups"
_POLL_INTERVAL = timedelta(milliseconds=100)
_POLLED = "polling every 100 ms"
_WITHOUT_HINTS = "without hints"
_LEASE = timedelta(seconds=30)
_PATIENCE_SECONDS = 20
# A hint leaves at once, unless another one left in the ten milliseconds before: what is published without a pause waits
# for the rest of them. That is what hints cost less for, and not what is measured here.
_QUIET_SECONDS = 0.02

# Makes a flow ready, commits what is to be handled, and returns the seconds from the commit to whoever handles it.
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


async def _waiting(store: Store, definition: FlowDefinition, key: str) -> FlowInstance:
    return await store.advance(FlowInstance.create(definition).start().suspend_for_event("s0", key))


class _Begun:
    """When handlers began, told to whoever waits for it; a second attempt tells nothing."""

    def __init__(self) -> None:
        self._expected: dict[object, asyncio.Future[float]] = {}

    def expect(self, key: object) -> asyncio.Future[float]:
        self._expected[key] = beginning = asyncio.get_running_loop().create_future()
        return beginning

    def tell(self, key: object) -> None:
        beginning = self._expected.pop(key, None)
        if beginning is not None:
            beginning.set_result(time.perf_counter())


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of commit: who handles it, what goes before it, and the commit itself, of which it returns the key."""

    handler: Callable[[Store, timedelta, _Begun], Worker | FeedConsumer]
    prepare: Callable[[Store, FlowDefinition, str], Awaitable[FlowInstance]]
    commit: Callable[[Store, FlowInstance, str], Awaitable[object]]
    key: Callable[[FlowInstance, str], object]


@asynccontextmanager
async def _handled(
    url: str, schema: str, kind: _Kind, *, hints: bool, poll_interval: timedelta
) -> AsyncIterator[WakeUp]:
    begun = _Begun()
    # What is committed at a fixed time after a poll waits for the same part of an interval each time.
    spread_seconds = 0.0 if hints else poll_interval.total_seconds()
    async with (
        _installation(url, schema) as (preparing, definition),
        open_store(url, schema=schema, hints=hints) as committing,
        open_store(url, schema=schema) as store,
    ):
        handler = kind.handler(store, poll_interval, begun)
        running = asyncio.create_task(handler.run())

        async def wake_up(key: str) -> float:
            flow = await kind.prepare(preparing, definition, key)
            await asyncio.sleep(_QUIET_SECONDS + random.uniform(0.0, spread_seconds))  # noqa: S311 - not a secret
            beginning = begun.expect(kind.key(flow, key))
            await kind.commit(committing, flow, key)
            committed = time.perf_counter()
            return await beginning - committed

        try:
            yield wake_up
        finally:
            await handler.stop()
            await running


def _delivery_worker(store: Store, poll_interval: timedelta, begun: _Begun) -> Worker:
    async def on_delivery(delivery: Delivery, uow: UnitOfWork) -> None:
        begun.tell(delivery.correlation_key)

    return Worker(
        store, on_delivery=on_delivery, lease_duration=_LEASE, poll_interval=poll_interval, handle_signals=False
    )


def _timer_worker(store: Store, poll_interval: timedelta, begun: _Begun) -> Worker:
    async def on_timer(timer: Timer, uow: UnitOfWork) -> None:
        begun.tell(timer.flow_instance_id)

    return Worker(store, on_timer=on_timer, lease_duration=_LEASE, poll_interval=poll_interval, handle_signals=False)


def _consumer(store: Store, poll_interval: timedelta, begun: _Begun) -> FeedConsumer:
    async def on_events(events: Sequence[FlowEvent], uow: UnitOfWork) -> None:
        for event in events:
            if event.event_type == "step.completed":
                begun.tell(event.flow_instance_id)

    return FeedConsumer(store, name="bench", handler=on_events, poll_interval=poll_interval, handle_signals=False)


async def _running(store: Store, definition: FlowDefinition, key: str) -> FlowInstance:
    return await store.advance(FlowInstance.create(definition).start())


_DELIVERY = _Kind(
    _delivery_worker,
    prepare=_waiting,
    commit=lambda store, flow, key: store.correlations.publish(key, {}),
    key=lambda flow, key: key,
)
_TIMER = _Kind(
    _timer_worker,
    prepare=_running,
    commit=lambda store, flow, key: store.timers.schedule(flow.flow_instance_id, "s0", after=timedelta(0)),
    key=lambda flow, key: flow.flow_instance_id,
)
_EVENT = _Kind(
    _consumer,
    prepare=_running,
    commit=lambda store, flow, key: store.advance(flow.complete_step("s0")),
    key=lambda flow, key: flow.flow_instance_id,
)


def _with_hints(kind: _Kind) -> Callable[[str, str], Any]:
    return lambda url, schema: _handled(url, schema, kind, hints=True, poll_interval=timedelta(seconds=5))


def _polling(kind: _Kind) -> Callable[[str, str], Any]:
    return lambda url, schema: _handled(url, schema, kind, hints=False, poll_interval=_POLL_INTERVAL)


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
            await _waiting(store, definition, key)
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


def _measured(name: str, kind: _Kind) -> Benchmark:
    """Registers the ways of one kind of commit to its handler: with hints, and by polling alone."""
    made = benchmark(_GROUP, name, tasks=TASKS[:1], counts_round_trips=False, share=0.5)(
        _waking(f"{name}, hints", _with_hints(kind))
    )
    made.against(_POLLED, share=0.2)(_waking(f"{name}, {_POLLED}", _polling(kind)))
    return made


_measured("commit to handler", _DELIVERY).against("bare LISTEN, NOTIFY and claim")(_waking("bare", _bare))
_measured("commit to handler of a timer", _TIMER)
_measured("commit to handler of an event of the feed", _EVENT)


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
