"""Several processes on one pool: shared, killed, stopped, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cascade_state.errors import PoolTimeout
from cascade_state.testing import DatabasePool, PostgresServer
from cascade_state.testing.pool.session import GRACE

ROOT = Path(__file__).resolve().parents[3]
WAIT = timedelta(seconds=30)
BEYOND_GRACE = 2 * GRACE

pytestmark = pytest.mark.postgres

# Leases a database, says its name, and holds it until told; then again, as often as told.
HOLDER = """
import asyncio, asyncpg, sys
from cascade_state.testing import DatabasePool, PostgresServer

url, template, initial, most = sys.argv[1:]

async def line():
    return (await asyncio.to_thread(sys.stdin.readline)).strip()

async def main():
    server = PostgresServer.from_url(url)
    async with DatabasePool(server, template, initial_size=int(initial), max_size=int(most)) as pool:
        print("open", flush=True)
        while (order := await line()) != "end":
            async with pool.lease() as database:
                connection = await asyncpg.connect(database.url) if order == "connect" else None
                print(database.name, database.generation, flush=True)
                await line()
                if connection is not None:
                    await connection.close()
            print("given back", flush=True)

asyncio.run(main())
"""

# Leases databases one after the other, and finds each of them as the template is.
WORKER = """
import asyncio, asyncpg, sys
from datetime import timedelta
from cascade_state.testing import DatabasePool, PostgresServer

url, template, initial, most = sys.argv[1:]

async def main():
    server = PostgresServer.from_url(url)
    async with DatabasePool(server, template, initial_size=int(initial), max_size=int(most)) as pool:
        async def one():
            async with pool.lease(timeout=timedelta(seconds=30)) as database:
                connection = await asyncpg.connect(database.url)
                await connection.execute("INSERT INTO colour VALUES ('changed')")
                names = await connection.fetch("SELECT name FROM colour")
                await connection.close()
                print(database.name, database.generation, len(names), flush=True)
        await asyncio.gather(*(one() for _ in range(8)))

asyncio.run(main())
"""


class Process:
    """A child that is talked to line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self) -> str:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), WAIT.total_seconds())
        return line.decode().strip()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> tuple[int, list[str]]:
        out, _ = await asyncio.wait_for(self._process.communicate(), WAIT.total_seconds())
        assert self._process.returncode is not None
        return self._process.returncode, out.decode().splitlines()


@contextlib.asynccontextmanager
async def child(program: str, server: PostgresServer, template: str, initial: int, most: int) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, server.url, template, str(initial), str(most)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield Process(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_processes_share_a_pool_and_never_a_database(server: PostgresServer, template: str) -> None:
    async with (
        child(WORKER, server, template, 1, 4) as first,
        child(WORKER, server, template, 1, 4) as second,
    ):
        outcomes = await asyncio.gather(first.end(), second.end())
    assert [code for code, _ in outcomes] == [0, 0]
    leases = [line.split() for _, lines in outcomes for line in lines]
    assert len(leases) == 16
    assert {rows for _, _, rows in leases} == {"2"}  # "red" and the own one
    assert max(Counter((name, generation) for name, generation, _ in leases).values()) == 1
    assert len({name for name, _, _ in leases}) <= 4


@pytest.mark.parametrize("order", ["hold", "connect"])
async def test_what_a_killed_process_held_is_made_anew(
    server: PostgresServer, template: str, order: str, rows_of: Callable[[str], Awaitable[list[str]]]
) -> None:
    async with DatabasePool(server, template, initial_size=0, max_size=1) as pool:
        async with child(HOLDER, server, template, 0, 1) as holder:
            assert await holder.says() == "open"
            holder.tell(order)
            name, generation = (await holder.says()).split()
            with pytest.raises(PoolTimeout):
                await pool.lease(timeout=BEYOND_GRACE).__aenter__()  # it lives, connected or not
            holder.signal(signal.SIGKILL)
            async with pool.lease(timeout=WAIT) as database:
                assert (database.name, database.generation) == (name, int(generation) + 1)
                assert await rows_of(database.url) == ["red"]


async def test_a_database_of_a_killed_process_is_left_to_those_who_are_connected(
    server: PostgresServer, template: str, connect: Any
) -> None:
    async with DatabasePool(server, template, initial_size=0, max_size=1) as pool:
        async with child(HOLDER, server, template, 0, 1) as holder:
            assert await holder.says() == "open"
            holder.tell("hold")
            name = (await holder.says()).split()[0]
            async with connect(server.url_for(name)) as connection:  # the killed one's own child, perhaps
                holder.signal(signal.SIGKILL)
                with pytest.raises(PoolTimeout):
                    await pool.lease(timeout=BEYOND_GRACE).__aenter__()
                assert await connection.fetchval("SELECT count(*) FROM colour") == 1
        async with pool.lease(timeout=WAIT) as database:
            assert database.name == name


async def test_a_stopped_process_keeps_what_it_holds(server: PostgresServer, template: str) -> None:
    async with (
        DatabasePool(server, template, initial_size=0, max_size=1) as pool,
        child(HOLDER, server, template, 0, 1) as holder,
    ):
        assert await holder.says() == "open"
        holder.tell("hold")
        name, generation = (await holder.says()).split()
        holder.signal(signal.SIGSTOP)
        with pytest.raises(PoolTimeout):
            await pool.lease(timeout=BEYOND_GRACE).__aenter__()
        holder.signal(signal.SIGCONT)
        holder.tell("give back")
        assert await holder.says() == "given back"
        async with pool.lease(timeout=WAIT) as database:
            assert (database.name, database.generation) == (name, int(generation) + 1)
        holder.tell("end")
        assert (await holder.end())[0] == 0


async def test_the_next_process_continues_with_what_is_there(server: PostgresServer, template: str) -> None:
    async with child(HOLDER, server, template, 2, 2) as first:
        assert await first.says() == "open"
        for line in ("hold", "give back", "end"):
            first.tell(line)
        assert (await first.end())[0] == 0
    async with DatabasePool(server, template, initial_size=0, max_size=2) as pool:
        async with pool.lease(timeout=WAIT) as one, pool.lease(timeout=WAIT) as other:
            assert {one.number, other.number} == {0, 1}
            one.keep_clean()
            other.keep_clean()
        assert (await pool.statistics()).databases >= 2


async def test_a_pool_whose_connection_is_cut_keeps_its_leases(
    server: PostgresServer, template: str, connect: Any
) -> None:
    """The server ends the session, the process lives: it takes its lock again before anybody believes it gone."""
    async with (
        DatabasePool(server, template, initial_size=0, max_size=1) as pool,
        child(HOLDER, server, template, 0, 1) as other,
    ):
        async with pool.lease(timeout=WAIT) as database:
            assert await other.says() == "open"
            other.tell("hold")  # it waits, and looks for holders that are gone
            async with connect(server.url) as connection:
                for _ in range(3):
                    await connection.fetch(
                        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1",
                        f"cascade_state pool holder of {os.getpid()}",
                    )
                    assert (await pool.statistics()).leased == 1
            await asyncio.sleep(BEYOND_GRACE.total_seconds())  # what must not happen has had its time
            assert await server.database_exists(database.name)
            database.keep_clean()
        assert await other.says() == f"{database.name} {database.generation}"
