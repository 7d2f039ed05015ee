"""An empty database on the server of a run, made and dropped."""

from __future__ import annotations

import asyncpg

__all__ = ["created", "dropped"]


async def created(url: str, name: str) -> str:
    """Creates an empty database and returns its URL; `url` is that of the database postgres."""
    await _execute(url, f"CREATE DATABASE {name}")
    return url.replace("/postgres?", f"/{name}?", 1)


async def dropped(url: str, name: str) -> None:
    """Drops the database, whoever is still in it."""
    await _execute(url, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(url: str, text: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(text)
    finally:
        await connection.close()
