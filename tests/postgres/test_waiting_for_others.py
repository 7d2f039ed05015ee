"""What happens to a call that has to wait for another transaction's row: it decides by what that one committed.

Each test holds a row in an open unit of work, starts the call on another connection, sees it wait, and lets go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg
import pytest

from cascade_state import (
    ComponentState,
    FlowDefinitionInUse,
    FlowInstance,
    FlowInstanceNotFound,
    InvalidTransition,
    Store,
    UnitOfWork,
)
from cascade_state.testing import factories
from tests.contract.postgres_observer import PostgresObserver

pytestmark = pytest.mark.postgres

T = TypeVar("T")

_SECOND = timedelta(seconds=1)
_PATIENCE_SECONDS = 20


@pytest.fixture(name="observer")
def make_observer(database_url: str) -> PostgresObserver:
    return PostgresObserver(database_url)


@pytest.fixture
def store(postgres_store: Store) -> Store:
    return postgres_store


async def _after(observer: PostgresObserver, uow: UnitOfWork, call: Coroutine[Any, Any, T], *, commits: bool) -> T:
    """Starts `call`, which must wait for `uow`; ends that one, and returns what the call then returns."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        task = asyncio.ensure_future(call)
        await observer.settled([task])
        assert not task.done(), "the call was expected to wait"
        if commits:
            await uow.__aexit__(None, None, None)
        else:
            await uow.rollback()
        return await task


async def _leftovers(database_url: str) -> list[tuple[str, int]]:
    """Counts the rows that go with a flow, in tables that no foreign key empties."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "SELECT 'waits', count(*) FROM correlations UNION ALL"
            " SELECT 'business keys', count(*) FROM idempotency_keys WHERE flow_instance_id IS NOT NULL"
        )
        return [(name, total) for name, total in rows]
    finally:
        await connection.close()


_NOTHING_LEFT = [("waits", 0), ("business keys", 0)]


async def test_a_timer_is_not_scheduled_on_a_flow_that_ended_meanwhile(
    store: Store, observer: PostgresObserver
) -> None:
    flow = await factories.add_flow(store)
    async with store.begin() as uow:
        await uow.advance(flow.complete())
        with pytest.raises(InvalidTransition) as caught:
            await _after(
                observer, uow, store.timers.schedule(flow.flow_instance_id, "ship", after=_SECOND), commits=True
            )
    assert caught.value.from_status == "COMPLETED"
    assert await store.timers.list_for_instance(flow.flow_instance_id) == []


async def test_a_timer_is_scheduled_on_a_flow_whose_end_was_rolled_back(
    store: Store, observer: PostgresObserver
) -> None:
    flow = await factories.add_flow(store)
    async with store.begin() as uow:
        await uow.advance(flow.complete())
        timer = await _after(
            observer, uow, store.timers.schedule(flow.flow_instance_id, "ship", after=_SECOND), commits=False
        )
    assert await store.timers.list_for_instance(flow.flow_instance_id) == [timer]


async def test_a_flow_that_ends_takes_a_timer_with_it_that_was_scheduled_meanwhile(
    store: Store, observer: PostgresObserver
) -> None:
    flow = await factories.add_flow(store)
    async with store.begin() as uow:
        await uow.timers.schedule(flow.flow_instance_id, "ship", after=_SECOND)
        ended = await _after(observer, uow, store.advance(flow.complete()), commits=True)
    assert ended.is_terminal
    assert await store.timers.list_for_instance(flow.flow_instance_id) == []


@pytest.mark.parametrize("expected_version", [None, 0])
async def test_a_state_is_not_put_for_a_flow_that_was_removed_meanwhile(
    store: Store, observer: PostgresObserver, expected_version: int | None
) -> None:
    flow = await factories.add_flow(store)
    other = await factories.add_flow(store)
    async with store.begin() as uow, store.begin() as putting:
        await uow.flow_instances.remove(flow.flow_instance_id)
        put = putting.component_states.put(flow.flow_instance_id, "ship", 1, expected_version=expected_version)
        with pytest.raises(FlowInstanceNotFound):
            await _after(observer, uow, put, commits=True)
        await putting.component_states.put(other.flow_instance_id, "ship", 1)  # its transaction is still usable
    assert (await store.component_states.get(other.flow_instance_id, "ship")).version == 1


async def test_two_puts_count_both(store: Store, observer: PostgresObserver) -> None:
    flow = await factories.add_flow(store)
    async with store.begin() as uow:
        await uow.component_states.put(flow.flow_instance_id, "ship", 1)
        state: ComponentState = await _after(
            observer, uow, store.component_states.put(flow.flow_instance_id, "ship", 2), commits=True
        )
    assert (state.version, state.state) == (2, 2)


async def test_a_definition_is_in_use_by_a_flow_that_is_being_added(store: Store, observer: PostgresObserver) -> None:
    definition = await factories.deploy_flow_definition(store)
    async with store.begin() as uow:
        await uow.advance(factories.running_flow(definition))
        with pytest.raises(FlowDefinitionInUse) as caught:
            await _after(observer, uow, store.flow_definitions.undeploy(definition.flow_id), commits=True)
    assert caught.value.instance_count == 1


async def _keyed_flow(store: Store) -> FlowInstance:
    definition = await factories.deploy_flow_definition(store)
    return await factories.add_flow(store, definition, business_key="order-1")


async def test_a_forced_undeployment_takes_a_wait_with_it_that_was_stored_meanwhile(
    store: Store, observer: PostgresObserver, database_url: str
) -> None:
    flow = await _keyed_flow(store)
    async with store.begin() as uow:
        await uow.advance(flow.suspend_for_event("ship", "parcel-77"))
        undeploy = store.flow_definitions.undeploy(flow.flow_id, force=True)
        assert await _after(observer, uow, undeploy, commits=True) == 1
    assert await store.flow_instances.find(flow.flow_instance_id) is None
    assert await _leftovers(database_url) == _NOTHING_LEFT


async def test_a_removal_takes_a_wait_with_it_that_was_stored_meanwhile(
    store: Store, observer: PostgresObserver, database_url: str
) -> None:
    flow = await _keyed_flow(store)
    async with store.begin() as uow:
        await uow.advance(flow.suspend_for_event("ship", "parcel-77"))
        assert await _after(observer, uow, store.flow_instances.remove(flow.flow_instance_id), commits=True)
    assert await _leftovers(database_url) == _NOTHING_LEFT


async def test_deployments_of_one_flow_id_follow_each_other(store: Store, observer: PostgresObserver) -> None:
    flow_id = factories.unique("flow")
    same = factories.flow_definition(flow_id, name="same")
    async with store.begin() as uow:
        first = await uow.flow_definitions.deploy(same)
        second = await _after(observer, uow, store.flow_definitions.deploy(same), commits=True)
    assert (first.version, second.version) == (1, 1)
