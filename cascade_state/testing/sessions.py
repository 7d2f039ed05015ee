"""Who is connected to a test database, and what they did last."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from cascade_state.testing.connections import Connection

__all__ = ["Session", "sessions_of", "sessions_that_stay"]

_FIRST_PAUSE_SECONDS = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One client's connection; `statement` is what it runs or ran last, empty when it never ran one."""

    process_id: int
    application_name: str
    state: str
    statement: str


async def sessions_of(connection: Connection, database: str) -> list[Session]:
    """Returns the clients that are connected to the database now, oldest first."""
    rows = await connection.fetch(
        """
        SELECT pid, coalesce(application_name, '') AS application_name, coalesce(state, '') AS state,
               coalesce(query, '') AS query
        FROM pg_stat_activity
        WHERE datname = $1 AND backend_type = 'client backend' AND pid <> pg_backend_pid()
        ORDER BY backend_start
        """,
        database,
    )
    return [
        Session(
            process_id=row["pid"],
            application_name=row["application_name"],
            state=row["state"],
            statement=" ".join(row["query"].split()),
        )
        for row in rows
    ]


async def sessions_that_stay(connection: Connection, database: str, *, patience: float) -> list[Session]:
    """Returns the clients that are still connected after some seconds; at once when there are none.

    A client's close returns before the server's process has gone.
    """
    deadline = time.monotonic() + patience
    pause = _FIRST_PAUSE_SECONDS
    while (found := await sessions_of(connection, database)) and time.monotonic() < deadline:
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.05)
    return found
