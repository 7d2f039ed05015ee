"""`migrate_database` and the checks: from inside an event loop, from many processes, and what they refuse."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from datetime import timedelta

import pytest
from alembic import command

from cascade_state import open_store
from cascade_state.errors import (
    InvalidArgument,
    LockNotAcquired,
    SchemaMismatch,
    StoreError,
    StoreUnavailable,
)
from cascade_state.postgres.schema import alembic_config, head_revision, migrate_database
from tests.migrations.catalog import describe, table_names
from tests.migrations.locking import LOCK_KEY, WAIT, execute, migration_lock, waiting

pytestmark = pytest.mark.postgres

ONE_OF_MANY = """
import asyncio, sys
from cascade_state.postgres.schema import migrate_database
asyncio.run(migrate_database(sys.argv[1]))
"""


async def test_a_new_database_gets_the_newest_revision(empty_database_url: str, database_url: str) -> None:
    await migrate_database(empty_database_url)
    assert await describe(empty_database_url) == await describe(database_url)
    async with open_store(empty_database_url) as store:
        await store.check_schema()


async def test_migrating_again_changes_nothing(database_url: str) -> None:
    before = await describe(database_url)
    await migrate_database(database_url)
    assert await describe(database_url) == before


async def test_eight_processes_at_once_upgrade_once(empty_database_url: str, database_url: str) -> None:
    async with migration_lock(empty_database_url) as held:
        commands = [
            [sys.executable, "-c", ONE_OF_MANY, empty_database_url],
            [sys.executable, "-m", "alembic", "-x", f"url={empty_database_url}", "upgrade", "head"],
        ]
        processes = [
            await asyncio.create_subprocess_exec(
                *commands[number % 2],
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            for number in range(8)
        ]
        await waiting(held, 8)  # all stand before the lock: none may do anything yet
        assert await table_names(empty_database_url) == set()
    outputs = [await asyncio.wait_for(process.communicate(), WAIT) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    upgrades = b"".join(output for output, _ in outputs).splitlines()
    assert len(upgrades) == len(set(upgrades))
    assert await describe(empty_database_url) == await describe(database_url)


async def test_several_databases_can_be_migrated_from_one_loop(empty_database_url: str, database_url: str) -> None:
    await asyncio.gather(
        migrate_database(empty_database_url, schema="one"),
        migrate_database(empty_database_url, schema="two"),
        migrate_database(empty_database_url, schema="two"),
        migrate_database(database_url, schema="three"),
    )
    assert await describe(empty_database_url, "one") == await describe(database_url, "three")


async def test_two_installations_live_side_by_side(empty_database_url: str) -> None:
    hostile = r'Straße ":2"; 50% \:of DROP'
    await migrate_database(empty_database_url)
    await migrate_database(empty_database_url, schema=hostile, partition_count=64)
    async with (
        open_store(empty_database_url) as plain,
        open_store(empty_database_url, schema=hostile, partition_count=64) as other,
    ):
        await plain.check_schema()
        await other.check_schema()
    assert await describe(empty_database_url, hostile) == await describe(empty_database_url)
    await asyncio.to_thread(command.downgrade, alembic_config(url=empty_database_url, schema=hostile), "base")
    assert await table_names(empty_database_url, hostile) == set()


async def test_an_installation_in_a_schema_does_not_need_rights_on_another(empty_database_url: str) -> None:
    await execute(empty_database_url, "REVOKE ALL ON SCHEMA public FROM public", "CREATE SCHEMA ours")
    await migrate_database(empty_database_url, schema="ours")
    assert await table_names(empty_database_url) == set()


async def test_a_lock_held_for_too_long_is_reported(empty_database_url: str) -> None:
    async with migration_lock(empty_database_url):
        with pytest.raises(LockNotAcquired) as caught:
            await migrate_database(empty_database_url, lock_wait=timedelta(0))
    assert caught.value.lock_name == "migration"
    assert await table_names(empty_database_url) == set()


async def test_a_cancelled_migration_stops_waiting_and_leaves_nothing(empty_database_url: str) -> None:
    async with migration_lock(empty_database_url) as held:
        task = asyncio.create_task(migrate_database(empty_database_url))
        await waiting(held, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, WAIT)
        others = await held.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cascade_state migrations' "
            "AND datname = current_database()"
        )
        assert others == 0
    assert await table_names(empty_database_url) == set()


async def test_the_partition_count_is_fixed_by_the_first_migration(empty_database_url: str) -> None:
    await migrate_database(empty_database_url, partition_count=64)
    with pytest.raises(SchemaMismatch, match="64 partitions") as caught:
        await migrate_database(empty_database_url, partition_count=128)
    assert caught.value.expected == "128 partitions"
    with pytest.raises(SchemaMismatch, match="64 partitions"):
        async with open_store(empty_database_url):
            pass
    async with open_store(empty_database_url, partition_count=64) as store:
        await store.check_schema()


async def test_a_database_that_is_behind_is_refused_until_it_is_migrated(database_url: str) -> None:
    await asyncio.to_thread(command.downgrade, alembic_config(url=database_url), "cascade_state_0003")
    async with open_store(database_url) as store:
        with pytest.raises(SchemaMismatch, match="behind") as caught:
            await store.check_schema()
        assert (caught.value.expected, caught.value.found) == (head_revision(), "cascade_state_0003")
        await store.migrate()
        await store.check_schema()


async def test_a_database_that_is_ahead_is_refused_and_left_alone(database_url: str) -> None:
    await execute(database_url, "UPDATE cascade_state_version SET version_num = 'cascade_state_9999'")
    before = await describe(database_url)
    with pytest.raises(SchemaMismatch, match="ahead") as caught:
        await migrate_database(database_url)
    assert (caught.value.expected, caught.value.found) == (head_revision(), "cascade_state_9999")
    async with open_store(database_url) as store:
        with pytest.raises(SchemaMismatch, match="ahead"):
            await store.check_schema()
    assert await describe(database_url) == before


async def test_a_database_that_was_never_migrated_is_refused(empty_database_url: str) -> None:
    async with open_store(empty_database_url) as store:
        with pytest.raises(SchemaMismatch, match="never migrated") as caught:
            await store.check_schema()
        assert caught.value.found is None
        await store.migrate()
        await store.check_schema()


async def test_a_migration_that_fails_is_rolled_back_and_says_so(empty_database_url: str) -> None:
    await execute(empty_database_url, "CREATE TABLE timers (unrelated integer)")
    with pytest.raises(StoreError):
        await migrate_database(empty_database_url)
    names = await table_names(empty_database_url)
    assert "flow_instances" not in names
    assert "settings" not in names


async def test_a_wrong_argument_is_refused_before_anything_is_sent() -> None:
    url = "postgresql://nobody@localhost:1/none"
    with pytest.raises(InvalidArgument, match="partition_count"):
        await migrate_database(url, partition_count=100)
    with pytest.raises(InvalidArgument, match="schema"):
        await migrate_database(url, schema="s" * 64)
    with pytest.raises(InvalidArgument, match="url"):
        await migrate_database("mysql://localhost/x")
    with pytest.raises(StoreUnavailable):
        await migrate_database(url)


def test_the_environment_takes_the_lock_that_every_part_of_the_library_would_compute() -> None:
    digest = hashlib.blake2b(b"cascade_state//migration/", digest_size=8).digest()
    assert int.from_bytes(digest, "big", signed=True) == LOCK_KEY
