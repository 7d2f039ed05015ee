"""A proxy between a client and PostgreSQL: it counts round trips on the wire, and can fail silently, as networks do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy import URL, make_url

_CHUNK = 1 << 16


__all__ = ["Talk", "Wire"]


@dataclass
class Talk:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    client_is_speaking: bool = False
    is_ending: bool = False


class Wire:
    """Forwards connections to a database and counts, over all of them, how often a client spoke after the server did.

    That is what a round trip is: whatever a client sends before it hears the server belongs to one. It is counted
    here, and not in the client, so that nothing the driver does by itself (preparing, asking for types, resetting)
    goes uncounted.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._talks: list[Talk] = []
        self._forwards = asyncio.Event()
        self._forwards.set()
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

    def hang(self) -> None:
        """Forwards nothing any more; nobody is told."""
        self._forwards.clear()

    def mend(self, *, only_new: bool = False) -> None:
        """Forwards again; or only new connections, while what the old ones say is lost for ever."""
        if only_new:
            self._forwards = asyncio.Event()
        self._forwards.set()

    def cut(self) -> None:
        """Ends every connection, in both directions."""
        for talk in self._talks:
            talk.client.close()
            talk.server.close()

    def lets_request_through(self, talk: Talk, chunk: bytes) -> bool:
        """Hears what a client says; raises ConnectionResetError to end the connection."""
        if not talk.client_is_speaking:
            talk.client_is_speaking = True
            self.round_trips += 1
        return True

    def lets_answer_through(self, talk: Talk, chunk: bytes) -> bool:
        """Hears what the server says; raises ConnectionResetError to end the connection."""
        talk.client_is_speaking = False
        return True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward(reader, writer, self._forwards)
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, forwards: asyncio.Event
    ) -> None:
        await forwards.wait()
        from_server, to_server = await self._connect()
        talk = Talk(writer, to_server)
        self._talks.append(talk)

        async def pump(
            source: asyncio.StreamReader, target: asyncio.StreamWriter, passes: Callable[[Talk, bytes], bool]
        ) -> None:
            while chunk := await source.read(_CHUNK):
                await forwards.wait()
                if passes(talk, chunk):
                    target.write(chunk)
                    await target.drain()
            raise ConnectionResetError  # ends the other direction, too

        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(pump(reader, to_server, self.lets_request_through))
                pumps.create_task(pump(from_server, writer, self.lets_answer_through))
        finally:
            self._talks.remove(talk)
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
