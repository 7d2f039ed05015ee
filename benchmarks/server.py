"""The server of a run: in memory, where there is a tmpfs, and gone with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from cascade_state.postgres.shared_server import SharedServer, socket_url

__all__ = ["durable_server", "server_version"]


@contextmanager
def durable_server(settings: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Starts a server that makes its commits durable; yields its URL and its first process."""
    shared_memory = Path("/dev/shm")  # noqa: S108 - a directory of our own inside it
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as directory:
        server = SharedServer(Path(directory), settings=settings)
        postmaster = server.start()
        try:
            yield socket_url(postmaster, "postgres"), postmaster.process_id
        finally:
            server.stop()


async def server_version(url: str) -> str:
    """Returns what the server says it is."""
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()
