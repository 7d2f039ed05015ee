"""PostgreSQL servers for tests.

A server that tests start themselves is thrown away afterwards: it lives on tmpfs where there is room, does
not wait for disks, and is removed by the last process that uses it. One whose test run was killed is found by
the next start, through its lock files, and removed then.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Self

from cascade_state.errors import ServerUnavailable
from cascade_state.postgres.server_process import ServerFailed
from cascade_state.postgres.shared_server import SharedServer, remove_if_abandoned, socket_url
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.connections import connect, database_of, plain_url, url_of
from cascade_state.testing.databases import DatabaseCommands

__all__ = ["PostgresServer", "shared_server"]

_MAINTENANCE_DATABASE = "postgres"
_PREFIX = "cascade_state-test-"
_TMPFS = Path("/dev/shm")  # noqa: S108 - names there are random, and each server's data is its own
_TMPFS_ROOM = 512 * 1024 * 1024  # bytes; containers often get 64 MB, which a handful of databases fill

_THROW_AWAY_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    # Nobody replicates a test server, and copying a template then needs no write-ahead log.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",  # the directory may be memory
    "max_connections": "200",
}


class PostgresServer(DatabaseCommands):
    """A PostgreSQL server that tests may do anything to.

    Use `with`, `async with`, or `start()` and `stop()`. Make one with `embedded`, `system` or `from_url`.
    """

    def __init__(self, *, url: str | None = None, server: SharedServer | None = None) -> None:
        if (url is None) == (server is None):
            raise TypeError("make a PostgresServer with from_url(), embedded() or system()")
        self._given_url = plain_url(url) if url is not None else None
        self._server = server
        if server is not None:
            self.copy_strategy = "STRATEGY file_copy"

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Returns a server that somebody else runs; its role must be allowed to create databases.

        Args:
            url: A URL of the maintenance database, `postgres` when it names none.
        """
        plain = plain_url(url)
        return cls(url=plain if database_of(plain) else url_of(plain, _MAINTENANCE_DATABASE))

    @classmethod
    def embedded(
        cls, directory: str | Path | None = None, version: int = 18, *, loopback_port: int | None = None
    ) -> Self:
        """Returns a server from the wheel's programs (or, without the wheel, the system's of that version).

        Args:
            directory: Kept between runs, together with its databases; None makes one that is removed at the
                end.
            version: PostgreSQL's major version, 18 or 16 from the wheel.
            loopback_port: For clients that cannot use its socket: it also listens there, and asks for a password.
        """
        return cls(server=_throw_away_server(directory, version=version, loopback_port=loopback_port))

    @classmethod
    def system(cls, directory: str | Path | None = None) -> Self:
        """Returns a server from the newest programs found on this machine, the wheel's left out."""
        return cls(server=_throw_away_server(directory, system_only=True))

    @property
    def url(self) -> str:
        """The `postgresql://` URL of the maintenance database."""
        return self._given_url if self._given_url is not None else self.url_for(_MAINTENANCE_DATABASE)

    def url_for(self, name: str) -> str:
        """Returns the `postgresql://` URL of a database, whether it exists or not."""
        if self._server is None:
            assert self._given_url is not None  # noqa: S101 - one of the two, see __init__
            return url_of(self._given_url, name)
        try:
            return url_of(socket_url(self._server.postmaster, _MAINTENANCE_DATABASE), name)
        except ServerFailed as exc:
            raise ServerUnavailable(reason=exc.reason, log_tail=exc.log_tail) from exc

    def start(self) -> Self:
        """Returns this server when it accepts connections. Blocks; starting twice is harmless.

        Raises:
            ServerUnavailable: It does not start or does not answer; `log_tail` is what it said last.
        """
        if self._server is None:
            run_blocking(self._probe())
            return self
        _sweep(self._server.directory)
        try:
            self._server.start()
        except ServerFailed as exc:
            raise ServerUnavailable(reason=exc.reason, log_tail=exc.log_tail) from exc
        return self

    def stop(self) -> None:
        """Leaves the server; the last user stops it and removes its directory unless that was given."""
        if self._server is not None:
            try:
                # A kept directory needs no recovery at the next start; one to be removed needs no checkpoint.
                self._server.stop(mode="immediate" if self._server.remove_when_last else "fast")
            except ServerFailed as exc:
                raise ServerUnavailable(reason=exc.reason, log_tail=exc.log_tail) from exc

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.stop)

    async def _probe(self) -> None:
        async with connect(self.url):
            pass


_shared_lock = threading.Lock()
_shared: PostgresServer | ServerUnavailable | None = None


def shared_server() -> PostgresServer:
    """Returns the started server of this process; the same for all pytest-xdist workers of a test run.

    `CASCADE_TEST_URL` names a server to use instead; `CASCADE_TEST_POSTGRES` chooses `18` (the default), `16`
    or `system`. Stop it, or let the process end.

    Raises:
        ServerUnavailable: It could not be started; later calls raise the same again without another attempt.
    """
    global _shared
    with _shared_lock:
        if _shared is None:
            try:
                _shared = _chosen_server().start()
            except ServerUnavailable as exc:
                _shared = exc
        if isinstance(_shared, ServerUnavailable):
            raise _shared
        return _shared.start()


def _chosen_server() -> PostgresServer:
    url = os.environ.get("CASCADE_TEST_URL")
    if url:
        return PostgresServer.from_url(url)
    choice = os.environ.get("CASCADE_TEST_POSTGRES") or "18"
    directory = _run_directory()
    if choice == "system":
        return PostgresServer(server=_throw_away_server(directory, system_only=True, remove=True))
    if not choice.isdecimal():
        raise ServerUnavailable(reason=f"CASCADE_TEST_POSTGRES is {choice!r}; it must be a version or 'system'")
    return PostgresServer(server=_throw_away_server(directory, version=int(choice), remove=True))


def _run_directory() -> Path:
    """Returns the directory that all workers of a test run agree upon without talking to each other."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return _new_directory()
    choice = os.environ.get("CASCADE_TEST_POSTGRES", "")
    digest = hashlib.sha256(f"{os.geteuid()}:{choice}:{run}".encode()).hexdigest()[:16]
    return _parent_directory() / f"{_PREFIX}{digest}"


def _throw_away_server(
    directory: str | Path | None,
    *,
    version: int | None = None,
    system_only: bool = False,
    remove: bool | None = None,
    loopback_port: int | None = None,
) -> SharedServer:
    network = {"listen_addresses": "127.0.0.1", "port": f"{loopback_port:d}"} if loopback_port is not None else {}
    return SharedServer(
        Path(directory) if directory is not None else _new_directory(),
        version=version,
        system_only=system_only,
        remove_when_last=remove if remove is not None else directory is None,
        settings=_THROW_AWAY_SETTINGS | network,
        initdb_options=("--no-sync",),
    )


def _new_directory() -> Path:
    return _parent_directory() / f"{_PREFIX}{secrets.token_hex(8)}"


def _parent_directory() -> Path:
    if _TMPFS.is_dir() and os.access(_TMPFS, os.W_OK) and shutil.disk_usage(_TMPFS).free >= _TMPFS_ROOM:
        return _TMPFS
    return Path(tempfile.gettempdir())


def _sweep(own: Path) -> None:
    """Removes what killed test runs left behind."""
    for parent in {_TMPFS, Path(tempfile.gettempdir()), own.parent}:
        for directory in parent.glob(f"{_PREFIX}*"):
            if directory != own:
                remove_if_abandoned(directory)
