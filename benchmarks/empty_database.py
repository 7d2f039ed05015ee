"""An empty database on the server of a run."""

from __future__ import annotations

import asyncpg

__all__ = ["created"]


async def created(url: str, name: str) -> str:
    """Creates an empty database and returns its URL; `url` is that of the database postgres."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return url.replace("/postgres?", f"/{name}?", 1)
