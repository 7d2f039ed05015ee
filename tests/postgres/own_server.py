"""A PostgreSQL server that a test may stop and kill, unlike the one that all tests share."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cascade_state.postgres.postmaster import is_alive
from cascade_state.postgres.server_process import ServerFailed
from cascade_state.postgres.shared_server import SharedServer, socket_url
from tests.postgres.fault_tools import PATIENCE_SECONDS

__all__ = ["OwnServer", "own_server"]

_POLL_SECONDS = 0.01
_SETTINGS = {
    # A killed server loses what it had not yet handed to the operating system, as always; only a power cut would lose
    # more now. `synchronous_commit` stays on: an acknowledged commit must survive every stop in these tests.
    "fsync": "off",
    "max_connections": "60",
    "dynamic_shared_memory_type": "mmap",  # in the directory: it goes with it, also after a crash
}


class OwnServer:
    """A running server, and ways to end it; `url` stays the same over restarts."""

    def __init__(self, server: SharedServer) -> None:
        self._server = server
        self.url = socket_url(server.postmaster, "postgres")

    async def stop(self) -> None:
        """Stops the server as an administrator does: sessions end, everything is written."""
        await asyncio.to_thread(self._server.interrupt, mode="fast")

    async def stop_at_once(self) -> None:
        """Stops the server in immediate mode: sessions break off, the next start recovers."""
        await asyncio.to_thread(self._server.interrupt, mode="immediate")

    async def crash(self) -> None:
        """Kills the server; returns when its sessions have noticed, because they keep their locks until then."""
        await asyncio.to_thread(self._crash)

    async def start(self) -> None:
        """Starts the server again; returns when it accepts connections."""
        await asyncio.to_thread(self._server.start)
        assert socket_url(self._server.postmaster, "postgres") == self.url

    def _crash(self) -> None:
        sessions = _children_of(self._server.postmaster.process_id)
        self._server.crash()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(is_alive(session, self._server.directory / "pgdata") for session in sessions):
            assert time.monotonic() < deadline, "a session does not notice that its server is gone"
            time.sleep(_POLL_SECONDS)


def _children_of(process_id: int) -> list[int]:
    listed = subprocess.run(["/bin/ps", "-A", "-o", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return [int(child) for parent, child in pairs if int(parent) == process_id]


@contextmanager
def own_server() -> Iterator[OwnServer]:
    """Starts a server in a directory of its own, which goes with it."""
    parent = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
    directory = parent / f"cascade_state-test-{secrets.token_hex(6)}"  # swept, should this process be killed
    server = SharedServer(directory, remove_when_last=True, settings=_SETTINGS, initdb_options=("--no-sync",))
    try:
        server.start()
    except ServerFailed as exc:
        if os.environ.get("CASCADE_REQUIRE_POSTGRES") == "1":
            raise
        pytest.skip(f"SKIP-TEST-CLUSTER: {exc}")
    try:
        yield OwnServer(server)
    finally:
        server.stop(mode="immediate")
        shutil.rmtree(directory, ignore_errors=True)
