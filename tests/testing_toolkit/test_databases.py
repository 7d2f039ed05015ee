"""Databases on a test server: made, copied, dropped; templates finished or absent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cascade_state.errors import (
    DatabaseAlreadyExists,
    DatabaseInUse,
    DatabaseNotFound,
    InvalidDatabaseName,
    TemplateBusy,
    TestDatabaseError,
)
from cascade_state.testing import PostgresServer, hash_directory
from cascade_state.testing.blocking import run_blocking

ROOT = Path(__file__).resolve().parents[2]
WAIT = 30.0

pytestmark = pytest.mark.postgres


@contextlib.asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url, **options)
    try:
        yield connection
    finally:
        await connection.close()


async def run(url: str, statement: str) -> None:
    async with connected(url) as connection:
        await connection.execute(statement)


async def value(url: str, statement: str, *arguments: object) -> Any:
    async with connected(url) as connection:
        return await connection.fetchval(statement, *arguments)


async def databases(server: PostgresServer) -> set[str]:
    async with connected(server.url) as connection:
        return {row[0] for row in await connection.fetch("SELECT datname FROM pg_database")}


async def scratch_databases(server: PostgresServer, template: str) -> set[str]:
    mark = f"_scratch_{hashlib.sha256(template.encode()).hexdigest()[:16]}_"
    return {name for name in await databases(server) if mark in name}


@pytest.fixture
def name(server: PostgresServer) -> Iterator[str]:
    """A name of this test's own; databases and templates that begin with it are dropped afterwards."""
    own = f"db_{secrets.token_hex(6)}"
    yield own

    async def clean() -> None:
        scratch = await scratch_databases(server, own)
        for found in await databases(server):
            if found.startswith(own) or found in scratch:
                await server.drop_database(found, force=True)

    run_blocking(clean())


async def filled(url: str) -> None:
    await run(url, "CREATE TABLE colour (name text); INSERT INTO colour VALUES ('red')")


async def test_a_database_is_created_used_and_dropped(server: PostgresServer, name: str) -> None:  # TPL-01, TPL-05
    assert not await server.database_exists(name)
    await server.create_database(name)
    assert await server.database_exists(name)
    assert await value(server.url_for(name), "SELECT current_database()") == name
    await server.drop_database(name)
    assert not await server.database_exists(name)


async def test_a_taken_name_is_refused(server: PostgresServer, name: str) -> None:  # TPL-02
    await server.create_database(name)
    with pytest.raises(DatabaseAlreadyExists) as caught:
        await server.create_database(name)
    assert caught.value.database == name


async def test_of_many_who_create_the_same_one_succeeds(server: PostgresServer, name: str) -> None:
    outcomes = await asyncio.gather(*(server.create_database(name) for _ in range(4)), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["DatabaseAlreadyExists"] * 3 + ["NoneType"]


async def test_dropping_a_missing_one_is_refused(server: PostgresServer, name: str) -> None:  # TPL-03
    with pytest.raises(DatabaseNotFound):
        await server.drop_database(name)


async def test_dropping_one_in_use_is_refused_and_names_the_user(server: PostgresServer, name: str) -> None:  # TPL-04
    await server.create_database(name)
    settings = {"application_name": "somebody"}
    async with connected(server.url_for(name), server_settings=settings) as connection:
        with pytest.raises(DatabaseInUse) as caught:
            await server.drop_database(name)
        assert caught.value.connections == ((connection.get_server_pid(), "somebody"),)
        assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("bad", ["", "a\0b", "x" * 64, "ü" * 32, "\ud800", None, 7])
async def test_names_that_cannot_be_are_refused_everywhere(server: PostgresServer, bad: Any) -> None:  # TPL-06
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: server.create_database(bad),
        lambda: server.drop_database(bad),
        lambda: server.database_exists(bad),
        lambda: server.create_database_from_template("x", bad),
        lambda: server.create_database_from_template(bad, "x"),
        lambda: server.ensure_template_exists(bad, filled),
    ]
    for call in calls:
        with pytest.raises(InvalidDatabaseName):
            await call()
    with pytest.raises(InvalidDatabaseName):
        server.url_for(bad)


@pytest.mark.parametrize(
    "odd",
    [
        '"; DROP DATABASE postgres; --',
        "a b/c?d#e%f&g",
        "Ümläut",
        "x" * 63,
        "ü" * 31,
        "'",
        "\\",
        "\u202eabc\t",
    ],
)
async def test_odd_names_are_taken_as_they_are(server: PostgresServer, odd: str) -> None:
    async with server.temporary_database(odd) as database:
        assert database.name == odd
        assert odd in await databases(server)
        assert await value(database.url, "SELECT current_database()") == odd
    assert odd not in await databases(server)


async def test_a_copy_has_schema_and_data_and_is_independent(server: PostgresServer, name: str) -> None:  # TPL-09
    await server.ensure_template_exists(f"{name}_t", filled)
    async with (
        server.temporary_database_from_template(f"{name}_t") as first,
        server.temporary_database_from_template(f"{name}_t") as second,
    ):
        await run(first.url, "INSERT INTO colour VALUES ('blue')")
        assert await value(first.url, "SELECT count(*) FROM colour") == 2
        assert await value(second.url, "SELECT count(*) FROM colour") == 1


async def test_a_copy_of_a_missing_template_is_refused(server: PostgresServer, name: str) -> None:  # TPL-10
    with pytest.raises(DatabaseNotFound) as caught:
        await server.create_database_from_template(name, "no_such_template")
    assert caught.value.database == "no_such_template"


async def test_a_copy_of_a_database_in_use_is_refused(server: PostgresServer, name: str) -> None:  # TPL-11
    await server.create_database(name)
    async with connected(server.url_for(name)) as connection:
        with pytest.raises(DatabaseInUse) as caught:
            await server.create_database_from_template(f"{name}_copy", name)
        assert caught.value.database == name
        assert [pid for pid, _ in caught.value.connections] == [connection.get_server_pid()]


async def test_set_up_runs_once(server: PostgresServer, name: str) -> None:  # TPL-12
    urls = []

    async def setup(url: str) -> None:
        urls.append(url)

    await server.ensure_template_exists(name, setup)
    await server.ensure_template_exists(name, setup)
    assert len(urls) == 1


async def test_set_up_may_be_a_plain_function_with_a_loop_of_its_own(server: PostgresServer, name: str) -> None:
    await server.ensure_template_exists(name, lambda url: asyncio.run(filled(url)))
    async with server.temporary_database_from_template(name) as database:
        assert await value(database.url, "SELECT name FROM colour") == "red"


async def test_the_whole_way_from_a_directory_to_a_database_for_each_test(
    server: PostgresServer, name: str, tmp_path: Path
) -> None:  # TPL-15
    (tmp_path / "1.sql").write_text("CREATE TABLE colour (name text)")
    (tmp_path / "2.sql").write_text("INSERT INTO colour VALUES ('red')")

    def statements() -> list[str]:
        return [file.read_text() for file in sorted(tmp_path.iterdir())]

    async def migrate(url: str) -> None:
        for statement in statements():
            await run(url, statement)

    for count in (1, 2):  # what changes in the directory makes another template
        template = f"{name}_{hash_directory(tmp_path).short}"
        await server.ensure_template_exists(template, migrate)
        async with (
            server.temporary_database_from_template(template) as first,
            server.temporary_database_from_template(template) as second,
        ):
            await run(first.url, "DELETE FROM colour")
            assert await value(second.url, "SELECT count(*) FROM colour") == count
        (tmp_path / "3.sql").write_text("INSERT INTO colour VALUES ('blue')")


@pytest.mark.parametrize(
    "odd", ["x" * 63, "ü" * 31, '"; DROP DATABASE postgres; --', "a b/c?d#e%f&g'\\", "\u202eabc\t"]
)
async def test_templates_may_have_odd_names_too(server: PostgresServer, odd: str) -> None:
    await server.ensure_template_exists(odd, filled)
    try:
        await server.ensure_template_exists(odd, filled, metadata={"name": odd})
        async with server.temporary_database_from_template(odd) as database:
            assert await value(database.url, "SELECT name FROM colour") == "red"
    finally:
        await server.drop_database(odd)
    assert not await scratch_databases(server, odd)


async def test_many_tasks_ensure_one_template(server: PostgresServer, name: str) -> None:  # TPL-13
    calls = []

    async def setup(url: str) -> None:
        calls.append(url)
        await filled(url)

    await asyncio.gather(*(server.ensure_template_exists(name, setup) for _ in range(10)))
    assert len(calls) == 1


def test_many_threads_ensure_one_template(server: PostgresServer, name: str) -> None:
    calls, errors = [], []
    barrier = threading.Barrier(6)

    async def setup(url: str) -> None:
        calls.append(url)
        await filled(url)

    def work() -> None:
        barrier.wait(WAIT)
        try:
            asyncio.run(server.ensure_template_exists(name, setup))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not errors
    assert len(calls) == 1


ENSURE = """
import asyncio, asyncpg, os, sys
from cascade_state.testing import PostgresServer, hash_directory
from cascade_state.testing.blocking import run_blocking
url, name, log, mode = sys.argv[1:]

async def setup(scratch):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    connection = await asyncpg.connect(scratch)
    await connection.execute("CREATE TABLE colour (name text); INSERT INTO colour VALUES ('red')")
    if mode == "hang":
        print("half way", flush=True)
        await asyncio.sleep(3600)
    await connection.close()

print("ready", flush=True)
if mode != "hang":
    sys.stdin.readline()
asyncio.run(PostgresServer.from_url(url).ensure_template_exists(name, setup))
"""


def ensure_in_process(server: PostgresServer, name: str, log: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENSURE, server.url, name, str(log), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def test_eight_processes_ensure_one_template(server: PostgresServer, name: str, tmp_path: Path) -> None:
    processes = [ensure_in_process(server, name, tmp_path / "log", "build") for _ in range(8)]
    assert [line_of(process) for process in processes] == ["ready"] * 8
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=WAIT)
    assert [process.returncode for process in processes] == [0] * 8
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    async with server.temporary_database_from_template(name) as database:
        assert await value(database.url, "SELECT name FROM colour") == "red"


async def test_a_killed_set_up_leaves_nothing_that_looks_finished(
    server: PostgresServer, name: str, tmp_path: Path
) -> None:
    process = ensure_in_process(server, name, tmp_path / "log", "hang")
    try:
        assert [line_of(process), line_of(process)] == ["ready", "half way"]
        assert not await server.database_exists(name)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate(timeout=WAIT)
    assert not await server.database_exists(name)
    assert len(await scratch_databases(server, name)) == 1
    await server.ensure_template_exists(name, filled)
    assert not await scratch_databases(server, name)
    async with server.temporary_database_from_template(name) as database:
        assert await value(database.url, "SELECT count(*) FROM colour") == 1


async def test_a_failing_set_up_leaves_nothing_and_its_error_reaches_all_who_waited(
    server: PostgresServer, name: str
) -> None:  # TPL-14
    calls = []
    begun, waiting = asyncio.Event(), asyncio.Event()

    async def failing(url: str) -> None:
        calls.append(url)
        await filled(url)
        begun.set()
        await asyncio.wait_for(waiting.wait(), WAIT)
        raise ZeroDivisionError("no such luck")

    leader = asyncio.create_task(server.ensure_template_exists(name, failing))
    followers = [asyncio.create_task(server.ensure_template_exists(name, failing)) for _ in range(3)]
    await asyncio.wait_for(begun.wait(), WAIT)
    waiting.set()
    outcomes = await asyncio.gather(leader, *followers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 4
    assert len(calls) == 1
    assert not await server.database_exists(name)
    assert not await scratch_databases(server, name)
    await server.ensure_template_exists(name, filled)
    assert await server.database_exists(name)


async def test_a_cancelled_builder_hands_over_to_a_waiter(server: PostgresServer, name: str) -> None:
    begun = asyncio.Event()

    async def never_ends(url: str) -> None:
        await filled(url)
        begun.set()
        await asyncio.Event().wait()

    builder = asyncio.create_task(server.ensure_template_exists(name, never_ends))
    await asyncio.wait_for(begun.wait(), WAIT)
    waiter = asyncio.create_task(server.ensure_template_exists(name, filled))
    await asyncio.sleep(0)  # the waiter has joined the attempt
    builder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await builder
    await asyncio.wait_for(waiter, WAIT)
    assert await server.database_exists(name)
    assert not await scratch_databases(server, name)


async def test_waiting_too_long_names_who_builds(server: PostgresServer, name: str, tmp_path: Path) -> None:
    process = ensure_in_process(server, name, tmp_path / "log", "hang")
    try:
        assert [line_of(process), line_of(process)] == ["ready", "half way"]
        with pytest.raises(TemplateBusy) as caught:
            await server.ensure_template_exists(name, filled, timeout=timedelta(milliseconds=50))
        holder = await value(
            server.url,
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1",
            f"cascade_state template {name}",
        )
        assert caught.value.process_id == holder
        assert name in caught.value.application_name
        assert isinstance(caught.value, TimeoutError)
    finally:
        process.kill()
        process.communicate(timeout=WAIT)


async def test_waiting_too_long_inside_one_process_is_said_as_well(server: PostgresServer, name: str) -> None:
    begun, end = asyncio.Event(), asyncio.Event()

    async def slow(url: str) -> None:
        begun.set()
        await asyncio.wait_for(end.wait(), WAIT)

    builder = asyncio.create_task(server.ensure_template_exists(name, slow))
    await asyncio.wait_for(begun.wait(), WAIT)
    with pytest.raises(TemplateBusy) as caught:
        await server.ensure_template_exists(name, slow, timeout=timedelta(milliseconds=20))
    assert caught.value.process_id == os.getpid()
    end.set()
    await builder


async def test_templates_of_different_names_are_built_side_by_side(server: PostgresServer, name: str) -> None:
    barrier = asyncio.Barrier(2)

    async def setup(url: str) -> None:
        await asyncio.wait_for(barrier.wait(), WAIT)

    await asyncio.gather(*(server.ensure_template_exists(f"{name}_{letter}", setup) for letter in "ab"))


async def test_a_template_is_protected_and_described(server: PostgresServer, name: str) -> None:
    await server.ensure_template_exists(name, filled, metadata={"hash": "it's \\ here", "heads": ["0001"]})
    with pytest.raises(asyncpg.PostgresError):
        await run(server.url_for(name), "SELECT 1")
    async with connected(server.url) as connection:
        row = await connection.fetchrow(
            "SELECT datistemplate, datallowconn, shobj_description(oid, 'pg_database') AS comment "
            "FROM pg_database WHERE datname = $1",
            name,
        )
    assert (row["datistemplate"], row["datallowconn"]) == (True, False)
    comment = json.loads(row["comment"])
    assert comment["metadata"] == {"hash": "it's \\ here", "heads": ["0001"]}
    assert {"tool", "tool_version", "built_at"} < set(comment)


async def test_connections_that_set_up_forgot_do_not_hinder(server: PostgresServer, name: str) -> None:
    forgotten = []

    async def setup(url: str) -> None:
        forgotten.append(await asyncpg.connect(url))

    await server.ensure_template_exists(name, setup)
    async with server.temporary_database_from_template(name):
        pass
    forgotten[0].terminate()


async def test_a_database_that_is_no_template_is_not_taken_for_one(server: PostgresServer, name: str) -> None:
    await server.create_database(name)
    with pytest.raises(DatabaseAlreadyExists):
        await server.ensure_template_exists(name, filled)
    assert not await scratch_databases(server, name)


async def test_a_template_can_be_dropped_on_purpose(server: PostgresServer, name: str) -> None:
    await server.ensure_template_exists(name, filled)
    await server.drop_database(name)
    assert not await server.database_exists(name)


async def test_a_temporary_database_goes_with_its_scope(server: PostgresServer) -> None:  # TPL-17
    async with server.temporary_database() as database:
        assert database.name in await databases(server)
        await run(database.url, "SELECT 1")
    assert database.name not in await databases(server)
    with pytest.raises(ZeroDivisionError):
        async with server.temporary_database() as database:
            raise ZeroDivisionError
    assert database.name not in await databases(server)


async def test_a_temporary_database_can_be_awaited_and_dropped_twice(server: PostgresServer) -> None:
    database = await server.temporary_database()
    assert await server.database_exists(database.name)
    await database.drop()
    await database.drop()
    await database.force_drop()
    async with database:
        pass


async def test_dropping_with_a_live_connection_fails_and_forcing_it_works(
    server: PostgresServer,
) -> None:  # TPL-18, TPL-19
    database = await server.temporary_database()
    connection = await asyncpg.connect(database.url)
    with pytest.raises(DatabaseInUse):
        await database.drop()
    assert await connection.fetchval("SELECT 1") == 1
    await database.force_drop()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 1")
    connection.terminate()
    assert not await server.database_exists(database.name)


async def test_a_failed_clean_up_is_a_warning(
    server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:  # TPL-20
    with caplog.at_level(logging.WARNING):
        async with server.temporary_database() as database:
            connection = await asyncpg.connect(database.url)
    assert database.name in caplog.text
    assert "in use" in caplog.text
    await connection.close()
    await database.drop()


async def test_a_database_dropped_behind_our_back_is_no_error(server: PostgresServer) -> None:
    async with server.temporary_database() as database:
        await server.drop_database(database.name)


def test_errors_share_a_class_that_pytest_does_not_collect() -> None:
    assert issubclass(DatabaseInUse, TestDatabaseError)
    assert TestDatabaseError.__test__ is False
