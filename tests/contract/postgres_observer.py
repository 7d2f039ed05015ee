"""Sees a PostgreSQL store from outside: who waits for a lock, which transactions are open."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg

from cascade_state import Store
from cascade_state.testing.contracts import Observer

# A backend that waits for a lock of any kind; a statement in progress that does not wait is still on its way.
_STATES = """
    SELECT count(*) FILTER (WHERE wait_event_type = 'Lock') AS waiting,
           count(*) FILTER (WHERE state = 'active' AND wait_event_type IS DISTINCT FROM 'Lock') AS working
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""

_IDLE_TRANSACTIONS = """
    SELECT format('%s %s', state, query)
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'
"""

# Deeper than Python's decoder goes, and still JSON for PostgreSQL: an integer of more digits than Python converts.
_DAMAGE = """
    UPDATE flow_instances SET trigger_data = ('{"broken": ' || repeat('9', 5000) || '}')::json
    WHERE flow_instance_id = $1
"""


class PostgresObserver(Observer):
    """Watches one database over a connection of its own for each look."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url

    async def settled(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        connection = await asyncpg.connect(self._url)
        try:
            await _until_settled(connection, tasks)
        finally:
            await connection.close()

    async def open_transactions(self) -> list[str]:
        connection = await asyncpg.connect(self._url)
        try:
            return [row[0] for row in await connection.fetch(_IDLE_TRANSACTIONS)]
        finally:
            await connection.close()

    async def make_undecodable(self, store: Store, flow_instance_id: UUID) -> None:
        connection = await asyncpg.connect(self._url)
        try:
            assert await connection.execute(_DAMAGE, flow_instance_id) == "UPDATE 1"
        finally:
            await connection.close()


async def _until_settled(connection: Any, tasks: Sequence[asyncio.Task[Any]]) -> None:
    # Each pending task waits in a backend of its own, or behind one that waits (a batch travels as one statement).
    while any(not task.done() for task in tasks):
        for _ in range(10):
            await asyncio.sleep(0)
        row = await connection.fetchrow(_STATES)
        pending = sum(not task.done() for task in tasks)
        if row["waiting"] >= min(pending, 1) and row["working"] == 0 and pending:
            return
