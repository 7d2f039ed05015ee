"""Who has what, when nobody holds a session: open connections are respected, what nobody uses is taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from cascade_state.errors import DatabaseInUse, ServerUnavailable, TemplateNotFound, TestDatabaseError
from cascade_state.testing import DatabasePool, IntegresqlClient, PostgresServer
from cascade_state.testing.integresql import service
from cascade_state.testing.integresql.settings import postgres_of
from tests.integresql.conftest import Serving
from tests.integresql.facade import WAIT, databases, execute, fetch, filled

pytestmark = pytest.mark.postgres

SHORT = timedelta(milliseconds=300)
LONG = timedelta(seconds=WAIT)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_put_waits_until_nobody_is_connected(serving: Serving) -> None:
    async with serving() as client:
        config = await client.initialize_template("x")
        assert config is not None
        async with connected(config) as connection:
            await connection.execute("CREATE TABLE pilot (name text)")
            finalizing = asyncio.create_task(client.finalize_template("x"))
            done, _ = await asyncio.wait({finalizing}, timeout=0.3)
            assert not done
            assert await connection.fetchval("SELECT count(*) FROM pilot") == 0  # not cut
        await asyncio.wait_for(finalizing, WAIT)
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await asyncpg.connect(config)


async def test_put_gives_up_while_somebody_stays_connected(serving: Serving) -> None:
    async with serving(leave_timeout=SHORT) as client:
        config = await client.initialize_template("x")
        assert config is not None
        async with connected(config) as connection:
            with pytest.raises(DatabaseInUse):
                await client.finalize_template("x")
            await connection.execute("CREATE TABLE pilot (name text)")
            async with connected(config):  # it still lets others in
                pass
        await client.finalize_template("x")
        await client.get_test_database("x")


async def test_a_client_that_closes_its_connection_after_the_answer_is_served(serving: Serving) -> None:
    async with serving() as client, httpx.AsyncClient(base_url=client._url, trust_env=False, timeout=WAIT) as http:
        config = await client.initialize_template("x")
        assert config is not None
        async with connected(config) as connection:
            await connection.execute("CREATE TABLE pilot (name text)")
            answer = await http.put("/templates/x", headers={"User-Agent": "Go-http-client/1.1"})
            assert answer.status_code == 204
            early = asyncio.create_task(client.get_test_database("x"))
            done, _ = await asyncio.wait({early}, timeout=0.3)
            assert not done
        database = await asyncio.wait_for(early, WAIT)
        assert await fetch(database.url, "SELECT count(*) FROM pilot") == [0]


async def test_a_client_that_never_closes_its_connection_is_complained_about(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"leave_timeout": SHORT, "finalize_timeout": timedelta(seconds=1)}
    async with serving(**options) as client, httpx.AsyncClient(base_url=client._url, trust_env=False) as http:
        config = await client.initialize_template("x")
        assert config is not None
        async with connected(config):
            answer = await http.put("/templates/x", headers={"User-Agent": "Go-http-client/1.1"})
            assert answer.status_code == 204
            with pytest.raises(ServerUnavailable, match="not finalized in time"):
                await client.get_test_database("x")
    assert "is not finalized" in caplog.text


async def test_a_finished_template_is_protected(server: PostgresServer, serving: Serving, prefix: str) -> None:
    async with serving() as client:
        await client.with_template("x", filled)
        name = f"{prefix}_template_x"
        flags = "SELECT datistemplate AND NOT datallowconn FROM pg_database WHERE datname = $1"
        assert await fetch(server.url, flags, name) == [True]
        with pytest.raises(asyncpg.WrongObjectTypeError):
            await execute(server.url, f"DROP DATABASE {name}")


async def test_nothing_is_done_to_a_database_that_somebody_is_connected_to(serving: Serving) -> None:
    async with serving() as client:
        await client.with_template("x", filled)
        database = await client.get_test_database("x")
        async with connected(database.url) as connection:
            outcomes = await asyncio.gather(
                client.recreate("x", database.id),
                client.unlock("x", database.id),
                client.discard_template("x"),
                client.reset_all(),
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [DatabaseInUse] * 4
            assert await connection.fetchval("SELECT name FROM pilot") == "Mario"
            assert await client.initialize_template("x") is None  # still there
            assert (await client.get_test_database("x")).id != database.id
        await client.recreate("x", database.id)
        await client.discard_template("x")


async def test_an_unfinished_template_that_is_used_is_not_discarded(serving: Serving) -> None:
    async with serving() as client:
        config = await client.initialize_template("x")
        assert config is not None
        async with connected(config):
            with pytest.raises(DatabaseInUse):
                await client.discard_template("x")
        await client.discard_template("x")
        with pytest.raises(TemplateNotFound):
            await client.discard_template("x")


async def test_what_is_just_being_closed_does_not_count_as_used(serving: Serving) -> None:
    async with serving(closing_timeout=LONG) as client:
        await client.with_template("x", filled)
        for _ in range(5):
            database = await client.get_test_database("x")
            connection = await asyncpg.connect(database.url)
            connection.terminate()  # the backend notices a moment later
            await client.recreate("x", database.id)


async def test_an_exhausted_pool_leaves_the_databases_of_the_living_alone(serving: Serving) -> None:
    options = {"max_pool_size": 2, "reclaim_after": SHORT}
    async with serving(**options) as client, serving(get_timeout=timedelta(seconds=1.5), **options) as hurried:
        await client.with_template("x", filled)
        first, second = [await client.get_test_database("x") for _ in range(2)]
        async with connected(first.url) as one, connected(second.url) as two:
            with pytest.raises(ServerUnavailable, match="became free"):
                await hurried.get_test_database("x")
            for connection in (one, two):
                assert await connection.fetchval("SELECT name FROM pilot") == "Mario"


async def test_an_exhausted_pool_takes_back_what_was_used_and_left(serving: Serving) -> None:
    async with serving(max_pool_size=1, reclaim_after=SHORT, unclaimed_after=LONG, get_timeout=LONG) as client:
        await client.with_template("x", filled)
        first = await client.get_test_database("x")
        await execute(first.url, "INSERT INTO pilot VALUES ('Luigi')")
        again = await client.get_test_database("x")
        assert again.id == first.id
        assert await fetch(again.url, "SELECT name FROM pilot") == ["Mario"]


async def test_what_nobody_has_connected_to_yet_is_kept_longer(serving: Serving) -> None:
    options = {"max_pool_size": 1, "reclaim_after": timedelta(milliseconds=50)}
    slow = options | {"unclaimed_after": LONG}
    async with serving(**slow) as client, serving(get_timeout=timedelta(seconds=1), **slow) as hurried:
        await client.with_template("x", filled)
        first = await client.get_test_database("x")
        with pytest.raises(ServerUnavailable, match="became free"):
            await hurried.get_test_database("x")
        assert await fetch(first.url, "SELECT name FROM pilot") == ["Mario"]
    async with serving(unclaimed_after=SHORT, get_timeout=LONG, **options) as client:
        assert (await client.get_test_database("x")).id == first.id


async def test_what_was_handed_out_to_somebody_who_hung_up_comes_back(serving: Serving) -> None:
    async with serving(max_pool_size=1, unclaimed_after=LONG, reclaim_after=LONG) as client:
        await client.with_template("x", filled)
        database = await client.get_test_database("x")
        hurried = IntegresqlClient(str(client._url), timeout=SHORT)
        for _ in range(3):
            with pytest.raises(ServerUnavailable, match="in time"):
                await hurried.get_test_database("x")
        await client.unlock("x", database.id)
        assert (await asyncio.wait_for(client.get_test_database("x"), WAIT)).id == database.id


async def test_an_unfinished_template_that_nobody_fills_is_given_to_the_next(serving: Serving) -> None:
    async with serving(abandoned_after=timedelta(seconds=1)) as client:
        config = await client.initialize_template("x")
        assert config is not None
        async with connected(config) as connection:
            await connection.execute("CREATE TABLE half (a int)")
            await asyncio.sleep(1.2)  # time itself has to pass here
            assert await client.initialize_template("x") is None
        async with asyncio.timeout(WAIT):
            while (again := await client.initialize_template("x")) is None:  # noqa: ASYNC110 - asks the server
                await asyncio.sleep(0.1)
        assert again == config
        assert await fetch(again, "SELECT count(*) FROM pg_tables WHERE tablename = 'half'") == [0]


async def test_a_finished_template_is_never_given_away(serving: Serving) -> None:
    async with serving(abandoned_after=timedelta(0)) as client:
        await client.with_template("x", filled)
        assert await client.initialize_template("x") is None


async def test_a_database_that_is_not_ours_gives_way_unless_it_is_used(
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    name = f"{prefix}_template_x"
    await server.create_database(name)
    await execute(server.url_for(name), f"CREATE TABLE leftover (a int); ALTER DATABASE {name} IS_TEMPLATE true")
    async with serving() as client:
        async with connected(server.url_for(name)):
            assert await client.initialize_template("x") is None
        config = await client.initialize_template("x")
        assert config is not None
        assert await fetch(config, "SELECT count(*) FROM pg_tables WHERE tablename = 'leftover'") == [0]


async def test_a_reset_forgets_everything_but_leaves_the_templates_databases(
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    async with serving() as client:
        await client.with_template("x", filled)
        await client.get_test_database("x")
        await client.initialize_template("y")
        await client.reset_all()
        assert await databases(server, prefix) == [f"{prefix}_template_x", f"{prefix}_template_y"]
        for template_hash in ("x", "y"):
            with pytest.raises(TemplateNotFound):
                await client.get_test_database(template_hash)
            assert await client.initialize_template(template_hash) is not None


async def test_a_role_of_its_own_owns_everything_and_is_named_in_the_answers(
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    role = f"{prefix}_owner"
    await execute(server.url, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        async with serving(test_username=role, test_password="secret") as client:
            config = await client.initialize_template("x")
            assert config is not None
            assert (config.username, config.password) == (role, "secret")
            await filled(config)
            await client.finalize_template("x")
            database = await client.get_test_database("x")
            assert (database.config.username, database.config.password) == (role, "secret")
            await execute(database.url, "INSERT INTO pilot VALUES (current_user)")
            assert role in await fetch(database.url, "SELECT name FROM pilot")
            await client.recreate("x", database.id)
            await client.reset_all()
            for name in await databases(server, prefix):
                await server.drop_database(name)
    finally:
        await execute(server.url, f"DROP ROLE {role}")


async def test_what_takes_too_long_is_unavailable(serving: Serving) -> None:
    async with serving() as client, serving(request_timeout=SHORT) as impatient:
        await client.initialize_template("x")
        async with httpx.AsyncClient(base_url=str(impatient._url), trust_env=False) as http:
            answer = await http.get("/templates/x/tests")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "too long" in answer.json()["message"]


async def test_a_pool_that_nobody_uses_is_closed_and_opened_again(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_ROUND_SECONDS", 0.05)
    monkeypatch.setattr(service, "_IDLE_SECONDS", 0.0)
    async with serving(max_pool_size=2) as client, httpx.AsyncClient(base_url=_root(client), trust_env=False) as http:
        await client.with_template("x", filled)
        first = await client.get_test_database("x")
        async with asyncio.timeout(WAIT):
            while 'databases{state="leased"} 0' not in (await http.get("/metrics")).text:  # noqa: ASYNC110 - asks it
                await asyncio.sleep(0.02)
        second = await client.get_test_database("x")
        assert second.id != first.id


async def test_a_role_that_sees_nobody_elses_sessions_notices_them_all_the_same(
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    role = f"{prefix}_manager"
    await execute(server.url, f"CREATE ROLE {role} LOGIN CREATEDB")
    try:
        async with serving(postgres_user=role, leave_timeout=SHORT) as client:
            config = await client.initialize_template("x")
            assert config is not None
            async with connected(config.changed(username=postgres_of(server.url, {}).username)):
                with pytest.raises(DatabaseInUse):
                    await client.finalize_template("x")
                with pytest.raises(DatabaseInUse):
                    await client.discard_template("x")
            await client.discard_template("x")
    finally:
        await execute(server.url, f"DROP ROLE {role}")


async def test_a_template_stays_as_it_was_when_a_process_holds_a_copy(
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    async with serving(max_pool_size=3) as client:
        await client.with_template("x", filled)
        name = f"{prefix}_template_x"
        async with DatabasePool(server, name, name_prefix=f"{prefix}_test_x", max_size=3) as pool, pool.lease():
            with pytest.raises(DatabaseInUse):
                await client.discard_template("x")
            assert await client.initialize_template("x") is None
            assert (await client.get_test_database("x")).name.startswith(f"{prefix}_test_x_")
        await client.discard_template("x")


async def test_a_root_template_that_is_not_there_is_said_so(serving: Serving) -> None:
    async with serving(root_template="nowhere") as client:
        with pytest.raises(TestDatabaseError, match="root template 'nowhere' does not exist"):
            await client.initialize_template("x")


async def test_a_mistake_of_ours_is_answered_and_logged(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def mistaken(self: object) -> None:
        raise ZeroDivisionError("with a secret")

    monkeypatch.setattr(service.IntegresqlService, "reset", mistaken)
    async with serving() as client:
        with pytest.raises(TestDatabaseError, match="500: internal error"):
            await client.reset_all()
    assert "ZeroDivisionError: with a secret" in caplog.text


def _root(client: IntegresqlClient) -> str:
    return client._url.removesuffix("/api/v1")
