"""Runs a contender in a fresh process and database, and reads from the server what it did."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass

import asyncpg

from benchmarks.empty_database import created, dropped
from benchmarks.peers.child import NOT_INSTALLED, python_needed
from benchmarks.peers.workloads import Timing

__all__ = ["Failure", "Work", "run_once", "work_of_an_item"]

_PATIENCE_SECONDS = 120
_LEAVING_SECONDS = 10
_WORK = """
    SELECT xact_commit AS transactions, tup_inserted + tup_updated + tup_deleted AS rows
    FROM pg_stat_database WHERE datname = $1
"""


class Failure(Exception):
    """Says why a contender has no figures."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the server did, in a whole run or for one item."""

    transactions: float
    rows: float  # inserted, updated or deleted


def run_once(url: str, contender: str, workload: str, tasks: int, count: int) -> tuple[Timing, Work]:
    """Returns the timing, and all that was done in its database, which is dropped again."""
    name = f"{contender}_{workload}_{tasks}".replace("/", "_").replace("-", "_").replace(" ", "_")
    database = asyncio.run(created(url, name))
    try:
        timing = _timing(contender, workload, database, tasks, count)
        return timing, asyncio.run(_work(url, name))
    finally:
        asyncio.run(dropped(url, name))


def _timing(contender: str, workload: str, database: str, tasks: int, count: int) -> Timing:
    words = (contender, workload, database, str(tasks), str(count))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers.child", *words],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"was not done after {_PATIENCE_SECONDS} s") from error
    if done.returncode == NOT_INSTALLED:
        needed = python_needed(contender)
        if sys.version_info < needed:
            raise Failure(f"not run: needs Python {needed[0]}.{needed[1]}")
        raise Failure(f"not run: it could not be installed ({done.stderr.strip().splitlines()[-1]})")
    if done.returncode:
        raise Failure(f"failed: {(done.stderr.strip().splitlines() or ['ended without a word'])[-1]}")
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def work_of_an_item(fewer: tuple[Timing, Work], more: tuple[Timing, Work]) -> Work:
    """Returns what one item takes: the difference of two runs, so that what is done once falls out."""
    (few, before), (many, after) = fewer, more
    items = many.items + many.warm_up - few.items - few.warm_up
    return Work(
        transactions=(after.transactions - before.transactions) / items, rows=(after.rows - before.rows) / items
    )


async def _work(url: str, name: str) -> Work:
    """Reads what a database's sessions did, when the last of them has left: only then all of it is counted."""
    connection = await asyncpg.connect(url)
    try:
        end = time.monotonic() + _LEAVING_SECONDS
        while await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", name):
            if time.monotonic() > end:
                raise Failure("its sessions outlived it")
            await asyncio.sleep(0.02)
        found = await connection.fetchrow(_WORK, name)
        assert found is not None
        return Work(transactions=float(found["transactions"]), rows=float(found["rows"]))
    finally:
        await connection.close()
