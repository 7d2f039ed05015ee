"""`dump_schema`: the whole schema as SQL, for whoever may not let a program run DDL."""

from __future__ import annotations

import re

import asyncpg
import pytest

from cascade_state import open_store
from cascade_state.errors import InvalidArgument
from cascade_state.postgres.schema import dump_schema, migrate_database
from tests.migrations.catalog import describe

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("schema", [None, 'Flows "of" München'])
async def test_the_dump_makes_the_same_schema_as_the_migrations(
    empty_database_url: str, database_url: str, schema: str | None
) -> None:
    connection = await asyncpg.connect(empty_database_url)
    try:
        await connection.execute(dump_schema(schema=schema, partition_count=32))
    finally:
        await connection.close()
    assert await describe(empty_database_url, schema or "public") == await describe(database_url)
    await migrate_database(empty_database_url, schema=schema, partition_count=32)  # knows that it is done
    async with open_store(empty_database_url, schema=schema, partition_count=32) as store:
        await store.check_schema()


def test_the_dump_needs_no_database_and_is_the_same_each_time() -> None:
    assert dump_schema() == dump_schema()
    # All that a later revision takes away again are indexes that an earlier one made.
    assert re.findall(r"DROP [^;]*", dump_schema()) == [
        "DROP INDEX ix_correlations_delivered",
        "DROP INDEX ix_timers_dead",
        "DROP INDEX ix_timers_partition_due",
        "DROP INDEX ix_timers_due",
    ]


def test_the_dump_refuses_what_a_migration_refuses() -> None:
    with pytest.raises(InvalidArgument, match="partition_count"):
        dump_schema(partition_count=7)
    with pytest.raises(InvalidArgument, match="schema"):
        dump_schema(schema="")
