"""Templates and helpers for the tests of the pool; every test has a template of its own."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from cascade_state.testing import PostgresServer
from cascade_state.testing.blocking import run_blocking

WAIT = 30.0

Connect = Callable[..., contextlib.AbstractAsyncContextManager[Any]]


@contextlib.asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url, **options)
    try:
        yield connection
    finally:
        if not connection.is_closed():
            await connection.close()


async def filled(url: str) -> None:
    async with connected(url) as connection:
        await connection.execute("CREATE TABLE colour (name text); INSERT INTO colour VALUES ('red')")


async def drop_everything(server: PostgresServer, template: str) -> None:
    """Drops the template and the copies that pools made of it, and forgets them."""
    async with connected(server.url) as connection:
        names = [
            row[0]
            for row in await connection.fetch(
                "SELECT datname FROM pg_database WHERE starts_with(datname::text, $1)", template
            )
        ]
    for name in names:
        await server.drop_database(name, force=True)
    with contextlib.suppress(asyncpg.InvalidCatalogNameError):
        async with connected(server.url_for("cascade_state_pools_1")) as books:
            await books.execute("DELETE FROM slots WHERE starts_with(template, $1)", template)


@pytest.fixture
def connect() -> Connect:
    """Opens a connection for a block."""
    return connected


@pytest.fixture
def template(server: PostgresServer) -> Iterator[str]:
    """A template of this test's own, with one table of one row."""
    name = f"pool_{secrets.token_hex(6)}"
    run_blocking(server.ensure_template_exists(name, filled))
    yield name
    run_blocking(drop_everything(server, name))


@pytest.fixture
def guest(server: PostgresServer, template: str) -> Iterator[PostgresServer]:
    """The server as a role sees it that may make databases, and owns none."""
    role = f"{template}_guest"

    async def run(statement: str) -> None:
        async with connected(server.url) as connection:
            await connection.execute(statement)

    run_blocking(run(f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'guest'"))
    parts = urlsplit(server.url)
    netloc = f"{role}:guest@{parts.netloc.rpartition('@')[2]}"
    yield PostgresServer.from_url(parts._replace(netloc=netloc).geturl())
    run_blocking(drop_everything(server, template))  # a role goes when it owns nothing any more
    run_blocking(run(f"DROP ROLE {role}"))


@pytest.fixture
def fill() -> Callable[[str], Awaitable[None]]:
    """Makes the table of the templates."""
    return filled


@pytest.fixture
def rows_of() -> Callable[[str], Awaitable[list[str]]]:
    """Reads what is in the table of a copy."""

    async def rows(url: str) -> list[str]:
        async with connected(url) as connection:
            return [row[0] for row in await connection.fetch("SELECT name FROM colour ORDER BY name")]

    return rows


@pytest.fixture
def change() -> Callable[[str], Awaitable[None]]:
    """Changes a copy, so that whoever gets it next could tell."""

    async def run(url: str) -> None:
        async with connected(url) as connection:
            await connection.execute("INSERT INTO colour VALUES ('changed'); CREATE TABLE other ()")

    return run
