"""The pytest plugin in projects that know nothing of flows: a database per test, kept when the test fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from cascade_state.testing import PostgresServer
from cascade_state.testing.blocking import run_blocking
from tests.testing_toolkit.foreign_project import ForeignProject

# Some run pytest several times; the default is for a single honest test.
pytestmark = [pytest.mark.postgres, pytest.mark.timeout(180)]

ISOLATION = """
import logging

import pytest
from paint.models import Colour
from sqlalchemy import select

names = select(Colour.name)


@pytest.mark.parametrize("round", [1, 2])
async def test_async(async_session, async_engine, test_database, round):
    async_session.add(Colour(name="red"))
    await async_session.commit()
    async with async_engine.connect() as other:
        assert (await other.scalars(names)).all() == ["red"]
    assert test_database.url.startswith("postgresql://")
    assert test_database.async_url.startswith("postgresql+asyncpg://")


@pytest.mark.parametrize("round", [1, 2])
def test_sync(sync_session, sync_engine, sync_test_database, test_database, round):
    sync_session.add(Colour(name="red"))
    sync_session.commit()
    with sync_engine.connect() as other:
        assert other.scalars(names).all() == ["red"]
    assert sync_test_database.name == test_database.name
    assert sync_test_database.async_url == test_database.async_url


@pytest.mark.parametrize("round", [1, 2])
async def test_rolled_back(rollback_session, round):
    rollback_session.add(Colour(name="red"))
    await rollback_session.commit()
    await rollback_session.rollback()
    assert (await rollback_session.scalars(names)).all() == ["red"]


@pytest.mark.parametrize("round", [1, 2])
def test_rolled_back_sync(sync_rollback_session, round):
    sync_rollback_session.add(Colour(name="red"))
    sync_rollback_session.commit()
    assert sync_rollback_session.scalars(names).all() == ["red"]


async def test_the_template_cannot_be_entered(template_database, postgres_server):
    assert template_database.hash.short in template_database.name == template_database
    async with postgres_server.temporary_database_from_template(template_database) as database:
        assert await postgres_server.database_exists(database.name)


async def test_a_database_that_the_test_drops_itself(test_database):
    await test_database.force_drop()


def test_logging_is_as_it_was(template_database, caplog):
    assert not logging.getLogger("app").disabled
    assert logging.getLogger().level == logging.WARNING
    assert logging.getLogger("sqlalchemy.engine").level == logging.NOTSET
    logging.getLogger("app").warning("heard")
    assert caplog.messages == ["heard"]
"""

CONFTEST = """
import logging

logging.getLogger("app")
"""


def copies(server: PostgresServer, project: ForeignProject) -> set[str]:
    """The databases that were copied from the project's templates."""
    hashes = [template.rpartition("_")[2] for template in project.templates(server)]
    return {name for name in databases(server) for digest in hashes if name.startswith(f"cascade_state_test_{digest}")}


def databases(server: PostgresServer) -> set[str]:
    async def look() -> set[str]:
        connection = await asyncpg.connect(server.url)
        try:
            return {row[0] for row in await connection.fetch("SELECT datname::text FROM pg_database")}
        finally:
            await connection.close()

    return run_blocking(look())


def value(url: str, statement: str) -> Any:
    async def look() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return run_blocking(look())


def kept_urls(output: str) -> dict[str, str]:
    """The databases named at the end, by test."""
    section = output.partition(" test databases kept ")[2]
    return dict(re.findall(r"^(\S+::\S+)\n    (postgresql://\S+)$", section, flags=re.MULTILINE))


@pytest.mark.parametrize("kind", ["async", "generic"])
def test_each_test_has_its_own_migrated_database(
    server: PostgresServer, make_project: Callable[..., ForeignProject], kind: str
) -> None:
    project = make_project(template=kind)
    project.write("test_paint.py", ISOLATION)
    project.write("conftest.py", CONFTEST)
    code, output = project.run(f"--postgres-url={server.url}", "-W", "error")
    assert code == 0, output
    assert "11 passed" in output
    assert project.migrations == 1
    assert not kept_urls(output)
    assert not copies(server, project)
    (template,) = project.templates(server)
    said = re.search(r"cascade_state: PostgreSQL (\S+), template (\S+) \(hash ([0-9a-f]{64})\)", output)
    assert said is not None, output
    assert said.group(1) == server.version_text
    assert said.group(2) == template
    assert said.group(3)[:12] in template
    assert "template: alembic.ini" in output


FAILING = """
import pytest
from paint.models import Colour


async def add(session, name):
    session.add(Colour(name=name))
    await session.commit()


@pytest.fixture
async def broken(async_session):
    await add(async_session, "set-up")
    raise RuntimeError


@pytest.fixture
async def ends_badly(async_session):
    yield
    await add(async_session, "tear-down")
    raise RuntimeError


@pytest.fixture
def ends_badly_late():
    yield
    raise RuntimeError


async def test_call(async_session):
    await add(async_session, "call")
    assert "red" == "blue"


def test_set_up(broken): ...


def test_tear_down(ends_badly): ...


async def test_late_tear_down(ends_badly_late, async_session):
    await add(async_session, "late")


async def test_good(async_session):
    await add(async_session, "good")


def test_shows_its_url(test_database):
    print(test_database.url)
    assert "red" == test_database.url
"""


def test_the_databases_of_failed_tests_are_kept_and_named(server: PostgresServer, project: ForeignProject) -> None:
    project.write("test_failing.py", FAILING)
    role, password = "keeper", "hunter2-q"
    run = f"CREATE ROLE {role} LOGIN CREATEDB SUPERUSER PASSWORD '{password}'"
    run_blocking(_execute(server.url, f"DROP ROLE IF EXISTS {role}"))
    run_blocking(_execute(server.url, run))
    url = server.url.replace("postgres@", f"{role}:{password}@", 1)
    try:
        code, output = project.run(f"--postgres-url={url}", "-k", "not shows")
        assert code == 1, output
        kept = kept_urls(output)
        assert {test.partition("::")[2] for test in kept} == {
            "test_call",
            "test_set_up",
            "test_tear_down",
            "test_late_tear_down",
        }
        for test, database_url in kept.items():
            names = {"test_call": "call", "test_set_up": "set-up", "test_tear_down": "tear-down"}
            expected = names.get(test.partition("::")[2], "late")
            real = database_url.replace(f"{role}:***@", f"{role}:{password}@")
            assert value(real, "SELECT name FROM colour") == expected
        assert output.count("kept for you: ") == 4
        assert len(copies(server, project)) == 4
        none_code, none_output = project.run(f"--postgres-url={url}", "--keep-databases=none")
        assert none_code == 1
        assert not kept_urls(none_output)
        assert len(copies(server, project)) == 4
        all_code, all_output = project.run(f"--postgres-url={url}", "--keep-databases=all", "-k", "good", "-n", "1")
        assert all_code == 0, all_output
        assert set(kept_urls(all_output)) == {"test_failing.py::test_good"}
        for text in (output, none_output, all_output):
            assert password not in text
        assert f"{role}:***@" in output
    finally:
        for name in copies(server, project) | set(project.templates(server)):
            server.blocking.drop_database(name, force=True)
        # It may have been the first on this server to open a pool: then the pool's books are its own.
        for name in {"postgres", "cascade_state_pools_1"} & databases(server):
            run_blocking(_execute(server.url_for(name), f"REASSIGN OWNED BY {role} TO CURRENT_USER"))
            run_blocking(_execute(server.url_for(name), f"DROP OWNED BY {role}"))
        run_blocking(_execute(server.url, f"DROP ROLE {role}"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


LEAKING = """
import asyncpg
import pytest

leaked = []


async def leak(url):
    connection = await asyncpg.connect(url, server_settings={"application_name": "culprit"})
    await connection.execute("BEGIN; CREATE TABLE forgotten ()")
    leaked.append(connection)


async def test_leaks(test_database):
    await leak(test_database.url)


@pytest.mark.leaves_connections
async def test_may(test_database):
    await leak(test_database.url)


async def test_fails_anyway(test_database):
    await leak(test_database.url)
    raise RuntimeError


async def test_holds_none(test_database):
    connection = await asyncpg.connect(test_database.url)
    connection.terminate()

"""


def test_a_test_that_leaves_connections_open_fails_and_the_statement_is_named(
    server: PostgresServer, project: ForeignProject
) -> None:
    project.write("test_leaking.py", LEAKING)
    code, output = project.run(f"--postgres-url={server.url}", "--keep-databases=none")
    assert code == 1, output
    assert "1 failed, 3 passed, 1 error" in output
    assert "ERROR at teardown of test_leaks" in output
    assert "test_leaking.py::test_leaks left a connection open to its database" in output
    assert re.search(r"pid \d+ \(culprit\), idle in transaction, last statement: BEGIN; CREATE TABLE forgotten", output)
    project.configure("cascade_state_leak_check = false")
    code, output = project.run(f"--postgres-url={server.url}", "--keep-databases=none", "-k", "test_leaks")
    assert code == 0, output


STORE = """
async def test_store(store, frozen_clock):
    async with store.begin() as uow:
        assert await uow.flow_instances.count() == 0


async def test_postgres(postgres_store, test_database, async_engine):
    assert postgres_store.capabilities.durable
    async with async_engine.connect() as connection:
        await connection.exec_driver_sql("SELECT name FROM colour")
        await connection.exec_driver_sql("SELECT 1 FROM flow_instances")


async def test_memory(memory_store):
    assert not memory_store.capabilities.durable


async def test_without_the_store(async_engine):
    async with async_engine.connect() as connection:
        assert await connection.scalar(text("SELECT to_regclass('flow_instances')")) is None


async def test_clock(frozen_clock, postgres_store, memory_store):
    assert frozen_clock.now() == frozen_clock.now()


from sqlalchemy import text
"""


def test_a_project_may_use_the_store_beside_its_own_tables(server: PostgresServer, project: ForeignProject) -> None:
    project.write("test_it.py", STORE)
    code, output = project.run(f"--postgres-url={server.url}", "-W", "error")
    assert code == 0, output
    assert "6 passed" in output
    assert len(project.templates(server)) == 2
    (project.directory / "alembic.ini").unlink()  # and without Alembic the store is alone
    code, output = project.run(f"--postgres-url={server.url}", "-k", "test_store or test_memory or test_clock")
    assert code == 0, output


def test_without_a_server_tests_are_skipped_or_fail(project: ForeignProject) -> None:
    project.write("test_paint.py", ISOLATION)
    url = "postgresql://somebody:hunter2-q@127.0.0.1:1/postgres"
    code, output = project.run(f"--postgres-url={url}", "-rs")
    assert code == 0, output
    assert "11 skipped" in output
    assert "SKIP-TEST-CLUSTER: " in output
    assert "nobody answers at postgresql://somebody:***@127.0.0.1:1/postgres" in output
    failed_code, failed_output = project.run(f"--postgres-url={url}", "--require-postgres")
    assert failed_code == 1
    assert "11 errors" in failed_output
    assert "SKIP-TEST-CLUSTER: " in failed_output
    assert "hunter2-q" not in output + failed_output
