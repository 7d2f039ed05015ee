"""Statistics of a large store: counted so far and no further, then estimated, if the server can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from benchmarks.loading import load
from cascade_state import FlowDefinition, FlowInstance, FlowStatus, StepDefinition, Store, open_store
from cascade_state.postgres import statistics
from cascade_state.postgres.direct import Record, Statement
from cascade_state.postgres.store_executor import StoreExecutor

pytestmark = pytest.mark.postgres

_DEFINITION = FlowDefinition(flow_id="bench", steps=(StepDefinition(step_id="s0", component_type="x"),))


@pytest_asyncio.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    """A connection beside the store's."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture(autouse=True)
def _counts_to_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "COUNTED", 20)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements for statistics that stores send, by name."""
    names: list[str] = []
    fetch = StoreExecutor.fetch

    async def noted(self: StoreExecutor, statement: Statement, values: Mapping[str, Any]) -> list[Record]:
        if statement.name.startswith("statistics."):
            names.append(statement.name)
        return await fetch(self, statement, values)

    monkeypatch.setattr(StoreExecutor, "fetch", noted)
    return names


async def test_what_is_many_is_estimated_and_what_is_few_is_counted(
    database_url: str, connection: Any, sent: list[str]
) -> None:
    async with open_store(database_url) as store:
        definition = await store.flow_definitions.deploy(_DEFINITION)
        await load(connection, 400)
        for _ in range(20):
            await store.advance(FlowInstance.create(definition))
        await connection.execute("UPDATE timers SET due_at = due_at - interval '15 days'")
        await connection.execute("ANALYZE")
        sent.clear()
        found = await store.statistics()
        assert sent == ["statistics.count_some"]
        exactly = await store.statistics(exact=True)
        assert (exactly.estimated, exactly.timers_pending) == (frozenset(), 400)
        assert (
            found.instances_by_status
            == exactly.instances_by_status
            == {
                FlowStatus.INITIALIZING: 20,
                FlowStatus.RUNNING: 100,
                FlowStatus.COMPLETED: 300,
            }
        )
        assert found.timers_pending == 400
        assert found.estimated == {
            "instances_by_status.RUNNING",
            "instances_by_status.COMPLETED",
            "timers_pending",
            "timers_overdue",
        }
        # The server divides due times into a hundred parts.
        assert exactly.timers_overdue > 100
        assert abs(found.timers_overdue - exactly.timers_overdue) <= 10
        assert found.oldest_overdue_at == exactly.oldest_overdue_at is not None


async def test_timers_of_one_instant_are_estimated(database_url: str, connection: Any, sent: list[str]) -> None:
    async with open_store(database_url) as store:
        await store.flow_definitions.deploy(_DEFINITION)
        await load(connection, 100)
        await connection.execute(
            "UPDATE timers SET due_at = date_trunc('day', now()) - interval '1 day', status = 'CLAIMED',"
            " lease_expires_at = now() + CASE WHEN get_byte(uuid_send(timer_id), 0) % 2 = 0"
            " THEN interval '1 hour' ELSE interval '-1 hour' END"
        )
        await connection.execute("ANALYZE")
        found = await store.statistics()
        assert "timers_overdue" in found.estimated
        assert 0 < found.timers_overdue < 100
        # All that it looks at are in hand: the oldest one that is not must be looked for.
        await connection.execute("UPDATE timers SET lease_expires_at = now() + interval '1 hour'")
        await connection.execute("ANALYZE")
        assert (await store.statistics()).timers_overdue == 0
        assert sent[-1] == "statistics.count_all"


async def test_what_was_never_analysed_is_counted(postgres_store: Store, sent: list[str]) -> None:
    definition = await postgres_store.flow_definitions.deploy(_DEFINITION)
    await postgres_store.flow_instances.add_many([FlowInstance.create(definition) for _ in range(30)])
    found = await postgres_store.statistics()
    assert (found.instances_by_status, found.estimated) == ({FlowStatus.INITIALIZING: 30}, frozenset())
    assert sent == ["statistics.count_some", "statistics.count_all"]
