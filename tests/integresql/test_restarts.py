"""Nothing is forgotten when the server, or PostgreSQL, goes away and comes back; two servers side by side agree."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from cascade_state.errors import DatabaseDiscarded, ServerUnavailable, TemplateNotFound
from cascade_state.testing import IntegresqlClient, PostgresServer
from tests.integresql.conftest import Serving
from tests.integresql.facade import WAIT, Facade, execute, facade, facade_process, fetch, filled
from tests.postgres.own_server import OwnServer, own_server

pytestmark = pytest.mark.postgres

NAMES = "SELECT name FROM pilot ORDER BY name"


@pytest.fixture
def process(server: PostgresServer, prefix: str) -> Iterator[Facade]:
    with facade_process(
        "--postgres-url", server.url, "--initial-pool-size", "1", INTEGRESQL_DB_PREFIX=prefix
    ) as started:
        yield started


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_a_restarted_server_goes_on_where_it_was(process: Facade, way: str) -> None:
    client = IntegresqlClient(process.url)
    await client.with_template("done", filled)
    used, changed = [await client.get_test_database("done") for _ in range(2)]
    await execute(changed.url, "INSERT INTO pilot VALUES ('Luigi')")
    half = await client.initialize_template("half")
    assert half is not None
    connection = await asyncpg.connect(used.url)
    try:
        if way == "stop":
            assert (await asyncio.to_thread(process.stop))[0] == 0
        else:
            await asyncio.to_thread(process.kill)
        with pytest.raises(ServerUnavailable):
            await client.initialize_template("done")
        await asyncio.to_thread(process.start)
        assert await client.initialize_template("done") is None
        assert await client.initialize_template("half") is None
        others = [await client.get_test_database("done") for _ in range(2)]
        assert {used.name, changed.name}.isdisjoint(other.name for other in others)  # still handed out
        assert await connection.fetchval(NAMES) == "Mario"
    finally:
        await connection.close()
    await client.unlock("done", used.id)
    await client.recreate("done", changed.id)
    await filled(half)
    await client.finalize_template("half")
    assert await fetch((await client.get_test_database("half")).url, NAMES) == ["Mario"]


async def test_who_waits_when_the_server_stops_is_told_at_once(process: Facade) -> None:
    client = IntegresqlClient(process.url)
    await client.initialize_template("x")
    waiting = [asyncio.create_task(client.get_test_database("x")) for _ in range(3)]
    async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http, asyncio.timeout(WAIT):
        while "cascade_state_testdb_waiting 3\n" not in (await http.get("/metrics")).text:  # noqa: ASYNC110 - asks it
            await asyncio.sleep(0.02)
    code, log = await asyncio.to_thread(process.stop, signal.SIGINT)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ServerUnavailable] * 3
    assert "being stopped" in str(outcomes[0])
    assert code == 0
    assert "Traceback" not in log


async def test_two_servers_side_by_side_agree(serving: Serving) -> None:
    async with serving() as one, serving() as other:
        config = await one.initialize_template("x")
        assert config is not None
        assert await other.initialize_template("x") is None
        early = asyncio.create_task(other.get_test_database("x"))
        await filled(config)
        await one.finalize_template("x")
        first = await asyncio.wait_for(early, WAIT)
        second = await one.get_test_database("x")
        assert first.name != second.name
        await one.recreate("x", first.id)
        await other.unlock("x", second.id)
        await other.initialize_template("y")
        waiting = asyncio.create_task(one.get_test_database("y"))
        await asyncio.sleep(0)
        await other.discard_template("x")
        with pytest.raises(TemplateNotFound):
            await one.get_test_database("x")
        await other.discard_template("y")
        with pytest.raises((DatabaseDiscarded, TemplateNotFound)):  # the latter when it had not begun to wait
            await asyncio.wait_for(waiting, WAIT)


async def test_of_many_who_initialize_on_two_servers_one_makes_it(serving: Serving) -> None:
    async with serving() as one, serving() as other:
        clients = [one, other] * 4
        outcomes = await asyncio.gather(*(client.initialize_template("x") for client in clients))
    assert sum(config is not None for config in outcomes) == 1


@pytest.fixture(scope="module")
def own() -> Iterator[OwnServer]:
    with own_server() as started:
        yield started


@asynccontextmanager
async def on(own: OwnServer, **options: Any) -> AsyncIterator[IntegresqlClient]:
    server = PostgresServer.from_url(own.url)
    async with facade(server, f"own{secrets.token_hex(4)}", **options) as url:
        async with IntegresqlClient(url, timeout=timedelta(seconds=WAIT)) as client:
            yield client


@pytest.mark.parametrize("way", ["stop", "crash"])
async def test_it_survives_a_restart_of_postgresql(own: OwnServer, way: str) -> None:
    await own.start()
    async with on(own) as client:
        await client.with_template("x", filled)
        first = await client.get_test_database("x")
        await execute(first.url, "CHECKPOINT")
        await {"stop": own.stop, "crash": own.crash}[way]()
        for call in (client.initialize_template("y"), client.finalize_template("x"), client.unlock("x", first.id)):
            with pytest.raises(ServerUnavailable):
                await call
        root = client._url.removesuffix("/api/v1")
        async with httpx.AsyncClient(base_url=root, trust_env=False, timeout=WAIT) as http:
            assert (await http.get("/-/healthy")).status_code == 200
            assert (await http.get("/-/ready")).status_code == 503
            assert "cascade_state_testdb_postgres_up 0\n" in (await http.get("/metrics")).text
            await own.start()
            assert (await http.get("/-/ready")).status_code == 200
        assert await client.initialize_template("x") is None
        second = await client.get_test_database("x")
        assert second.name != first.name
        assert await fetch(second.url, NAMES) == ["Mario"]
        await client.recreate("x", first.id)
        await client.discard_template("x")


async def test_it_starts_without_postgresql_and_works_when_that_is_there(own: OwnServer) -> None:
    await own.start()
    await own.stop()
    async with on(own) as client:
        with pytest.raises(ServerUnavailable):
            await client.initialize_template("x")
        with pytest.raises(ServerUnavailable):
            await client.get_test_database("x")
        await own.start()
        assert await client.with_template("x", filled)
        assert (await client.get_test_database("x")).id == 0
        await client.discard_template("x")


async def test_templates_without_use_lose_their_copies_when_the_server_is_full(own: OwnServer) -> None:
    """Counts all databases of the server, so it needs one of its own."""
    await own.start()
    async with on(own, max_pool_size=2, max_databases=2) as client:
        for template_hash in ("x", "y", "z"):
            await client.with_template(template_hash, filled)
            database = await client.get_test_database(template_hash)
            await client.recreate(template_hash, database.id)
        query = "SELECT count(*) FROM pg_database WHERE datname ~ '^own.*_test_'"
        assert (await fetch(own.url, query))[0] <= 3  # one of them may just be going
        assert (await client.get_test_database("x")).id == 0
        await client.reset_all()
