"""A server that goes away and comes back: typed errors meanwhile, recovery without help, acknowledged work is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import asyncpg
import pytest

from cascade_state import FlowInstance, Store, StoreUnavailable, UnitOfWork, open_store
from cascade_state.testing import factories
from tests.postgres.fault_tools import PATIENCE_SECONDS, Saboteur, count_until, nobody_connected, pools_are_whole
from tests.postgres.own_server import OwnServer, own_server

pytestmark = pytest.mark.postgres

T = TypeVar("T")

_LEASE = timedelta(seconds=30)
_POOL = 4
_POLL_SECONDS = 0.01

_CALLS: dict[str, Callable[[Store, FlowInstance], Awaitable[object]]] = {
    "advance": lambda store, flow: store.advance(flow.complete_step("charge")),
    "advance with a wait": lambda store, flow: store.advance(flow.suspend_for_event("ship", "parcel-77")),
    "check_schema": lambda store, flow: store.check_schema(),
    "claim": lambda store, flow: store.flow_instances.claim("worker-1", lease_duration=_LEASE),
    "claim_delivered": lambda store, flow: store.correlations.claim_delivered("worker-1", lease_duration=_LEASE),
    "claim_due": lambda store, flow: store.timers.claim_due("worker-1", lease_duration=_LEASE),
    "deploy": lambda store, flow: store.flow_definitions.deploy(factories.flow_definition("order")),
    "events": lambda store, flow: store.events.read(),
    "get": lambda store, flow: store.flow_instances.get(flow.flow_instance_id),
    "migrate": lambda store, flow: store.migrate(),
    "publish": lambda store, flow: store.correlations.publish("parcel-77", {}),
    "purge": lambda store, flow: store.flow_instances.purge(factories.lease().expires_at),
    "put": lambda store, flow: store.component_states.put(flow.flow_instance_id, "ship", 1),
    "schedule": lambda store, flow: store.timers.schedule(flow.flow_instance_id, "ship", after=_LEASE),
    "statistics": lambda store, flow: store.statistics(),
    "unit of work": lambda store, flow: _in_unit_of_work(store, flow),
}


async def _in_unit_of_work(store: Store, flow: FlowInstance) -> None:
    async with store.begin() as uow:
        await uow.component_states.put(flow.flow_instance_id, "ship", 1)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with own_server() as started:
        yield started


@pytest.fixture
async def store(server: OwnServer) -> AsyncIterator[Store]:
    await server.start()  # a test that failed may have left it stopped
    async with open_store(
        server.url, pool_size=_POOL, pool_timeout_seconds=5.0, application_name="under test"
    ) as opened:
        await opened.migrate()
        yield opened


async def test_while_the_server_is_away_every_call_says_so_and_afterwards_every_call_works(
    server: OwnServer, store: Store
) -> None:
    flows = {name: await factories.add_flow(store) for name in _CALLS}
    await pools_are_whole(store, _POOL)
    await server.stop_at_once()
    for _ in range(2):
        for name, call in _CALLS.items():
            async with asyncio.timeout(PATIENCE_SECONDS):
                with pytest.raises(StoreUnavailable) as caught:
                    await call(store, flows[name])
            assert caught.value.__cause__ is not None, name
    with pytest.raises(StoreUnavailable):
        async with open_store(server.url):
            pytest.fail("opened a store without a server")
    await server.start()
    async with asyncio.timeout(PATIENCE_SECONDS):
        for name, call in _CALLS.items():
            await call(store, flows[name])
    await pools_are_whole(store, _POOL)


async def test_a_unit_of_work_that_outlives_its_server(server: OwnServer, store: Store) -> None:
    flow = await factories.add_flow(store)
    with pytest.raises(StoreUnavailable):
        async with store.begin() as uow:
            await uow.advance(flow.complete_step("charge"))
            await server.stop_at_once()
            await server.start()
    assert await _patiently(lambda: store.flow_instances.get(flow.flow_instance_id)) == flow
    await pools_are_whole(store, _POOL)


async def test_run_waits_for_the_server_to_come_back(server: OwnServer, store: Store) -> None:
    flow = await factories.add_flow(store)
    await server.stop_at_once()
    is_tried = asyncio.Event()

    async def advance(uow: UnitOfWork) -> FlowInstance:
        return await uow.advance(flow.complete_step("charge"))

    async def run() -> FlowInstance:
        is_tried.set()
        return await store.run(advance, retries=100)

    running = asyncio.ensure_future(run())
    await is_tried.wait()
    with pytest.raises(StoreUnavailable):
        await _in_unit_of_work(store, flow)
    assert not running.done()
    await server.start()
    async with asyncio.timeout(PATIENCE_SECONDS):
        advanced = await running
    assert await store.flow_instances.get(flow.flow_instance_id) == advanced


@pytest.mark.parametrize("way", ["at once", "crash"])
async def test_under_load_acknowledged_work_is_there_and_nothing_is_done_twice(
    server: OwnServer, store: Store, way: str
) -> None:
    flows = [await factories.add_flow(store) for _ in range(12)]
    is_over = asyncio.Event()
    counting = [asyncio.ensure_future(count_until(store, flow, is_over)) for flow in flows]
    async with asyncio.timeout(50):
        for _ in range(3):
            await _progress(store, 20)
            await (server.crash() if way == "crash" else server.stop_at_once())
            await server.start()
        await _progress(store, 20)
        is_over.set()
        counts = [await task for task in counting]
    assert sum(count.failures for count in counts) > 0, "nobody noticed"
    for flow, count in zip(flows, counts, strict=True):
        await count.check(store, flow)
    await pools_are_whole(store, _POOL)
    connection = await asyncpg.connect(server.url)
    try:
        assert await Saboteur(connection, "under test").open_transactions() == []
    finally:
        await connection.close()


async def test_a_store_closes_without_its_server(server: OwnServer) -> None:
    await server.start()
    async with open_store(server.url, application_name="closing") as store:
        await store.migrate()
        flow = await factories.add_flow(store)
        await pools_are_whole(store, 3)
        holder = store.begin()
        await holder.__aenter__()
        await server.stop_at_once()
        with pytest.raises(StoreUnavailable):
            await holder.__aexit__(None, None, None)
        with pytest.raises(StoreUnavailable):
            await store.flow_instances.get(flow.flow_instance_id)
    await server.start()
    connection = await asyncpg.connect(server.url)
    try:
        await nobody_connected(Saboteur(connection, "closing"))
    finally:
        await connection.close()


async def _progress(store: Store, steps: int) -> None:
    """Returns when the flows have made this many more steps between them."""

    async def made() -> int:
        return sum([len(flow.completed_steps) async for flow in store.flow_instances.iterate()])

    before = await _patiently(made)
    while True:
        if await _patiently(made) >= before + steps:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Returns what the call returns once the server answers again."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(_POLL_SECONDS)
