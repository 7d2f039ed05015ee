"""How the server runs claims: along an index, whatever is pending here or due in the partitions of others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from cascade_state import FlowInstanceFilter, FlowStatus, Store, open_store
from cascade_state.postgres.direct import CompiledStatement, Statement
from cascade_state.postgres.statements import deliveries, flow_instances, timer_lists, timers
from cascade_state.postgres.statements.parameters import columns, partition_values
from cascade_state.postgres.statements.statistics import COUNT_SOME
from cascade_state.testing import factories

pytestmark = pytest.mark.postgres

_MINE = range(0, 256, 3)  # a third of all
_CLAIM = {"holder": "worker-1", "lease_duration": timedelta(seconds=30), "limit": 32, "max_attempts": 20}
_RUNNING = FlowInstanceFilter(statuses=(FlowStatus.RUNNING,)).checked()

_FILL = """
INSERT INTO flow_instances (partition_id, flow_instance_id, root_id, flow_id, flow_version, status, trigger_data,
                            version, event_count, lease_token, created_at, updated_at)
SELECT n % 256, id, id, $1, 1, CASE WHEN n % 50 = 0 THEN 'RUNNING' ELSE 'WAITING_FOR_TIMER' END, 'null', 1, 0, 0,
       now() + n * interval '1 microsecond', now()
FROM (SELECT n, gen_random_uuid() AS id FROM generate_series(0, 7999) AS n) AS flows;
"""
# Pending for later everywhere, and far more overdue in the partitions of others than here.
_TIMERS = """
INSERT INTO timers (partition_id, timer_id, flow_instance_id, step_id, due_at, status, lease_token, attempts,
                    max_attempts, payload)
SELECT partition_id, gen_random_uuid(), flow_instance_id, 'ship',
       now() + CASE WHEN partition_id % 3 = 0 THEN interval '1 hour' ELSE interval '-1 hour' END, 'PENDING', 0, 0, 20,
       'null'::json
FROM flow_instances
UNION ALL
SELECT partition_id, gen_random_uuid(), flow_instance_id, 'ship', now() - interval '1 second', 'PENDING', 0, 0, 20,
       'null'::json
FROM flow_instances WHERE partition_id % 60 = 0;
"""
_DELIVERIES = """
INSERT INTO correlations (partition_id, correlation_key, flow_instance_id, step_id, flow_partition_id, status,
                          created_at, event_id, payload, mode, published_at, ordinal, delivered_at, available_at,
                          timed_out, attempts, lease_token)
SELECT 0, flow_instance_id::text, flow_instance_id, 'ship', partition_id, 'DELIVERED', now(), 'e',
       'null'::json, 'first', now(), 0, now(),
       now() + CASE WHEN partition_id % 3 = 0 THEN interval '1 hour' ELSE interval '0' END, false, 0, 0
FROM flow_instances
UNION ALL
SELECT 0, flow_instance_id || 'b', flow_instance_id, 'ship', partition_id, 'DELIVERED', now(), 'e',
       'null'::json, 'first', now(), 0, now(), now(), false, 0, 0
FROM flow_instances WHERE partition_id % 60 = 0;
"""


@pytest.fixture
async def crowded(database_url: str) -> AsyncIterator[Any]:
    """A connection to a store with much in it."""
    async with open_store(database_url) as store:
        definition = await factories.deploy_flow_definition(store)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_FILL.replace("$1", f"'{definition.flow_id}'"))
        await connection.execute(_TIMERS)
        await connection.execute(_DELIVERIES)
        await connection.execute("VACUUM ANALYZE")
        yield connection
    finally:
        await connection.close()


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


async def _explained(connection: Any, statement: Statement, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the plan, as it was executed and undone."""
    compiled = CompiledStatement(statement, None)
    transaction = connection.transaction()
    await transaction.start()
    try:
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {compiled.text}"
        explained = await connection.fetchval(text, *compiled.arguments(values))
    finally:
        await transaction.rollback()
    plan: dict[str, Any] = json.loads(explained)[0]["Plan"]
    return plan


def _check(plan: dict[str, Any], *, rows_sorted: int, buffers: int) -> None:
    """Checks that no table is read from end to end, that only so many rows are sorted, and how much is touched."""
    for node in _nodes(plan):
        if node["Node Type"] == "Seq Scan":
            assert node["Relation Name"] in ("early_events", "step_results"), node  # which are empty here
        if node["Node Type"].endswith("Sort"):
            assert node["Actual Rows"] * node["Actual Loops"] <= rows_sorted, node
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= buffers


_LIVE = FlowInstanceFilter().checked()
_CLAIMS: dict[str, tuple[Statement, dict[str, Any]]] = {
    "timers": (timers.CLAIM_DUE_IN, partition_values(_MINE)),
    "deliveries": (deliveries.CLAIM_IN, partition_values(_MINE)),
    "flows": (
        flow_instances.claim_in_statement(frozenset(), orphans=False),
        flow_instances.claim_in_values(_LIVE, _MINE),
    ),
    "orphans": (
        flow_instances.claim_in_statement(flow_instances.filter_shape(_RUNNING), orphans=True),
        flow_instances.claim_in_values(_RUNNING, range(256)),
    ),
}


async def test_claims_run_along_an_index(crowded: Any) -> None:
    for statement, values in _CLAIMS.values():
        # Sorted are the partitions (by status), each by its first row, and in the end what was claimed. A few pages for
        # each partition and each claimed row: a scan of a table would be thousands.
        _check(await _explained(crowded, statement, {**_CLAIM, **values}), rows_sorted=4 * 256, buffers=4_500)
    for statement in (timers.CLAIM_DUE, deliveries.CLAIM):
        _check(await _explained(crowded, statement, _CLAIM), rows_sorted=32, buffers=1_200)
    # Five thousand overdue timers of others stand before ours in the order of all.
    for statement in (timers.CLAIM_DUE_IN, deliveries.CLAIM_IN):
        one = {**_CLAIM, **partition_values([60])}
        _check(await _explained(crowded, statement, one), rows_sorted=32, buffers=900)
    for statement in (timer_lists.NEXT_DUE_AT, deliveries.NEXT_DELIVERY_AT):
        _check(await _explained(crowded, statement, {}), rows_sorted=0, buffers=40)
    for statement in (timer_lists.NEXT_DUE_AT_IN, deliveries.NEXT_DELIVERY_AT_IN):
        _check(await _explained(crowded, statement, partition_values(_MINE)), rows_sorted=0, buffers=1_500)


_FLOWS = columns("wanted", ("item", "partition_id", "flow_instance_id"), [(item, 7, uuid4()) for item in range(2)])
_HELD = columns("held", ("item", *timers.HELD_COLUMNS), [(item, 7, uuid4(), 1) for item in range(2)])


@pytest.mark.parametrize(
    "statement",
    [timers.CLAIM_DUE, timers.COMPLETE_EACH, deliveries.CLAIM, flow_instances.FIND_MANY, COUNT_SOME],
    ids=lambda one: one.name,
)
async def test_a_connection_soon_stops_planning(crowded: Any, statement: Statement) -> None:
    # The planner sees no value, so it takes no more for these values than for any. On a million timers a plan for what
    # it believed to be due by now (next to nothing) sorted all that was; for batches of two, planning cost thrice the
    # rest.
    compiled = CompiledStatement(statement, None)
    values = {**_CLAIM, "most": 1_000, "schema": None, "statuses": "{RUNNING}", "sized": "{flow_instances}"}
    values |= _FLOWS | _HELD
    for _ in range(7):
        await crowded.fetch(compiled.text, *compiled.arguments(values))
    kinds = await crowded.fetchrow(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = $1", compiled.text
    )
    assert dict(kinds) == {"generic_plans": 2, "custom_plans": 5}


async def test_claims_in_all_partitions_together_take_everything_once(crowded: Any, database_url: str) -> None:
    store: Store
    async with open_store(database_url) as store:
        claimed = []
        for part in (range(0, 86), range(86, 171), range(171, 256)):
            while batch := await store.timers.claim_due(
                "worker-1", limit=5_000, lease_duration=timedelta(minutes=5), partitions=part
            ):
                claimed += [timer.timer_id for timer in batch]
        due = await crowded.fetchval("SELECT count(*) FROM timers WHERE due_at <= now()")
        assert len(claimed) == len(set(claimed)) == due
