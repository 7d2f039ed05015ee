"""The lock that migrations take, held by a test in the place of another process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from cascade_state.ids import lock_key

__all__ = ["LOCK_KEY", "WAIT", "execute", "migration_lock", "waiting"]

LOCK_KEY = lock_key(None, "migration", "")
WAIT = 30.0


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def migration_lock(url: str) -> AsyncIterator[Any]:
    """Holds the lock that migrations take, as another process would."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        yield connection
    finally:
        await connection.close()


async def waiting(connection: Any, number: int) -> None:
    """Returns when that many other connections have asked for the migration lock."""
    async with asyncio.timeout(WAIT):
        while True:
            found = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(%' "
                "AND application_name = 'cascade_state migrations'"
            )
            if found >= number:
                return
            await asyncio.sleep(0.02)
