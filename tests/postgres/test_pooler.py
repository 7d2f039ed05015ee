"""The whole face through PgBouncer in transaction mode, where no statement finds what an earlier one left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from cascade_state import FlowStatus, ScheduleTimer, Store, UsageError, VersionConflict, open_store
from cascade_state.testing import factories
from tests.contract.postgres_observer import PostgresObserver
from tests.postgres.pooler import pgbouncer

pytestmark = pytest.mark.postgres

_LEASE = timedelta(seconds=30)


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    """The test's database, through PgBouncer."""
    with pgbouncer(database_url) as url:
        yield url


async def _one_life(store: Store, number: int) -> None:
    """Leads a flow through everything, by single calls and in a unit of work."""
    key = f"parcel-{number}"
    flow = await factories.add_flow(store, business_key=f"order-{number}")
    stale = flow
    flow = await store.advance(
        flow.complete_step("a", {"n": number}),
        put_states={"a": number},
        schedule=[ScheduleTimer("t", after=timedelta(hours=1))],
    )
    with pytest.raises(VersionConflict):
        await store.advance(stale.complete_step("b"))
    flow = await store.advance(flow.suspend_for_event("b", key))
    (made,) = await store.correlations.publish(key, {"n": number})
    assert made.flow_instance_id == flow.flow_instance_id
    state = await store.component_states.get(flow.flow_instance_id, "a")
    assert state.state == number
    await store.component_states.put(flow.flow_instance_id, "a", [number], expected_version=state.version)
    async with store.begin() as uow:
        found = await uow.flow_instances.get(flow.flow_instance_id)
        assert found.step_results["a"].outputs == {"n": number}
        async with uow.savepoint():
            await uow.component_states.put(flow.flow_instance_id, "c", {})
        ended = await uow.advance(found.resume().complete())
    assert ended.status is FlowStatus.COMPLETED
    assert len(await store.flow_instances.history(flow.flow_instance_id)) >= 5
    assert await store.timers.list_for_instance(flow.flow_instance_id) == []


async def test_many_flows_live_through_the_pooler_at_once(database_url: str, pooled_url: str) -> None:
    async with open_store(pooled_url, pooler="pgbouncer", direct_url=database_url) as store:
        async with asyncio.timeout(60):
            await asyncio.gather(*(_one_life(store, number) for number in range(24)))
        assert (await store.statistics()).instances_by_status[FlowStatus.COMPLETED] == 24


async def test_several_processes_share_the_pooler(pooled_url: str) -> None:
    """Statements of different stores meet on one server connection, and must not take each other's place."""
    async with (
        open_store(pooled_url, pooler="pgbouncer") as one,
        open_store(pooled_url, pooler="pgbouncer") as two,
        open_store(pooled_url, pooler="pgbouncer") as three,
    ):
        flows = [await factories.add_flow(one) for _ in range(6)]

        async def count(store: Store, index: int) -> None:
            for number in range(20):
                flow_id = flows[index].flow_instance_id
                await store.component_states.put(flow_id, "n", number)
                assert (await store.component_states.get(flow_id, "n")).state == number
                assert (await store.flow_instances.get(flow_id)).flow_instance_id == flow_id
                assert await store.timers.list_for_instance(flow_id) == []

        async with asyncio.timeout(60):
            await asyncio.gather(*(count(store, at) for at, store in enumerate((one, two, three, one, two, three))))


async def test_the_callers_rows_and_ours_commit_together_through_the_pooler(pooled_url: str) -> None:
    engine = create_async_engine(
        pooled_url.replace("postgresql://", "postgresql+asyncpg://", 1),
        connect_args={
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: "",
        },
    )
    async with open_store(pooled_url, pooler="pgbouncer") as store:
        flow = await factories.add_flow(store)
        async with AsyncSession(engine) as session:
            async with store.enlist(session) as uow:
                await uow.advance(flow.complete_step("a"))
            await session.rollback()
            async with store.enlist(session) as uow:
                await uow.advance(flow.complete_step("b"))
            await session.commit()
        assert (await store.flow_instances.get(flow.flow_instance_id)).completed_steps == {"b"}
    await engine.dispose()


async def test_a_blocked_step_does_not_hold_up_others_behind_the_pooler(database_url: str, pooled_url: str) -> None:
    async with open_store(pooled_url, pooler="pgbouncer") as store:
        held, free = [await factories.add_flow(store) for _ in range(2)]
        async with asyncio.timeout(20):
            async with store.begin() as uow:
                await uow.advance(held.complete_step("a"))
                blocked = asyncio.create_task(store.advance(held.complete_step("b")))
                await PostgresObserver(database_url).settled([blocked])
                assert (await store.advance(free.complete_step("a"))).version == 2
            with pytest.raises(VersionConflict):
                await blocked


async def test_timers_and_deliveries_are_claimed_through_the_pooler(pooled_url: str) -> None:
    async with open_store(pooled_url, pooler="pgbouncer") as store:
        flow = await factories.add_flow(store, waits_for="parcel-1")
        await store.correlations.publish("parcel-1", {})
        await store.timers.schedule(flow.flow_instance_id, "a", after=timedelta(0))
        (timer,) = await store.timers.claim_due("w", lease_duration=_LEASE)
        (delivery,) = await store.correlations.claim_delivered("w", lease_duration=_LEASE)
        flow = await store.flow_instances.get(flow.flow_instance_id)
        await store.advance(flow.resume(), completes=[timer, delivery])
        assert await store.timers.claim_due("w", lease_duration=_LEASE) == []


async def test_migrations_go_around_the_pooler_or_are_refused(empty_database_url: str) -> None:
    with pgbouncer(empty_database_url) as pooled:
        async with open_store(pooled, pooler="pgbouncer") as store:
            with pytest.raises(UsageError, match="direct_url"):
                await store.migrate()
        async with open_store(pooled, pooler="pgbouncer", direct_url=empty_database_url) as store:
            await store.migrate()
            await store.check_schema()
            await factories.add_flow(store)
