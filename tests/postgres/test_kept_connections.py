"""The few connections that single statements share: lent in turn, replaced when they break."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from cascade_state import Store
from cascade_state.errors import StoreNotOpen
from cascade_state.postgres.kept_connections import KeptConnections
from cascade_state.testing import factories

pytestmark = pytest.mark.postgres

_PATIENCE_SECONDS = 10
_BUSY_TABLES = ("component_states", "correlations", "early_events", "flow_events", "flow_instances", "timers")


@pytest_asyncio.fixture
async def kept(database_url: str) -> AsyncIterator[KeptConnections]:
    url = database_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url, poolclass=NullPool)
    connections = KeptConnections(engine, 2)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        yield connections
        await connections.close()
    await engine.dispose()


async def _queued(kept: KeptConnections) -> asyncio.Task[object]:
    """A task that waits for a connection."""
    task = asyncio.ensure_future(kept.take())
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_whoever_waits_longest_gets_the_connection_that_is_put_back(kept: KeptConnections) -> None:
    one, other = await kept.take(), await kept.take()
    first, second = await _queued(kept), await _queued(kept)
    kept.put_back(one)
    newcomer = asyncio.ensure_future(kept.take())  # in the same turn: it must not be there first
    assert await first is one
    kept.put_back(other)
    assert await second is other
    assert not newcomer.done()
    kept.put_back(one)
    assert await newcomer is one
    kept.put_back(one)
    kept.put_back(other)


async def test_a_connection_given_to_a_cancelled_task_goes_to_the_next(kept: KeptConnections) -> None:
    one, other = await kept.take(), await kept.take()
    first, second = await _queued(kept), await _queued(kept)
    kept.put_back(one)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second is one
    kept.put_back(one)
    kept.put_back(other)


@pytest.mark.parametrize("is_broken", [False, True])
async def test_a_connection_given_in_the_last_moment_is_taken(kept: KeptConnections, is_broken: bool) -> None:
    """The time is up after the connection was given, and before whoever waited runs again."""
    kept._patience_seconds = 0.01
    one, other = await kept.take(), await kept.take()
    waiting = await _queued(kept)
    if is_broken:
        one[1].terminate()
    asyncio.get_running_loop().call_soon(kept.put_back, one)
    time.sleep(0.02)  # noqa: ASYNC251 - so that both happen in one turn of the event loop, in this order
    given: Any = await waiting
    assert (given is one) is not is_broken
    kept.put_back(given)
    kept.put_back(other)
    assert len(kept._free) == kept._open == 2


async def test_who_waits_is_given_a_new_connection_for_a_broken_one(kept: KeptConnections) -> None:
    one, other = await kept.take(), await kept.take()
    first, second = await _queued(kept), await _queued(kept)
    one[1].terminate()
    kept.put_back(one)  # broken before it was put back
    new = await first
    assert new is not one
    assert isinstance(new, tuple)
    kept.put_back(other)
    other[1].terminate()  # broken on its way to who waits
    newer = await second
    assert isinstance(newer, tuple)
    assert newer is not other
    assert not newer[1].is_closed()
    kept.put_back(new)
    kept.put_back(newer)


async def test_a_cancelled_task_passes_the_room_on(kept: KeptConnections) -> None:
    one, other = await kept.take(), await kept.take()
    first, second = await _queued(kept), await _queued(kept)
    one[1].terminate()
    kept.put_back(one)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    new = await second
    assert isinstance(new, tuple)
    kept.put_back(new)
    kept.put_back(other)


async def test_closing_refuses_who_waits_and_waits_for_who_works(kept: KeptConnections) -> None:
    one, other = await kept.take(), await kept.take()
    waiting = await _queued(kept)
    closing = asyncio.ensure_future(kept.close())
    with pytest.raises(StoreNotOpen):
        await waiting
    kept.put_back(one)
    assert not closing.done()
    kept.put_back(other)
    await closing


async def test_plans_made_on_empty_tables_go_by_index(postgres_store: Store, database_url: str) -> None:
    store: Any = postgres_store
    flow = await factories.add_flow(store)
    for number in range(12):  # more than it takes until a connection keeps a plan
        await store.component_states.put(flow.flow_instance_id, "a", number)
        flow = await store.advance((flow.resume() if flow.waits else flow).suspend_for_event("a", f"parcel-{number}"))
        await store.correlations.publish(f"parcel-{number}", {})
        await store.correlations.claim_delivered("w", limit=1, lease_duration=timedelta(seconds=1))
        await store.timers.claim_due("w", limit=1, lease_duration=timedelta(seconds=1))
        await store.timers.next_due_at()
        await store.flow_instances.get(flow.flow_instance_id)
    kept = await store._kept.take()
    await kept[1].execute("SELECT pg_stat_force_next_flush()")
    store._kept.put_back(kept)
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(
        "SELECT relname, seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = ANY($1)", list(_BUSY_TABLES)
    )
    await connection.close()
    assert sum(row["idx_scan"] for row in rows) > 0
    assert {row["relname"]: row["seq_scan"] for row in rows} == dict.fromkeys(_BUSY_TABLES, 0)
