"""Test processes at once: each migrates unless somebody has, then runs tests with a database each.

They are forked, because importing everything in each would take longer than their tests. Every fifth test changes its
database. Arguments: URL, hash, how many processes, how many tests in each, file in which each migration leaves a mark.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import asyncpg

from cascade_state.testing import IntegresqlClient


async def main(url: str, template_hash: str, test_count: int, log: Path) -> None:
    async def migrate(database_url: str) -> None:
        with log.open("a") as file:
            file.write("m")
        connection = await asyncpg.connect(database_url)
        await connection.execute("CREATE TABLE pilot (name text); INSERT INTO pilot VALUES ('Mario')")
        await connection.close()

    pristine = 0
    async with IntegresqlClient(url) as client:
        await client.with_template(template_hash, migrate)
        for number in range(test_count):
            database = await client.get_test_database(template_hash)
            connection = await asyncpg.connect(database.url)
            pristine += await connection.fetchval("SELECT count(*) FROM pilot") == 1
            if number % 5:
                await connection.close()
                await client.unlock(template_hash, database.id)
            else:
                await connection.execute("INSERT INTO pilot VALUES ('Luigi')")
                await connection.close()
                await client.recreate(template_hash, database.id)
    assert pristine == test_count


def run(*arguments: Any) -> None:
    asyncio.run(main(*arguments))


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    arguments = (sys.argv[1], sys.argv[2], int(sys.argv[4]), Path(sys.argv[5]))
    processes = [fork.Process(target=run, args=arguments) for _ in range(int(sys.argv[3]))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
