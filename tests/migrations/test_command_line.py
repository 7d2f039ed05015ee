"""Alembic's own commands from the repository, as a deployment runs them, and its configuration used by programs."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from cascade_state.postgres.schema import alembic_config, head_revision, migrate_database
from tests.migrations.catalog import describe, table_names

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).resolve().parents[2]


def alembic(*arguments: str, database_url: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if database_url is not None:
        environment["DATABASE_URL"] = database_url
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_upgrade_check_and_downgrade_work_from_the_repository(empty_database_url: str, database_url: str) -> None:
    upgraded = alembic("upgrade", "head", database_url=empty_database_url)
    assert upgraded.returncode == 0, upgraded.stderr
    assert upgraded.stdout.splitlines()[-1] == f"upgraded to {head_revision()}"
    assert asyncio.run(describe(empty_database_url)) == asyncio.run(describe(database_url))

    checked = alembic("check", database_url=empty_database_url)
    assert (checked.returncode, checked.stdout) == (0, "No new upgrade operations detected.\n"), checked.stderr

    downgraded = alembic("downgrade", "base", database_url=empty_database_url)
    assert downgraded.returncode == 0, downgraded.stderr
    assert asyncio.run(table_names(empty_database_url)) == set()


def test_the_command_line_chooses_address_schema_and_partition_count(empty_database_url: str) -> None:
    options = ("-x", f"url={empty_database_url}", "-x", "schema=Flows", "-x", "partition_count=16")
    upgraded = alembic(*options, "upgrade", "head", database_url="postgresql://nobody@localhost:1/none")
    assert upgraded.returncode == 0, upgraded.stderr
    assert asyncio.run(table_names(empty_database_url)) == set()
    asyncio.run(migrate_database(empty_database_url, schema="Flows", partition_count=16))

    checked = alembic(*options, "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr

    downgraded = alembic(*options, "downgrade", "base")
    assert downgraded.returncode == 0, downgraded.stderr
    assert asyncio.run(_schemas(empty_database_url)) == {"public"}


def test_a_schema_that_was_there_before_survives_a_downgrade(empty_database_url: str) -> None:
    asyncio.run(_execute(empty_database_url, "CREATE SCHEMA theirs"))
    config = alembic_config(url=empty_database_url, schema="theirs")
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    assert asyncio.run(_schemas(empty_database_url)) == {"public", "theirs"}
    assert asyncio.run(table_names(empty_database_url, "theirs")) == set()


def test_a_schema_made_by_us_survives_while_others_use_it(empty_database_url: str) -> None:
    config = alembic_config(url=empty_database_url, schema="shared")
    command.upgrade(config, "head")
    asyncio.run(_execute(empty_database_url, "CREATE TABLE shared.theirs (n integer)"))
    command.downgrade(config, "base")
    assert "theirs" in asyncio.run(table_names(empty_database_url, "shared"))


def test_a_wrong_partition_count_is_refused(empty_database_url: str) -> None:
    refused = alembic("-x", f"url={empty_database_url}", "-x", "partition_count=100", "upgrade", "head")
    assert refused.returncode != 0
    assert "power of two" in refused.stdout + refused.stderr
    assert "flow_instances" not in asyncio.run(table_names(empty_database_url))


@pytest.mark.parametrize(("url", "reason"), [(None, "set DATABASE_URL"), ("mysql://localhost/x", "postgresql://")])
def test_a_missing_or_foreign_address_is_said_plainly(url: str | None, reason: str) -> None:
    refused = alembic("upgrade", "head", database_url=url)
    assert refused.returncode != 0
    assert reason in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr


def test_check_finds_what_the_tables_do_not_say(database_url: str) -> None:
    asyncio.run(
        _execute(
            database_url,
            "ALTER TABLE timers ADD COLUMN colour text",
            "CREATE TABLE somebody_elses (n integer)",
        )
    )
    checked = alembic("check", database_url=database_url)
    assert checked.returncode != 0
    assert "colour" in checked.stdout + checked.stderr
    assert "somebody_elses" not in checked.stdout + checked.stderr


def test_a_program_gives_a_plain_address_and_its_loggers_stay(empty_database_url: str) -> None:
    logger = logging.getLogger("tests.migrations.somebody")
    before = (
        logging.root.handlers[:],
        logging.root.level,
        logger.disabled,
        logging.getLogger("alembic").level,
    )
    config = alembic_config()
    config.set_main_option("sqlalchemy.url", empty_database_url.replace("%", "%%"))
    command.upgrade(config, "head")
    command.check(config)
    assert before == (
        logging.root.handlers[:],
        logging.root.level,
        logger.disabled,
        logging.getLogger("alembic").level,
    )


async def test_alembic_can_be_called_while_a_loop_runs(empty_database_url: str) -> None:
    config = alembic_config(url=empty_database_url)
    command.upgrade(config, "head")  # blocks this loop; the environment has a loop of its own
    assert "flow_instances" in await table_names(empty_database_url)


async def test_a_migration_can_be_part_of_the_callers_transaction(empty_database_url: str) -> None:
    engine = create_async_engine(
        empty_database_url.replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool
    )

    def upgrade(connection: Connection) -> None:
        command.upgrade(alembic_config(connection=connection, schema="inside"), "head")

    async with engine.connect() as connection:
        await connection.begin()
        path = (await connection.exec_driver_sql("SHOW search_path")).scalar()
        await connection.run_sync(upgrade)
        assert (await connection.exec_driver_sql("SHOW search_path")).scalar() == path
        assert (await connection.exec_driver_sql("SHOW lock_timeout")).scalar() == "0"
        assert (await connection.exec_driver_sql("SELECT count(*) FROM inside.timers")).scalar() == 0
        await connection.rollback()
    assert await _schemas(empty_database_url) == {"public"}
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
    assert "timers" in await table_names(empty_database_url, "inside")


def test_a_failed_upgrade_names_the_reason(empty_database_url: str) -> None:
    with pytest.raises(CommandError, match="Can't locate revision"):
        command.upgrade(alembic_config(url=empty_database_url), "cascade_state_9999")


async def _execute(url: str, *statements: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _schemas(url: str) -> set[str]:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg!_%' ESCAPE '!' "
            "AND nspname <> 'information_schema'"
        )
        return {row["nspname"] for row in rows}
    finally:
        await connection.close()
