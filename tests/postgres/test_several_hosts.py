"""A URL with several hosts: the store works on the one that takes writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import asyncpg
import pytest
from sqlalchemy import make_url

from cascade_state import StoreUnavailable, open_store
from cascade_state.abc.options import StoreOptions
from cascade_state.postgres.engine import connect_arguments
from cascade_state.testing import factories
from tests.postgres.own_server import OwnServer, own_server
from tests.wire import Wire

pytestmark = pytest.mark.postgres


@pytest.fixture
def second() -> Iterator[OwnServer]:
    """A second server."""
    with own_server() as server:
        yield server


@asynccontextmanager
async def _both(first_url: str, second_url: str) -> AsyncIterator[str]:
    """The URL that names both servers, each behind an address of its own."""
    async with Wire(first_url) as first, Wire(second_url) as second:
        one, two = make_url(first.url), make_url(second.url)
        yield f"postgresql://{one.username}@{one.host}:{one.port},{two.host}:{two.port}/postgres"


async def test_the_server_that_takes_writes_is_used(second: OwnServer, empty_database_url: str) -> None:
    url = make_url(empty_database_url).set(database="postgres").render_as_string(hide_password=False)
    connection = await asyncpg.connect(second.url)
    await connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    async with _both(second.url, url) as urls, open_store(urls) as store, store.begin() as uow:
        result = await uow.connection.exec_driver_sql("SHOW default_transaction_read_only")
        assert result.scalar_one() == "off"


async def test_a_server_that_is_down_is_passed_over_and_both_down_is_unavailable(second: OwnServer) -> None:
    async with _both(second.url, second.url) as urls:
        address = urls.partition("@")[2].partition(",")[2]
        user = urls.partition("@")[0]
        async with open_store(f"{user}@127.0.0.1:1,{address}") as store:
            await store.migrate()
            flow = await factories.add_flow(store)
            await second.stop()
            with pytest.raises(StoreUnavailable):
                await store.advance(flow.complete_step("a"))
            await second.start()
            assert (await store.advance(flow.complete_step("a"))).version == 2


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@a:1,b:2/flows",
        f"postgresql://u@/flows?{urlencode({'host': 'a,b'})}",
    ],
)
def test_of_several_hosts_the_one_that_takes_writes_is_wanted(url: str) -> None:
    assert connect_arguments(url, StoreOptions())["target_session_attrs"] == "read-write"


def test_what_the_url_says_of_its_hosts_holds() -> None:
    arguments = connect_arguments("postgresql://u@a:1,b:2/flows?target_session_attrs=any", StoreOptions())
    assert "target_session_attrs" not in arguments
