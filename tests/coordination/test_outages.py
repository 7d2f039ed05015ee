"""What members do while they cannot reach the database: on a server behind a link that fails, and on one that stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta

import asyncpg
import pytest

from cascade_state import LeaseLost, Store, open_store
from cascade_state.testing.contracts import rule
from tests.coordination.helping import PATIENCE, a_set, settled, until
from tests.postgres.own_server import OwnServer, own_server
from tests.wire import Wire

pytestmark = pytest.mark.postgres

_STALE_AFTER = timedelta(seconds=1)
_SLOW_HEARTBEATS = f"""
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep({_STALE_AFTER.total_seconds() * 0.5}); RETURN NEW; END $$;
    CREATE TRIGGER slow BEFORE UPDATE ON workers FOR EACH ROW EXECUTE FUNCTION slow();
"""


@pytest.fixture
async def link(database_url: str) -> AsyncIterator[Wire]:
    async with Wire(database_url) as link:
        yield link


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def stoppable() -> Iterator[OwnServer]:
    with own_server() as server:
        yield server


@pytest.mark.parametrize("only_new", [False, True], ids=["the same connections", "new connections only"])
@rule("ORC-13")
async def test_a_member_that_is_cut_off_stops_before_its_share_is_taken(
    postgres_store: Store, link: Wire, only_new: bool
) -> None:
    """The order is what counts: first the member knows, then the database gives its share away."""
    async with open_store(link.url) as cut_off, a_set(cut_off, stale_after=_STALE_AFTER).join() as member:
        async with a_set(postgres_store).join() as survivor:
            await settled([member, survivor], cut_off.options.partition_count)
            former, share = member.worker_id, dict(member.generations)
            link.hang()

            def has_been_replaced() -> bool:
                replaced = bool(survivor.partitions & share.keys())
                assert not (replaced and member.is_alive), "the member works in what belongs to another"
                return replaced

            await until(has_been_replaced, [member, survivor])
            assert member.partitions == frozenset()
            await settled([survivor], cut_off.options.partition_count)
            for partition, generation in list(share.items())[:3]:
                async with postgres_store.begin() as uow:
                    with pytest.raises(LeaseLost):
                        await uow.fence(partition, generation, "shipping")
            link.mend(only_new=only_new)
            await settled([member, survivor], cut_off.options.partition_count)
            assert member.worker_id != former
            link.mend()


@rule("ORC-11")
async def test_a_member_that_was_cut_off_for_a_moment_goes_on_as_it_was(link: Wire) -> None:
    async with open_store(link.url) as store, a_set(store, stale_after=_STALE_AFTER).join() as member:
        known = member.share
        link.hang()
        await until(lambda: not member.is_alive, [member])
        link.mend()
        await until(lambda: member.share == known, [member])


async def test_a_server_that_is_slow_is_given_more_time(postgres_store: Store, connection: asyncpg.Connection) -> None:
    """Longer than a third of `stale_after` for each heartbeat: the first attempts fail, then one is waited for."""
    async with a_set(postgres_store, stale_after=_STALE_AFTER).join() as member:
        await connection.execute(_SLOW_HEARTBEATS)
        heard = await _last_heartbeat(connection)
        async with asyncio.timeout(PATIENCE):
            for _ in range(2):
                while not (member.is_alive and await _last_heartbeat(connection) > heard):  # noqa: ASYNC110 - no signal
                    await asyncio.sleep(0.05)
                heard = await _last_heartbeat(connection)
        await connection.execute("DROP TRIGGER slow ON workers")


async def _last_heartbeat(connection: asyncpg.Connection) -> datetime:
    found: datetime = await connection.fetchval("SELECT max(heartbeat_at) FROM workers")
    return found


async def test_a_member_that_cannot_say_goodbye_ends_in_time(
    postgres_store: Store, link: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cascade_state.coordination.member._LONGEST_GOODBYE_SECONDS", 0.2)
    async with open_store(link.url) as cut_off, asyncio.timeout(PATIENCE):
        async with a_set(cut_off, stale_after=_STALE_AFTER).join() as member:
            await postgres_store.replica_sets.list_workers()
            link.hang()
        assert (
            f"could not leave, others take over in time replica_set=shipping worker_id={member.worker_id}"
            in caplog.text
        )
        async with a_set(postgres_store).join() as survivor:
            await settled([survivor], cut_off.options.partition_count)
        link.mend()


@rule("ORC-13")
async def test_when_the_server_is_stopped_and_started_members_recover_by_themselves(stoppable: OwnServer) -> None:
    """Each with a store of its own, as processes have them; the server is stopped in immediate mode."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(stoppable.url)) for _ in range(3)]
        await stores[0].migrate()
        members = [await stack.enter_async_context(a_set(store, stale_after=_STALE_AFTER).join()) for store in stores]
        count = stores[0].options.partition_count
        await settled(members, count)
        before = {item.partition_id: item for item in await stores[0].replica_sets.list_assignments("shipping")}
        await stoppable.stop_at_once()
        await until(lambda: not any(member.is_alive for member in members), members)
        assert all(member.partitions == frozenset() for member in members)
        await stoppable.start()
        await settled(members, count)
        after = {item.partition_id: item for item in await stores[0].replica_sets.list_assignments("shipping")}
        for partition, item in after.items():
            kept = (item.owner, item.generation) == (before[partition].owner, before[partition].generation)
            assert kept or item.generation > before[partition].generation
        for member in members:
            partition, generation = next(iter(member.generations.items()))
            async with stores[0].begin() as uow:
                await uow.fence(partition, generation, "shipping")
