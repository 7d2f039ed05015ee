"""`make bench`: the store's operations against bare asyncpg and a plain ORM unit of work, in one run."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import asyncpg

from benchmarks.contenders import Bare, Orm
from benchmarks.contests import Contests
from benchmarks.measuring import Measurement, measure
from benchmarks.report import as_json, as_markdown, machine
from cascade_state import open_store
from cascade_state.postgres.embedded import EmbeddedServer


def main() -> None:
    """Parses the command line and runs the contests."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; the ratios are rougher")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", default="", help="only operations whose name contains this")
    parser.add_argument("--output", type=Path, help="also write the table into this file")
    arguments = parser.parse_args()
    asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> None:
    operations, rounds = (60, 2) if arguments.quick else (200, 5)
    # In memory where there is a tmpfs, but with durable settings: what is measured includes the commit.
    with tempfile.TemporaryDirectory(dir=_tmpfs()) as directory, EmbeddedServer(directory) as server:
        async with open_store(server.url) as store:
            await store.migrate()
            bare, orm = Bare(server.url), Orm(server.url)
            await bare.open(16)
            contests = Contests(store, bare, orm, operations)
            await contests.set_up()
            chosen = [contest for contest in contests.all() if arguments.only in contest.name]
            measurements: list[Measurement] = []
            for tasks in (1, 16):
                measurements += await measure(chosen, tasks, rounds, _progress)
            await bare.close()
            await orm.close()
        about = machine(await _server_version(server.url))
    _progress("")
    table = as_markdown(measurements, about)
    print(as_json(measurements, about) if arguments.json else table)
    if arguments.output is not None:
        arguments.output.write_text(table + "\n")


def _tmpfs() -> str | None:
    shared_memory = Path("/dev/shm")  # noqa: S108 - a directory of our own inside it
    return str(shared_memory) if shared_memory.is_dir() else None


async def _server_version(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
