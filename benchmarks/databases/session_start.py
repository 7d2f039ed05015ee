"""What a test session waits before its first test has a database: with a cold hash, and with one that is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cascade_state.testing import PostgresServer

__all__ = ["measure_session_starts"]

_ROOT = Path(__file__).resolve().parents[2]

# From the first import to the first database; the interpreter itself is not counted.
_SESSION = """
import time
start = time.perf_counter()
import asyncio, sys
from cascade_state.testing import DatabasePool, PostgresServer, hash_directory

url, salt = sys.argv[1:]

async def setup(scratch):
    from cascade_state.postgres.schema import migrate_database
    await migrate_database(scratch)

async def main():
    with (PostgresServer.from_url(url) if url else PostgresServer.embedded()) as server:
        name = f"bench_session_{hash_directory('migrations', include=('*.py',), salt=(salt,)).short}"
        await server.ensure_template_exists(name, setup)
        async with DatabasePool(server, name, initial_size=1, max_size=2) as pool:
            async with pool.lease():
                print(time.perf_counter() - start)
            if not url:
                await pool.discard()

asyncio.run(main())
"""


def measure_session_starts(server: PostgresServer, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each session."""
    seconds: dict[str, list[float]] = {"own server, cold": [], "running server, new hash": [], "known hash": []}
    for number in range(rounds):
        seconds["own server, cold"].append(_session("", ""))
        seconds["running server, new hash"].append(_session(server.url, f"{number}"))
        seconds["known hash"].append(_session(server.url, f"{number}"))
    return seconds


def _session(url: str, salt: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _SESSION, url, salt], cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
