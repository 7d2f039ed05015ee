"""The chain of revisions: one head, up and down, step by step, with data, in agreement with the tables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from pytest_alembic.config import Config as RunnerConfig
from pytest_alembic.runner import MigrationContext, runner
from pytest_alembic.tests import default as ready_made
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from cascade_state.postgres.schema import (
    VERSION_TABLE,
    alembic_config,
    migrate_database,
    migrations_directory,
)
from cascade_state.postgres.tables import metadata
from tests.migrations.catalog import describe, row_counts, table_names
from tests.migrations.rows import TABLES, insert_rows

pytestmark = pytest.mark.postgres

REVISIONS = [
    script.revision for script in reversed(list(ScriptDirectory(str(migrations_directory())).walk_revisions()))
]


@pytest.fixture
def revisions(empty_database_url: str) -> Iterator[MigrationContext]:
    """pytest-alembic's runner on an empty database."""
    config = RunnerConfig(alembic_config=alembic_config(url=empty_database_url))
    engine: Any = create_async_engine(
        empty_database_url.replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool
    )
    with runner(config=config, engine=engine) as context:
        yield context


def test_there_is_one_head(revisions: MigrationContext) -> None:
    ready_made.test_single_head_revision(revisions)


def test_an_empty_database_can_be_upgraded(revisions: MigrationContext) -> None:
    ready_made.test_upgrade(revisions)


def test_autogenerate_finds_nothing_to_do(revisions: MigrationContext) -> None:
    ready_made.test_model_definitions_match_ddl(revisions)


def test_every_revision_goes_up_down_and_up_again(revisions: MigrationContext) -> None:
    ready_made.test_up_down_consistency(revisions)


def test_the_chain_has_the_order_that_a_distributed_engine_needs() -> None:
    assert REVISIONS[:4] == [f"cascade_state_000{number}" for number in (1, 2, 3, 4)]


def test_each_revision_keeps_the_data_that_is_there(empty_database_url: str) -> None:
    config = alembic_config(url=empty_database_url)
    command.upgrade(config, REVISIONS[0])
    asyncio.run(insert_rows(empty_database_url))
    expected = dict.fromkeys(TABLES, 1)
    for revision in REVISIONS[1:]:
        command.upgrade(config, revision)
        assert asyncio.run(row_counts(empty_database_url, TABLES)) == expected, revision
    at_head = asyncio.run(describe(empty_database_url))
    for revision in reversed(REVISIONS[:-1]):
        command.downgrade(config, revision)
        assert asyncio.run(row_counts(empty_database_url, TABLES)) == expected, revision
    command.upgrade(config, "head")
    assert asyncio.run(row_counts(empty_database_url, TABLES)) == expected
    assert asyncio.run(describe(empty_database_url)) == at_head


def test_timers_that_are_dead_stay_dead_and_the_others_alive(empty_database_url: str) -> None:
    config = alembic_config(url=empty_database_url)
    command.upgrade(config, REVISIONS[0])
    asyncio.run(insert_rows(empty_database_url))
    command.upgrade(config, "cascade_state_0008")
    asyncio.run(_execute(empty_database_url, _MORE_TIMERS))
    for _ in range(2):
        command.upgrade(config, "cascade_state_0009")
        assert asyncio.run(_execute(empty_database_url, _TIMERS)) == [
            ("claimed", "CLAIMED", False),
            ("dead", "DEAD", True),
            ("remind", "PENDING", False),
        ]
        command.downgrade(config, "cascade_state_0008")
    assert [row[1] for row in asyncio.run(_execute(empty_database_url, _STATUSES))] == ["CLAIMED", "DEAD", "PENDING"]


# As they were before a timer had an instant of its death.
_MORE_TIMERS = """
    INSERT INTO timers (partition_id, timer_id, flow_instance_id, step_id, due_at, status, lease_holder, lease_token,
                        attempts, max_attempts, payload)
    SELECT partition_id, gen_random_uuid(), flow_instance_id, lower(new.status), due_at, new.status, holder, 1, 1, 20,
           payload
    FROM timers, (VALUES ('CLAIMED', 'worker-1'), ('DEAD', NULL)) AS new (status, holder)
"""
_STATUSES = "SELECT step_id, status FROM timers ORDER BY step_id"
_TIMERS = "SELECT step_id, status, died_at IS NOT NULL FROM timers ORDER BY step_id"


async def _execute(url: str, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


def test_a_downgrade_to_base_leaves_nothing(empty_database_url: str) -> None:
    config = alembic_config(url=empty_database_url)
    before = asyncio.run(table_names(empty_database_url))
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    assert asyncio.run(table_names(empty_database_url)) == before == set()


async def test_the_migrations_make_exactly_the_tables_that_the_code_has(
    empty_database_url: str, database_url: str
) -> None:
    engine = create_async_engine(
        empty_database_url.replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool
    )
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await _set_storage(connection)
    made_by_code = await describe(empty_database_url)
    made_by_migrations = await describe(database_url, without=(VERSION_TABLE,))
    assert made_by_migrations == made_by_code
    assert len(made_by_code) > 150


async def _set_storage(connection: AsyncConnection) -> None:
    for table in metadata.tables.values():
        parameters = ", ".join(f"{name} = {value}" for name, value in table.info.get("storage", {}).items())
        if parameters:
            await connection.exec_driver_sql(f"ALTER TABLE {table.name} SET ({parameters})")


async def test_storage_parameters_arrive_in_the_schema_asked_for(empty_database_url: str) -> None:
    await migrate_database(empty_database_url, schema="Elsewhere")
    found = await describe(empty_database_url, "Elsewhere")
    assert "fillfactor=80" in str(found["storage flow_instances.storage"])
    assert await table_names(empty_database_url) == set()


def test_the_revisions_distribute_every_table() -> None:
    modules = [script.module for script in ScriptDirectory(str(migrations_directory())).walk_revisions()]
    reference = {name for name, table in metadata.tables.items() if table.info["distribution"] == "reference"}
    assert _named(modules, "REFERENCE_TABLES") == sorted(reference)
    assert _named(modules, "DISTRIBUTED_TABLES") == sorted(set(metadata.tables) - reference)


def _named(modules: list[Any], name: str) -> list[str]:
    return sorted(table for module in modules for table in getattr(module, name, ()))
