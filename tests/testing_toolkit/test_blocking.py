"""Blocking calls: from any thread, inside a running loop, on one loop that lives on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from cascade_state.errors import DatabaseAlreadyExists, DatabaseInUse, DatabaseNotFound
from cascade_state.testing import PostgresServer
from cascade_state.testing.blocking import run_blocking

ROOT = Path(__file__).resolve().parents[2]
WAIT = 30.0


async def running_loop() -> asyncio.AbstractEventLoop:
    await asyncio.sleep(0)
    return asyncio.get_running_loop()


def test_all_threads_share_one_loop() -> None:
    barrier = threading.Barrier(4)

    def call(_: int) -> asyncio.AbstractEventLoop:
        barrier.wait(WAIT)
        return run_blocking(running_loop())

    with ThreadPoolExecutor(4) as threads:
        loops = set(threads.map(call, range(4)))
    assert len(loops) == 1
    assert loops == {run_blocking(running_loop())}


async def test_it_works_inside_a_running_loop() -> None:
    assert run_blocking(running_loop()) is not asyncio.get_running_loop()


def test_it_works_inside_a_blocking_call() -> None:
    async def nested() -> bool:
        return run_blocking(running_loop()) is not asyncio.get_running_loop()

    assert run_blocking(nested())


def test_errors_come_through() -> None:
    async def fail() -> None:
        raise ZeroDivisionError("no such luck")

    with pytest.raises(ZeroDivisionError, match="no such luck"):
        run_blocking(fail())


def test_an_interrupted_caller_cancels_the_work() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    class InterruptedError_(BaseException): ...

    def interrupt(*_: object) -> None:
        raise InterruptedError_

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(WAIT)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def send() -> None:
        begun.wait(WAIT)
        os.kill(os.getpid(), signal.SIGUSR1)

    former = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Thread(target=send)
    try:
        with pytest.raises(InterruptedError_):
            sender.start()
            run_blocking(work())
        assert cancelled.wait(WAIT)
    finally:
        sender.join(WAIT)
        signal.signal(signal.SIGUSR1, former)


ENDING = """
import asyncio, os, sys
from cascade_state.testing.blocking import run_blocking

async def start_and_leave():
    async def never():
        try:
            await asyncio.Event().wait()
        finally:
            print("cleaned", flush=True)
    start_and_leave.task = asyncio.create_task(never())
    await asyncio.sleep(0)

run_blocking(start_and_leave())
child = os.fork()
if child == 0:
    async def answer():
        return 7
    code = run_blocking(answer())
    os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_process_ends_in_order_and_its_child_has_a_loop_of_its_own() -> None:
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", ENDING],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=WAIT,
    )
    assert (answer.returncode, answer.stdout.split()) == (0, ["7", "cleaned"]), answer.stderr
    assert "unclosed" not in answer.stderr


@pytest.mark.postgres
class TestDatabaseFunctions:
    def test_they_have_the_names_of_the_coroutines(self, server: PostgresServer, unique: str) -> None:  # TPL-07
        blocking = server.blocking
        assert server.blocking is blocking
        blocking.create_database(unique)
        assert blocking.database_exists(unique)
        with pytest.raises(DatabaseAlreadyExists):
            blocking.create_database(unique)
        blocking.create_database_from_template(f"{unique}_copy", unique)
        blocking.drop_database(f"{unique}_copy")
        blocking.drop_database(unique, force=True)
        assert not blocking.database_exists(unique)
        with pytest.raises(DatabaseNotFound):
            blocking.drop_database(unique)

    def test_a_template_is_set_up_by_a_function_of_either_kind(self, server: PostgresServer, unique: str) -> None:
        seen = []

        async def setup(url: str) -> None:
            connection = await asyncpg.connect(url)
            await connection.execute("CREATE TABLE colour (name text)")
            await connection.close()
            # Somebody else's coroutine may call back: it is not on the loop that waits for it.
            seen.append(server.blocking.database_exists("postgres"))

        server.blocking.ensure_template_exists(f"{unique}_a", setup)
        server.blocking.ensure_template_exists(f"{unique}_b", lambda url: seen.append(True), metadata={"a": 1})
        assert seen == [True, True]
        with server.blocking.temporary_database_from_template(f"{unique}_a") as database:
            assert asyncio.run(_count(database.url)) == 0
        assert not server.blocking.database_exists(database.name)
        for letter in "ab":
            server.blocking.drop_database(f"{unique}_{letter}")

    async def test_a_temporary_database_exists_from_the_call_on(self, server: PostgresServer, unique: str) -> None:
        database = server.blocking.temporary_database(unique)
        assert (database.name, database.url) == (unique, server.url_for(unique))
        connection = await asyncpg.connect(database.url)
        with pytest.raises(DatabaseInUse):
            database.drop()
        database.force_drop()
        database.force_drop()
        connection.terminate()
        with database:
            pass
        assert not await server.database_exists(unique)


async def _count(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM colour"))
    finally:
        await connection.close()


@pytest.fixture
def unique() -> str:
    return f"blocking_{os.urandom(6).hex()}"
