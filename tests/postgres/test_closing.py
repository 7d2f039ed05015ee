"""A store that is closed while calls are under way, or used by an event loop that it does not belong to."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import asyncpg
import pytest

from cascade_state import CascadeStateError, StoreNotOpen, StoreUnavailable, UsageError, open_store
from cascade_state.testing import factories
from tests.contract.postgres_observer import PostgresObserver
from tests.postgres.fault_tools import Saboteur, nobody_connected

pytestmark = pytest.mark.postgres

_PATIENCE = 20


async def test_a_call_that_waits_for_a_row_ends_when_its_store_is_closed(database_url: str) -> None:
    observer = PostgresObserver(database_url)
    watcher = await asyncpg.connect(database_url)
    async with open_store(database_url) as other, asyncio.timeout(_PATIENCE):
        flow = await factories.add_flow(other)
        async with other.begin() as uow:
            await uow.advance(flow.complete_step("a"))
            store = open_store(database_url, application_name="closing")
            await store.__aenter__()
            calls = [
                asyncio.create_task(call)
                for call in (
                    store.advance(flow.complete_step("b")),
                    store.flow_instances.remove(flow.flow_instance_id),
                )
            ]
            await observer.settled(calls)
            await store.__aexit__(None, None, None)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(outcome, (StoreUnavailable, StoreNotOpen)) for outcome in outcomes] == [True, True]
        await nobody_connected(Saboteur(watcher, "closing"))
    await watcher.close()


async def test_a_unit_of_work_that_outlives_its_store_keeps_no_connection(database_url: str) -> None:
    watcher = await asyncpg.connect(database_url)
    store = open_store(database_url, application_name="closing")
    await store.__aenter__()
    flow = await factories.add_flow(store)
    uow = await store.begin().__aenter__()
    await uow.advance(flow.complete_step("a"))
    await store.__aexit__(None, None, None)
    await nobody_connected(Saboteur(watcher, "closing"))
    with pytest.raises(CascadeStateError):
        await uow.flow_instances.get(flow.flow_instance_id)
    with pytest.raises(CascadeStateError):
        await uow.__aexit__(None, None, None)
    await watcher.close()


async def test_calls_under_way_have_their_results_when_a_store_closes(database_url: str) -> None:
    async with open_store(database_url) as other:
        flows = [await factories.add_flow(other) for _ in range(20)]
        async with open_store(database_url) as store:
            calls = [asyncio.create_task(store.advance(flow.complete_step("a"))) for flow in flows]
            await asyncio.sleep(0)
        assert [flow.version for flow in await asyncio.gather(*calls)] == [2] * 20


async def test_another_event_loop_is_told_that_the_store_is_not_its_own(database_url: str) -> None:
    async with open_store(database_url) as store:
        flow = await factories.add_flow(store)
        caught: list[BaseException] = []

        def elsewhere() -> None:
            async def use() -> Any:
                return await store.flow_instances.get(flow.flow_instance_id)

            try:
                asyncio.run(use())
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join, _PATIENCE)
        assert [type(error) for error in caught] == [UsageError]
        assert "event loop" in str(caught[0])
        assert (await store.flow_instances.get(flow.flow_instance_id)).version == 1
