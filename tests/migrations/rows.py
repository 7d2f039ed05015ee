"""One row for every table, for revisions that must work on a schema that holds data."""

from __future__ import annotations

import asyncpg

__all__ = ["TABLES", "insert_rows"]

_FLOW = "'018f0000-0000-7000-8000-000000000007'"

# As of the first revision; a later one that changes a table shows here what it does to an old row.
_ROWS = {
    "flow_definitions": "('order', 1, 'digest', '{\"steps\": []}', now(), NULL)",
    "flow_instances": f"""(7, {_FLOW}, {_FLOW}, NULL, 'order', 1, 'RUNNING', 'order-1001', '{{}}', NULL,
        '{{"a": 1}}', '{{"ship": "parcel-77"}}', NULL, 3, 5, 0, NULL, 0, NULL, now(), now(), NULL)""",
    "step_results": f"(7, {_FLOW}, 'charge', 'COMPLETED', '{{\"receipt\": 1e308}}', NULL, 1, now())",
    "component_states": f"(7, {_FLOW}, 'charge', 'null', 1, NULL, now())",
    "timers": f"(7, {_FLOW}, {_FLOW}, 'remind', now(), 'PENDING', NULL, 0, NULL, 0, 20, 'null', NULL)",
    "flow_events": f"(7, {_FLOW}, 1, 'flow_instance.created', '{{}}', now())",
    "correlations": f"(9, 'parcel-77', {_FLOW}, 'ship', 7, 'WAITING', now())",
    "early_events": "(9, 'parcel-78', 'evt-1', '{}', 'fifo', 'KEPT', now(), 1, now(), NULL)",
    "idempotency_keys": f"(11, 'business_key:order', 'order-1001', {_FLOW}, NULL, now(), NULL)",
    "workers": "(3, 'shipping', 'worker-1', now(), now(), '{}')",
    "partition_assignments": "(7, 'shipping', 'worker-1', 4)",
    "feed_checkpoints": "(7, 'invoices', '1,2,3', now())",
}

TABLES = (*_ROWS, "settings")


async def insert_rows(url: str) -> None:
    """Puts one row into each table; `settings` has its own already."""
    connection = await asyncpg.connect(url)
    try:
        for table, values in _ROWS.items():
            await connection.execute(f"INSERT INTO {table} VALUES {values}")
    finally:
        await connection.close()
