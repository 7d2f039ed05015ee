"""A proxy between a client and PostgreSQL that counts round trips as they happen on the wire."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from sqlalchemy import URL, make_url

_CHUNK = 1 << 16


class Wire:
    """Forwards connections to a database and counts, over all of them, how often a client spoke after the server did.

    That is what a round trip is: whatever a client sends before it hears the server belongs to one. It is counted
    here, and not in the client, so that nothing the driver does by itself (preparing, asking for types, resetting)
    goes uncounted.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self.round_trips = 0

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
        """The URL of the same database, through this proxy."""
        host, port = self._server.sockets[0].getsockname()
        target = self._target
        through = URL.create(
            "postgresql", target.username, target.password, host=host, port=port, database=target.database
        )
        return through.render_as_string(hide_password=False)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(ConnectionError, asyncio.CancelledError):
            await self._forward(reader, writer)
        writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await self._connect()
        client_is_speaking = False

        async def requests() -> None:
            nonlocal client_is_speaking
            while chunk := await reader.read(_CHUNK):
                if not client_is_speaking:
                    client_is_speaking = True
                    self.round_trips += 1
                to_server.write(chunk)
                await to_server.drain()
            to_server.close()

        async def answers() -> None:
            nonlocal client_is_speaking
            while chunk := await from_server.read(_CHUNK):
                client_is_speaking = False
                writer.write(chunk)
                await writer.drain()
            writer.close()

        try:
            await asyncio.gather(requests(), answers())
        finally:
            to_server.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        target = self._target
        host = target.host or target.query.get("host") or "127.0.0.1"
        port = target.port or target.query.get("port") or 5432
        assert isinstance(host, str)
        assert not isinstance(port, tuple)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, int(port))
