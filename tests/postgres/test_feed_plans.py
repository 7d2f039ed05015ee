"""How PostgreSQL finds what the feed asks for: by an index, in its order, however long the history is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from cascade_state.postgres.direct import CompiledStatement, Statement
from cascade_state.postgres.statements import events, feed_retention, feeds, statistics

pytestmark = pytest.mark.postgres

_FLOWS = 10_000
_EVENTS_A_FLOW = 5
_EARLY = {"after_xid": "0", "after_id": UUID(int=0), "after_sequence": 0}
_LATE = {"after_xid": "590", "after_id": UUID(int=7), "after_sequence": 3}


@pytest.fixture
async def history(database_url: str) -> AsyncIterator[Any]:
    """A connection to a database with a long history, in which an index matters and a short-cut shows."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("INSERT INTO flow_definitions VALUES ('plans', 1, '', '{}', now(), NULL)")
        await connection.execute(
            f"""
            INSERT INTO flow_instances (partition_id, flow_instance_id, root_id, flow_id, flow_version, status,
                                        trigger_data, version, event_count, created_at, updated_at)
            SELECT n % 256, lpad(to_hex(n), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, 'plans', 1, 'RUNNING',
                   '{{}}', 1, {_EVENTS_A_FLOW}, now(), now()
            FROM generate_series(0, {_FLOWS - 1}) AS n
            """
        )
        await connection.execute(
            f"""
            INSERT INTO flow_events (partition_id, flow_instance_id, sequence, event_type, payload, recorded_at,
                                     recorded_xid)
            SELECT n % 256, lpad(to_hex(n), 32, '0')::uuid, s, 'noted', '{{}}', now(),
                   (s * 100 + n % 100)::text::xid8
            FROM generate_series(0, {_FLOWS - 1}) AS n, generate_series(1, {_EVENTS_A_FLOW}) AS s
            """
        )
        for consumer, xid in (("early", 0), ("late", 590)):
            await connection.execute(f"INSERT INTO feed_consumers VALUES ('{consumer}', 'beginning', NULL, now())")
            await connection.execute(
                f"""
                INSERT INTO feed_checkpoints (partition_id, consumer, updated_at,
                                              recorded_xid, flow_instance_id, sequence)
                SELECT n, '{consumer}', now(), '{xid}', '{UUID(int=7)}', 3 FROM generate_series(0, 255) AS n
                """
            )
        await connection.execute("VACUUM ANALYZE")
        yield connection
    finally:
        await connection.close()


async def _plan(connection: Any, statement: Statement, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the nodes of the plan for these values, without those that only compute a value."""
    compiled = CompiledStatement(statement, None)
    arguments = compiled.arguments({"limit": 500, **values})
    explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {compiled.text}", *arguments)
    return [node for node in _nodes(json.loads(explained)[0]["Plan"]) if node["Node Type"] != "Result"]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


async def test_the_feed_is_read_along_an_index(history: Any) -> None:
    for statement, values, index in (
        (events.READ_FIRST, {}, "ix_flow_events_feed"),
        (events.READ_BEHIND, _LATE, "ix_flow_events_feed"),
        (events.READ_PARTITION, {"partition_id": 7, **_EARLY}, "ix_flow_events_partition_feed"),
        (events.READ_PARTITION, {"partition_id": 7, **_LATE}, "ix_flow_events_partition_feed"),
    ):
        nodes = await _plan(history, statement, values)
        assert [node["Node Type"] for node in nodes] == ["Limit", "Index Scan"], statement
        assert nodes[1]["Index Name"] == index, statement
        assert "Filter" not in nodes[1], statement  # nothing is read that is not wanted


_CONSUMER = {"partitions": [str(number) for number in range(256)], "partition_id": 7, "lock_key": 1}
_PURGE = {"before": datetime.now(UTC), "force": False, "partition_count": 256}


@pytest.mark.parametrize("consumer", ["early", "late"])
async def test_a_consumer_looks_into_partitions_by_their_own_index(history: Any, consumer: str) -> None:
    for statement, values in (
        (feeds.FIND_NEWS, {}),
        (feeds.READ_BATCH, {}),
        (feeds.LAG, {}),
        (statistics.COUNT_ALL, {}),
        (statistics.COUNT_SOME, {}),
        (feed_retention.PURGE_EVENTS, _PURGE),
    ):
        nodes = await _plan(history, statement, {**_CONSUMER, **values, "consumer": consumer})
        scans = [node for node in nodes if node.get("Relation Name") == "flow_events" and "Scan" in node["Node Type"]]
        assert scans, statement
        for node in scans:
            assert node["Node Type"] in ("Index Scan", "Index Only Scan", "Bitmap Heap Scan"), (statement, node)
        indexes = {node["Index Name"] for node in nodes if "flow_events" in node.get("Index Name", "")}
        assert indexes <= {"ix_flow_events_partition_feed", "pk_flow_events"}, statement
        if statement in (feeds.FIND_NEWS, feeds.READ_BATCH):
            assert {"Sort", "Bitmap Heap Scan"}.isdisjoint(node["Node Type"] for node in nodes), statement


async def test_what_is_new_costs_as_much_as_there_are_partitions(history: Any) -> None:
    """Three pages a partition: an index as deep as that, and none of the events that were handled."""
    compiled = CompiledStatement(feeds.FIND_NEWS, None)
    pages = {}
    for consumer in ("early", "late"):
        arguments = compiled.arguments({**_CONSUMER, "consumer": consumer})
        explained = await history.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {compiled.text}", *arguments)
        (document,) = json.loads(explained)
        pages[consumer] = document["Plan"]["Shared Hit Blocks"] + document["Plan"]["Shared Read Blocks"]
    assert pages["early"] <= 256 * 5
    assert pages["late"] <= 256 * 5
