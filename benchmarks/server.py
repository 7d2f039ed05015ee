"""The server of a run: in memory, where there is a tmpfs, or in a directory of your choice; gone with the run.

However the run ends: a signal that asks it to end interrupts it, as the keyboard would.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from cascade_state.postgres.shared_server import SharedServer, socket_url

__all__ = ["durable_server", "server_version"]


@contextmanager
def durable_server(settings: Mapping[str, str], place: Path | None = None) -> Iterator[tuple[str, int]]:
    """Starts a server that makes its commits durable; yields its URL and its first process.

    Args:
        place: Where its data goes, in a directory of its own; None: in memory, where there is a tmpfs.
    """
    shared_memory = Path("/dev/shm")  # noqa: S108 - a directory of our own inside it
    if place is None and shared_memory.is_dir():
        place = shared_memory
    with tempfile.TemporaryDirectory(dir=place) as directory:
        server = SharedServer(Path(directory), settings=settings)
        before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        try:
            postmaster = server.start()
            yield socket_url(postmaster, "postgres"), postmaster.process_id
        finally:
            server.stop(mode="immediate")  # nobody needs the data
            signal.signal(signal.SIGTERM, before)


async def server_version(url: str) -> str:
    """Returns what the server says it is."""
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()
