"""Replica sets on PostgreSQL when somebody else touches the rows, or stops in the middle of a change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from cascade_state import SchemaMismatch, SerializationError, Store, StoreUnavailable, open_store
from cascade_state.postgres.replica_sets import PostgresReplicaSets
from cascade_state.postgres.schema import migrate_database
from cascade_state.testing.contracts import rule
from tests.coordination.helping import PATIENCE, STALE_AFTER, a_set, settled, until

pytestmark = pytest.mark.postgres


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@rule("ORC-13")
async def test_a_member_whose_row_was_deleted_joins_again(
    postgres_store: Store, connection: asyncpg.Connection
) -> None:
    """ORC-13: a registry row that disappears is restored."""
    async with a_set(postgres_store).join() as first, a_set(postgres_store).join() as second:
        await settled([first, second], postgres_store.options.partition_count)
        former = second.worker_id
        await connection.execute("DELETE FROM workers WHERE worker_id = $1", former)
        await until(lambda: second.worker_id != former and second.is_alive, [first, second])
        await settled([first, second], postgres_store.options.partition_count)


@rule("ORC-05", "ORC-13")
async def test_the_share_of_a_dead_worker_whose_row_was_deleted_is_taken_over(
    postgres_store: Store, connection: asyncpg.Connection
) -> None:
    async with a_set(postgres_store).join() as member:
        await postgres_store.replica_sets.join("shipping", "dead", stale_after=STALE_AFTER)
        await until(lambda: 0 < len(member.partitions) < postgres_store.options.partition_count, [member])
        await connection.execute("DELETE FROM workers WHERE worker_id = 'dead'")
        await settled([member], postgres_store.options.partition_count)


@rule("ORC-13")
async def test_lost_assignments_are_made_again(postgres_store: Store, connection: asyncpg.Connection) -> None:
    await postgres_store.replica_sets.join("shipping", "a", stale_after=STALE_AFTER)
    await connection.execute("DELETE FROM partition_targets WHERE partition_id < 3")
    await connection.execute("DELETE FROM partition_assignments WHERE partition_id IN (2, 3)")
    await postgres_store.replica_sets.join("shipping", "b", stale_after=STALE_AFTER)
    listed = await postgres_store.replica_sets.list_assignments("shipping")
    assert [item.partition_id for item in listed] == list(range(postgres_store.options.partition_count))
    assert all(item.owner in ("a", "b") for item in listed)


async def test_a_partition_count_that_is_not_the_databases_is_refused(empty_database_url: str) -> None:
    async with open_store(empty_database_url, partition_count=64) as early:  # there is nothing to compare with yet
        await migrate_database(empty_database_url)
        with pytest.raises(SchemaMismatch) as caught:
            await early.replica_sets.join("shipping", "a", stale_after=STALE_AFTER)
        assert (caught.value.expected, caught.value.found) == ("64 partitions", "256 partitions")
    with pytest.raises(SchemaMismatch):
        async with open_store(empty_database_url, partition_count=64):
            pytest.fail("the counts differ")
    async with open_store(empty_database_url) as store:
        assert await store.replica_sets.list_workers() == []


async def test_a_process_that_stops_in_the_middle_of_a_change_holds_nobody_up_for_long(
    database_url: str, postgres_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade_state.postgres.replica_sets._LONGEST_IDLENESS", "300ms")
    async with open_store(database_url) as stopped:
        await stopped.replica_sets.join("shipping", "a", stale_after=STALE_AFTER)
        repository = stopped.replica_sets
        assert isinstance(repository, PostgresReplicaSets)
        with pytest.raises(StoreUnavailable):
            async with repository._executor.transaction() as executor:
                change = await repository._change(executor, "shipping")
                assert await change.begin()
                async with asyncio.timeout(PATIENCE):
                    share = await postgres_store.replica_sets.join("shipping", "b", stale_after=STALE_AFTER)
                assert len(share.awaited) == stopped.options.partition_count // 2
                await change.plan()


async def test_a_worker_that_cannot_be_decoded_is_named(postgres_store: Store, connection: asyncpg.Connection) -> None:
    await postgres_store.replica_sets.join("shipping", "a", stale_after=STALE_AFTER)
    # An integer of more digits than Python converts.
    await connection.execute("""UPDATE workers SET metadata = ('{"n": ' || repeat('9', 5000) || '}')::json""")
    with pytest.raises(SerializationError) as caught:
        await postgres_store.replica_sets.list_workers()
    assert caught.value.key == "a"
    assert await postgres_store.replica_sets.beat("shipping", "a", stale_after=timedelta(seconds=1))
