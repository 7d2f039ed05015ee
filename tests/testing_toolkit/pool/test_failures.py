"""What goes wrong is retried, then told to whoever waits; nothing half-done is handed out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from cascade_state.errors import (
    DatabaseInUse,
    DatabaseNotFound,
    PoolTimeout,
    ServerUnavailable,
    TestDatabaseError,
)
from cascade_state.testing import DatabasePool, PostgresServer
from cascade_state.testing.pool import database_pool
from cascade_state.testing.pool.session import BOOKS, shared_session
from tests.postgres.own_server import OwnServer, own_server

WAIT = timedelta(seconds=30)

pytestmark = pytest.mark.postgres


@pytest.fixture
def own() -> Iterator[OwnServer]:
    """A server that the test may stop."""
    with own_server() as server:
        yield server


async def test_a_missing_template_is_told_to_all_who_wait(server: PostgresServer, template: str) -> None:  # INT-15
    missing = f"{template}_missing"
    async with DatabasePool(server, missing, initial_size=1, max_size=3) as pool:
        outcomes = await asyncio.gather(
            *(pool.lease(timeout=WAIT).__aenter__() for _ in range(5)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [DatabaseNotFound] * 5
        assert {outcome.database for outcome in outcomes if isinstance(outcome, DatabaseNotFound)} == {missing}
        assert (await pool.statistics()).copies_failed >= 1


async def test_a_template_that_appears_is_used(
    server: PostgresServer, template: str, fill: Any, rows_of: Callable[[str], Awaitable[list[str]]]
) -> None:
    late = f"{template}_late"
    async with DatabasePool(server, late, initial_size=1, max_size=2) as pool:
        with pytest.raises(DatabaseNotFound):
            await pool.hand_out(timeout=WAIT)
        await server.ensure_template_exists(late, fill)
        async with pool.lease(timeout=WAIT) as database:
            assert await rows_of(database.url) == ["red"]


async def test_copies_of_a_template_that_was_replaced_are_not_handed_out(
    server: PostgresServer, template: str, connect: Any, rows_of: Callable[[str], Awaitable[list[str]]]
) -> None:
    async def blue(url: str) -> None:
        async with connect(url) as connection:
            await connection.execute("CREATE TABLE colour (name text); INSERT INTO colour VALUES ('blue')")

    async with DatabasePool(server, template, initial_size=2, max_size=2) as pool:
        async with pool.lease(timeout=WAIT) as database:
            await server.drop_database(template)
            assert await rows_of(database.url) == ["red"]  # who has one keeps it
        with pytest.raises(DatabaseNotFound):
            await pool.hand_out(timeout=WAIT)
        await server.ensure_template_exists(template, blue)
        async with pool.lease(timeout=WAIT) as first, pool.lease(timeout=WAIT) as second:
            assert await rows_of(first.url) == await rows_of(second.url) == ["blue"]


async def test_who_is_connected_to_the_template_is_named(
    server: PostgresServer, template: str, connect: Any, fill: Any
) -> None:
    plain = f"{template}_plain"
    await server.create_database(plain)
    await fill(server.url_for(plain))
    async with DatabasePool(server, plain, initial_size=0, max_size=1) as pool:
        async with connect(server.url_for(plain), server_settings={"application_name": "psql"}) as connection:
            with pytest.raises(PoolTimeout, match="psql"):
                await pool.hand_out(timeout=timedelta(milliseconds=500))
            with pytest.raises(DatabaseInUse) as caught:
                await pool.hand_out(timeout=WAIT)
            assert caught.value.database == plain
            assert caught.value.connections == ((connection.get_server_pid(), "psql"),)
        async with pool.lease(timeout=WAIT):
            pass


async def test_a_refusal_without_a_name_of_its_own_is_told_in_the_server_s_words(
    server: PostgresServer, template: str
) -> None:
    async with DatabasePool(server, template, initial_size=0, max_size=1, owner="nobody_knows") as pool:
        with pytest.raises(TestDatabaseError, match='role "nobody_knows" does not exist'):
            await pool.hand_out(timeout=WAIT)


async def test_a_copy_belongs_to_the_owner_that_was_named(server: PostgresServer, template: str, connect: Any) -> None:
    role = f'{template}_"owner'
    quoted = role.replace('"', '""')
    async with connect(server.url) as connection:
        await connection.execute(f'CREATE ROLE "{quoted}"')
        try:
            async with DatabasePool(server, template, initial_size=0, max_size=1, owner=role) as pool:
                given = await pool.hand_out(timeout=WAIT)
                owner = await connection.fetchval(
                    "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $1", given.name
                )
                assert owner == role
                await pool.discard()
        finally:
            await connection.execute(f'DROP ROLE "{quoted}"')


async def test_roles_share_the_books_and_leave_each_other_s_databases_alone(
    server: PostgresServer, guest: PostgresServer, template: str, connect: Any
) -> None:
    async with DatabasePool(server, template, initial_size=0, max_size=2) as pool:
        given = await pool.hand_out(timeout=WAIT)
        await pool.take_back(given.number, clean=False)
    async with DatabasePool(guest, template, initial_size=0, max_size=1) as pool:
        async with pool.lease(timeout=WAIT) as database:
            assert database.name != given.name
            async with connect(database.url) as connection:
                assert await connection.fetchval("SELECT current_database()") == database.name
        async with pool.lease(timeout=WAIT) as again:
            assert (again.name, again.generation) == (database.name, 2)


async def test_a_database_that_vanished_is_made_again(server: PostgresServer, template: str) -> None:
    async with DatabasePool(server, template, initial_size=0, max_size=1) as pool:
        async with pool.lease(timeout=WAIT) as first:
            first.keep_clean()
        await server.drop_database(first.name)
        async with pool.lease(timeout=WAIT) as second:
            assert (second.name, second.generation) == (first.name, first.generation + 1)
            assert await server.database_exists(second.name)


async def test_what_a_killed_maker_left_is_replaced(
    server: PostgresServer, template: str, connect: Any, rows_of: Callable[[str], Awaitable[list[str]]]
) -> None:
    """The books say that a holder who is not there is making number 0; its database is there, half-made or not."""
    name = f"{template}_test_000"
    async with DatabasePool(server, template, initial_size=0, max_size=1) as pool:
        async with connect(server.url_for("cascade_state_pools_1")) as books:
            await books.execute("INSERT INTO holders VALUES (4711, 1, 'killed', '{}')")
            await books.execute(
                "INSERT INTO slots (template, number, database, state, holder) VALUES ($1, 0, $2, 'recycling', 4711)",
                template,
                name,
            )
            await server.create_database(name)
        async with pool.lease(timeout=WAIT) as database:
            assert (database.name, database.generation) == (name, 1)
            assert await rows_of(database.url) == ["red"]


async def test_what_a_killed_maker_left_does_not_hold_up_discarding(
    server: PostgresServer, template: str, connect: Any
) -> None:
    left = f"{template}_test_001"
    await server.create_database(left)
    async with DatabasePool(server, template, initial_size=0, max_size=2) as pool:
        async with pool.lease(timeout=WAIT) as database:  # the keeper has looked after the holders, for the time being
            assert database.name != left
        async with connect(server.url_for("cascade_state_pools_1")) as books:
            await books.execute(
                "INSERT INTO slots (template, number, database, state, holder) VALUES ($1, 1, $2, 'recycling', 4712)",
                template,
                left,
            )
        assert left in await asyncio.wait_for(pool.discard(), 10.0)
    assert not await server.database_exists(left)


@pytest.mark.parametrize("way", ["stop", "stop_at_once", "crash"])
async def test_a_pool_outlives_its_server(own: OwnServer, way: str, fill: Any, change: Any, rows_of: Any) -> None:
    server = PostgresServer.from_url(own.url)
    await server.ensure_template_exists("t", fill)
    async with DatabasePool(server, "t", initial_size=1, max_size=2) as pool:
        given = await pool.hand_out(timeout=WAIT)
        async with pool.lease(timeout=WAIT) as leased:
            await change(leased.url)
            waiting = asyncio.ensure_future(pool.lease(timeout=WAIT).__aenter__())
            await getattr(own, way)()
            await own.start()
            assert await rows_of(leased.url) == ["changed", "red"]
            assert (await pool.statistics()).leased == 2
            assert await rows_of(given.url) == ["red"]
        served = await waiting  # the other one came back changed, and is made anew
        assert served.name == leased.name
        assert await rows_of(served.url) == ["red"]
        assert await rows_of(given.url) == ["red"]


async def test_what_the_books_forgot_is_not_handed_out_again(
    server: PostgresServer, template: str, connect: Any
) -> None:
    """As after a crash of a server that had not written the lease: its holder enters it when it connects again."""
    async with DatabasePool(server, template, initial_size=0, max_size=2) as pool:
        async with pool.lease(timeout=WAIT) as leased, connect(server.url_for(BOOKS)) as books:
            await books.execute(
                "UPDATE slots SET state = 'ready', holder = NULL WHERE database = $1 AND state = 'leased'", leased.name
            )
            assert await books.fetch(  # all rows of them: this process's other sessions, too
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1",
                f"cascade_state pool holder of {os.getpid()}",
            )
            async with pool.lease(timeout=WAIT) as other:
                assert other.name != leased.name
                assert (await pool.statistics()).leased == 2


async def test_the_books_survive_a_killed_server_that_waits_for_no_disk(own: OwnServer) -> None:
    server = PostgresServer.from_url(own.url)
    async with shared_session(server) as session:
        row = await session.fetchrow("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
        assert tuple(row) == ("off", "on")


async def test_a_server_that_stays_away_is_told(own: OwnServer, fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_pool, "PATIENCE_SECONDS", 0.2)
    server = PostgresServer.from_url(own.url)
    await server.ensure_template_exists("t", fill)
    pool = await DatabasePool(server, "t", initial_size=0, max_size=1).open()
    lease = pool.lease(timeout=WAIT)
    await lease.__aenter__()
    await own.stop()
    with pytest.raises(ServerUnavailable):
        await pool.hand_out(timeout=WAIT)
    monkeypatch.setattr(database_pool, "PATIENCE_SECONDS", 60)
    with pytest.raises(PoolTimeout, match="does not answer"):
        await pool.hand_out(timeout=timedelta(milliseconds=100))
    await lease.__aexit__(None, None, None)  # says so in the log, and does not raise
    await pool.close()
    with pytest.raises(ServerUnavailable):
        await pool.open()


async def test_makers_try_again_while_the_server_is_away(own: OwnServer, fill: Any) -> None:
    server = PostgresServer.from_url(own.url)
    await server.ensure_template_exists("t", fill)
    async with DatabasePool(server, "t", initial_size=0, max_size=20) as pool:
        waiting = [asyncio.ensure_future(pool.lease(timeout=WAIT).__aenter__()) for _ in range(20)]
        async with asyncio.timeout(WAIT.total_seconds()):
            while not (await pool.statistics()).leased:  # noqa: ASYNC110 - what it waits for is on the server
                await asyncio.sleep(0.01)
        await own.crash()
        await own.start()
        served = await asyncio.gather(*waiting)
        assert len({database.name for database in served}) == 20
        for database in served:
            assert await server.database_exists(database.name)
