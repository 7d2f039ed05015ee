"""Fills a migrated database with flows and timers, faster than the store could: the rows are made by the server.

As one does with a large import: keys and indexes are dropped, and made again of what is there, which checks it. So ten
million flows take minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["load"]

_CHUNK = 200_000  # flows of one statement
_LONGEST_SECONDS = 3600

# The partition of an id is its last byte, at the default partition count. Three quarters of the flows have ended, as in
# a store that is some months old; the timers of the others are due next month.
_ROWS = """
    WITH flows AS (
        INSERT INTO flow_instances (
            partition_id, flow_instance_id, root_id, flow_id, flow_version, status, business_key, trigger_data,
            search_attributes, version, event_count, timer_changes, created_at, updated_at, completed_at
        )
        SELECT get_byte(uuid_send(id), 15), id, id, 'bench', 1,
            CASE WHEN number % 4 = 0 THEN 'RUNNING' ELSE 'COMPLETED' END,
            'order-' || number, '{"customer": "c-1042", "note": "0123456789012345678901234567890123456789"}',
            jsonb_build_object('customer', number % 1000), 2, 1, CASE WHEN number % 4 = 0 THEN 4 ELSE 0 END,
            now() - interval '90 days' + number * interval '90 days' / $3, now(),
            CASE WHEN number % 4 = 0 THEN NULL ELSE now() END
        FROM (
            SELECT gen_random_uuid() AS id, number FROM generate_series($1::bigint, $2::bigint) AS number
        ) AS new
        RETURNING partition_id, flow_instance_id, status
    ), results AS (
        INSERT INTO step_results (partition_id, flow_instance_id, step_id, status, outputs, attempt, completed_at)
        SELECT partition_id, flow_instance_id, 's0', 'COMPLETED', '{"receipt": "r-1"}', 1, now() FROM flows
    ), states AS (
        INSERT INTO component_states (partition_id, flow_instance_id, step_id, state, version, updated_at)
        SELECT partition_id, flow_instance_id, 's0', '{"attempts": 1}', 1, now() FROM flows
    ), events AS (
        INSERT INTO flow_events (partition_id, flow_instance_id, sequence, event_type, payload, recorded_at)
        SELECT partition_id, flow_instance_id, 1, 'flow_instance.created', '{}', now() FROM flows
    )
    INSERT INTO timers (
        partition_id, timer_id, flow_instance_id, step_id, due_at, status, attempts, max_attempts, payload
    )
    SELECT partition_id, overlay(gen_random_uuid()::text placing right(flow_instance_id::text, 3) from 34)::uuid,
        flow_instance_id, 's1', now() + interval '30 days' * random(), 'PENDING', 0, 20, '{}'
    FROM flows, generate_series(1, 4) WHERE status = 'RUNNING'
"""
_TABLES = "'{flow_instances, step_results, component_states, flow_events, timers}'::regclass[]"

# In the order in which they are made again: foreign keys need what they refer to.
_KEYS_AND_INDEXES = f"""
    SELECT 'ALTER TABLE ' || conrelid::regclass || ' DROP CONSTRAINT ' || quote_ident(conname) AS drop,
        'ALTER TABLE ' || conrelid::regclass || ' ADD CONSTRAINT ' || quote_ident(conname) || ' '
            || pg_get_constraintdef(oid) AS make,
        conname AS name, CASE contype WHEN 'f' THEN 3 ELSE 1 END AS place
    FROM pg_constraint
    WHERE contype IN ('p', 'u', 'f') AND (conrelid = ANY ({_TABLES}) OR confrelid = ANY ({_TABLES}))
    UNION ALL
    SELECT 'DROP INDEX ' || indexrelid::regclass, pg_get_indexdef(indexrelid), indexrelid::regclass::text, 2
    FROM pg_index
    WHERE indrelid = ANY ({_TABLES}) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    ORDER BY place, name
"""


async def load(connection: Any, flows: int, progress: Callable[[str], None] = lambda _: None) -> None:
    """Makes that many flows, and as many timers; leaves the tables as autovacuum would, with statistics."""
    await connection.execute("SET maintenance_work_mem = '512MB'")
    dropped = await connection.fetch(_KEYS_AND_INDEXES)
    for one in reversed(dropped):
        await connection.execute(one["drop"])
    for first in range(1, flows + 1, _CHUNK):
        progress(f"growth: loading {flows:,} flows and timers, {first - 1:,} of them are there")
        last = min(first + _CHUNK - 1, flows)
        await connection.execute(_ROWS, first, last, flows, timeout=_LONGEST_SECONDS)
    for one in dropped:
        progress(f"growth: loading {flows:,} flows and timers, making {one['name']}")
        await connection.execute(one["make"], timeout=_LONGEST_SECONDS)
    progress(f"growth: loading {flows:,} flows and timers, vacuuming")
    for statement in ("VACUUM ANALYZE", "CHECKPOINT", "RESET maintenance_work_mem"):
        await connection.execute(statement, timeout=_LONGEST_SECONDS)
