"""Fills a migrated database with flows and timers, faster than the store could: the rows are made by the server."""

from __future__ import annotations

from typing import Any

__all__ = ["load"]

# The partition of an id is its last byte, at the default partition count. Three quarters of the flows have ended, as in
# a store that is some months old; the timers of the others are due next month.
_FLOWS = """
    INSERT INTO flow_instances (
        partition_id, flow_instance_id, root_id, flow_id, flow_version, status, business_key, trigger_data,
        search_attributes, version, event_count, created_at, updated_at, completed_at
    )
    SELECT get_byte(uuid_send(id), 15), id, id, 'bench', 1,
        CASE WHEN number % 4 = 0 THEN 'RUNNING' ELSE 'COMPLETED' END,
        'order-' || number, '{"customer": "c-1042", "note": "0123456789012345678901234567890123456789"}',
        jsonb_build_object('customer', number % 1000), 2, 1,
        now() - interval '90 days' + number * interval '90 days' / $1, now(),
        CASE WHEN number % 4 = 0 THEN NULL ELSE now() END
    FROM (SELECT gen_random_uuid() AS id, number FROM generate_series(1, $1::bigint) AS number) AS new
"""
_RESULTS = """
    INSERT INTO step_results (partition_id, flow_instance_id, step_id, status, outputs, attempt, completed_at)
    SELECT partition_id, flow_instance_id, 's0', 'COMPLETED', '{"receipt": "r-1"}', 1, now() FROM flow_instances
"""
_STATES = """
    INSERT INTO component_states (partition_id, flow_instance_id, step_id, state, version, updated_at)
    SELECT partition_id, flow_instance_id, 's0', '{"attempts": 1}', 1, now() FROM flow_instances
"""
_EVENTS = """
    INSERT INTO flow_events (partition_id, flow_instance_id, sequence, event_type, payload, recorded_at)
    SELECT partition_id, flow_instance_id, 1, 'flow_instance.created', '{}', now() FROM flow_instances
"""
_TIMERS = """
    INSERT INTO timers (
        partition_id, timer_id, flow_instance_id, step_id, due_at, status, attempts, max_attempts, payload
    )
    SELECT partition_id, overlay(gen_random_uuid()::text placing right(flow_instance_id::text, 3) from 34)::uuid,
        flow_instance_id, 's1', now() + interval '30 days' * random(), 'PENDING', 0, 20, '{}'
    FROM flow_instances, generate_series(1, 4) WHERE status = 'RUNNING'
"""


async def load(connection: Any, flows: int) -> None:
    """Makes that many flows, and as many timers; leaves the tables as autovacuum would, with statistics."""
    await connection.execute("SET maintenance_work_mem = '512MB'")
    await connection.execute(_FLOWS, flows, timeout=3600)
    for statement in (_RESULTS, _STATES, _EVENTS, _TIMERS, "VACUUM ANALYZE"):
        await connection.execute(statement, timeout=3600)
