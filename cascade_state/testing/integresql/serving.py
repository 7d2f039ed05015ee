"""Running the server: its socket, its signals, and a PostgreSQL of its own when it is asked for one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn

from cascade_state.errors import ServerUnavailable
from cascade_state.testing.connections import connect
from cascade_state.testing.integresql.database_config import DatabaseConfig
from cascade_state.testing.integresql.service import IntegresqlService
from cascade_state.testing.integresql.settings import Settings
from cascade_state.testing.integresql.web import application
from cascade_state.testing.server import PostgresServer

__all__ = ["embedded_postgres", "serve"]

_logger = logging.getLogger("cascade_state.testdb")
_DRAIN_SECONDS = 30
_BACKLOG = 2048
# Longer than clients keep idle connections, so that none sends a request into one that is being closed.
_KEEP_ALIVE_SECONDS = 75
_LOOPBACK = ("127.", "::1", "localhost")
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


async def serve(
    settings: Settings, *, server: PostgresServer | None = None, started: Callable[[str], None] = lambda _: None
) -> None:
    """Serves until the process is told to end by SIGINT or SIGTERM, or the caller is cancelled.

    Args:
        settings: How.
        server: PostgreSQL, where it is reached in another way than clients reach it.
        started: Is called with the URL when requests are taken.

    Raises:
        ServerUnavailable: The port is taken, or the address is none of this machine's.
    """
    if settings.token is None and not settings.host.startswith(_LOOPBACK):
        _logger.warning("everybody who reaches %s gets databases and their passwords: set a token", settings.host)
    with _listening(settings.host, settings.port) as listener:
        service = IntegresqlService(settings, server)
        config = uvicorn.Config(
            application(service),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
        await _Server(config, service, lambda: started(_url_of(listener))).serve(sockets=[listener])


@asynccontextmanager
async def embedded_postgres(
    settings: Settings, directory: Path | None
) -> AsyncIterator[tuple[Settings, PostgresServer]]:
    """Yields settings and server of a PostgreSQL that listens on this machine's loopback, with a new password.

    Clients in other languages cannot all use sockets of a directory, so it has a port; what belongs to nobody else
    (the directory of its sockets) is how we reach it.

    Args:
        settings: The other settings.
        directory: Keeps the databases; None: they go with the server.

    Raises:
        ServerUnavailable: It cannot be started.
    """
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    password = secrets.token_urlsafe(18)
    embedded = PostgresServer.embedded(directory, loopback_port=port)
    async with embedded as server:
        async with connect(server.url) as connection:
            statement = await connection.fetchval(
                "SELECT format('ALTER ROLE CURRENT_USER PASSWORD %L', $1::text)", password
            )
            await connection.execute(statement)
            username = await connection.fetchval("SELECT current_user")
        postgres = DatabaseConfig(
            host="127.0.0.1", port=port, username=username, password=password, database="postgres"
        )
        yield replace(settings, postgres=postgres), server


class _Server(uvicorn.Server):
    """Ends quietly on a signal, and answers those who wait for a database before it drains."""

    def __init__(self, config: uvicorn.Config, service: IntegresqlService, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._tell = started
        self._is_cancelled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    async def main_loop(self) -> None:
        try:
            await super().main_loop()
        except asyncio.CancelledError:
            self._is_cancelled = True  # what is open is closed first

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(sockets)
        if self._is_cancelled:
            raise asyncio.CancelledError

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping.set()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again at the end, and what is around the server would not be closed.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        listener = _listener(host, port)
    except OSError as exc:
        hint = "; choose another with --port" if exc.errno in _TAKEN else ""
        reason = f"cannot listen on {host}, port {port}: {exc.strerror or exc}{hint}"
        raise ServerUnavailable(reason=reason) from exc
    with contextlib.closing(listener):
        yield listener


def _listener(host: str, port: int) -> socket.socket:
    # With its protocol said aloud, which `create_server` leaves out: only then does asyncio switch Nagle's algorithm
    # off, which holds back the second part of an answer for 40 ms.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
