"""A link to PostgreSQL that can fail as networks do: silently."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from sqlalchemy import URL, make_url

_CHUNK = 1 << 16


class Link:
    """Forwards connections to a database until it is told to keep what it gets to itself."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._forwards = asyncio.Event()
        self._forwards.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The URL of the same database, through this link."""
        host, port = self._server.sockets[0].getsockname()
        target = self._target
        through = URL.create(
            "postgresql", target.username, target.password, host=host, port=port, database=target.database
        )
        return through.render_as_string(hide_password=False)

    def hang(self) -> None:
        """Forwards nothing any more; nobody is told."""
        self._forwards.clear()

    def mend(self, *, only_new: bool = False) -> None:
        """Forwards again; or only new connections, while what the old ones say is lost for ever."""
        if only_new:
            self._forwards = asyncio.Event()
        self._forwards.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        forwards = self._forwards
        try:
            await forwards.wait()
            from_server, to_server = await self._connect()
            try:
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(_pump(reader, to_server, forwards))
                    pumps.create_task(_pump(from_server, writer, forwards))
            finally:
                to_server.close()
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = self._target.query.get("host") or self._target.host or "127.0.0.1"
        assert isinstance(host, str)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{self._target.port or 5432}")
        return await asyncio.open_connection(host, self._target.port or 5432)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, forwards: asyncio.Event) -> None:
    while chunk := await reader.read(_CHUNK):
        await forwards.wait()
        writer.write(chunk)
        await writer.drain()
    raise ConnectionResetError  # ends the other direction, too
