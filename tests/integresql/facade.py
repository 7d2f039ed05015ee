"""Servers for the tests of the API: in this process, or in one of its own that can be stopped and killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg

from cascade_state.testing import PostgresServer
from cascade_state.testing.integresql.serving import serve
from cascade_state.testing.integresql.settings import Settings, postgres_of

__all__ = ["WAIT", "Facade", "databases", "drop_databases", "execute", "facade", "facade_process", "fetch", "filled"]

ROOT = Path(__file__).resolve().parents[2]
WAIT = 30.0


@asynccontextmanager
async def facade(server: PostgresServer, prefix: str, **options: Any) -> AsyncIterator[str]:
    """Serves in this process, over HTTP; yields the URL. The names of all databases begin with the prefix."""
    usual = {
        "postgres": postgres_of(server.url, {}),
        "prefix": prefix,
        "port": 0,
        "initial_pool_size": 1,
        "closing_timeout": timedelta(milliseconds=300),
    }
    settings = Settings().changed(**(usual | options))
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(settings, started=started.set_result))
    try:
        waited: set[asyncio.Future[Any]] = {serving, started}
        await asyncio.wait(waited, timeout=WAIT, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        yield started.result()
    finally:
        serving.cancel()
        await asyncio.wait_for(asyncio.wait({serving}), WAIT)


class Facade:
    """The command in a process of its own; it has the same port after a restart."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._arguments = arguments
        self._environment = environment
        self._process: subprocess.Popen[str]
        self.port = 0
        self.url = ""

    def start(self) -> None:
        """Starts it; returns when it takes requests."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "INTEGRESQL_", "USER"))
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cascade_state.cli", "testdb", "serve", "--port", str(self.port), *self._arguments],
            cwd=ROOT,
            env=inherited | self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("listening on "), self._process.communicate(timeout=WAIT)
        self.url = line.removeprefix("listening on ").partition(",")[0]
        self.port = int(self.url.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ends it; returns its exit code and its log."""
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        _, log = self._process.communicate(timeout=WAIT)
        return self._process.returncode, log

    def kill(self) -> None:
        if self.is_running:
            self._process.kill()
            self._process.communicate(timeout=WAIT)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None


@contextmanager
def facade_process(*arguments: str, **environment: str) -> Iterator[Facade]:
    """Runs the command; yields it when it takes requests."""
    process = Facade(*arguments, **environment)
    process.start()
    try:
        yield process
    finally:
        if process.is_running:
            try:
                process.stop()
            finally:
                process.kill()


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(url: str, statement: str, *arguments: object) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch(statement, *arguments)]
    finally:
        await connection.close()


async def filled(url: str) -> None:
    """Fills a template."""
    await execute(url, "CREATE TABLE pilot (name text); INSERT INTO pilot VALUES ('Mario')")


async def databases(server: PostgresServer, prefix: str) -> list[str]:
    return await fetch(
        server.url, "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, $1) ORDER BY 1", prefix
    )


async def drop_databases(server: PostgresServer, prefix: str) -> None:
    """Drops what a test left, and lets the pools forget it."""
    from cascade_state.testing.pool.session import BOOKS

    for name in await databases(server, prefix):
        await server.drop_database(name, force=True)
    if await server.database_exists(BOOKS):
        await execute(server.url_for(BOOKS), f"DELETE FROM slots WHERE starts_with(template, '{prefix}')")
