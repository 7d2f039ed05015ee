"""PostgreSQL servers for tests.

A server that tests start themselves is thrown away afterwards: it lives on tmpfs where there is room, does
not wait for disks, and is removed by the last process that uses it. One whose test run was killed is found by
the next start, through its lock files, and removed then.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Self

from cascade_state.errors import ServerUnavailable, TestDatabaseError
from cascade_state.postgres.binaries import DEFAULT_VERSION
from cascade_state.postgres.server_process import ServerFailed
from cascade_state.postgres.shared_server import SharedServer, remove_if_abandoned, socket_url
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.connections import connect, database_of, plain_url, url_of
from cascade_state.testing.databases import DatabaseCommands
from cascade_state.testing.masking import masked_url
from cascade_state.testing.run_directory import (
    choose_directory,
    directories,
    kept_for,
    mark_kept,
    new_directory,
    worker_run_id,
)

__all__ = ["PostgresServer", "shared_server", "sweep"]

_MAINTENANCE_DATABASE = "postgres"
_OLDEST_VERSION = 15
_SETTINGS = {
    # Nobody replicates a test server, and copying a template then needs no write-ahead log.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",  # the directory may be memory
    "max_connections": "200",
}
# A power cut may destroy what is thrown away; nothing else may have these.
_THROW_AWAY_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    # In the directory, not beside it: removing the directory removes all, also of a server that was killed.
    "dynamic_shared_memory_type": "mmap",
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
        self._version: tuple[int, str] | None = None
        self._uses = 0  # by callers of shared_server()
        if server is not None and server.remove_when_last:
            self.copy_strategy = "STRATEGY file_copy"

    def __repr__(self) -> str:
        return f"<PostgresServer {masked_url(self._given_url) if self._given_url else self.directory}>"

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
            directory: Kept between runs, together with its databases, and safe from power cuts; None makes one that
                is removed at the end.
            version: PostgreSQL's major version, 18 or 16 from the wheel.
            loopback_port: For clients that cannot use its socket: it also listens there, and asks for a password.
        """
        return cls(server=_throw_away_server(directory, version=version, loopback_port=loopback_port))

    @classmethod
    def system(cls, directory: str | Path | None = None) -> Self:
        """Returns a server from the newest programs found on this machine, the wheel's left out.

        Args:
            directory: As for `embedded`.
        """
        return cls(server=_throw_away_server(directory, system_only=True))

    @property
    def url(self) -> str:
        """The `postgresql://` URL of the maintenance database."""
        return self._given_url if self._given_url is not None else self.url_for(_MAINTENANCE_DATABASE)

    @property
    def version(self) -> int:
        """The major version of the server, which was started."""
        return self._known_version()[0]

    @property
    def version_text(self) -> str:
        """The version as the server says it, for example `18.1`."""
        return self._known_version()[1]

    @property
    def directory(self) -> Path | None:
        """Where a server started here keeps its files; None for somebody else's."""
        return self._server.directory if self._server is not None else None

    @property
    def is_thrown_away(self) -> bool:
        """Whether everything on it goes with its last user."""
        return self._server is not None and self._server.remove_when_last

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
            ServerUnavailable: It does not start or answer, or is too old; `log_tail` is what it said last.
            PermissionDenied: It refuses the role of the URL.
        """
        if self._server is not None:
            sweep(self._server.directory)
            try:
                self._server.start()
            except ServerFailed as exc:
                raise ServerUnavailable(reason=_advised(exc), log_tail=exc.log_tail) from exc
        if self._version is None:
            self._version = run_blocking(self._probe())
        return self

    def stop(self) -> None:
        """Leaves the server; the last user stops it and removes its directory unless that was given."""
        if self._uses > 1:  # shared: somebody else in this process goes on
            self._uses -= 1
            return
        self._uses = 0
        if self._server is not None:
            try:
                # A kept directory needs no recovery at the next start; one to be removed needs no checkpoint.
                self._server.stop(mode="immediate" if self._server.remove_when_last else "fast")
            except ServerFailed as exc:
                raise ServerUnavailable(reason=exc.reason, log_tail=exc.log_tail) from exc

    def leave_running(self, project: Path) -> None:
        """Leaves a server started here running with its databases, until the project's next test run or for an hour."""
        if self._uses > 1:
            self._uses -= 1
            return
        self._uses = 0
        if self._server is not None:
            mark_kept(self._server.directory, project)
            self._server.leave()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.stop)

    async def _probe(self) -> tuple[int, str]:
        async with connect(self.url) as connection:
            text = connection.get_settings().server_version
            major = int(connection.get_server_version().major)
        if major < _OLDEST_VERSION:
            raise ServerUnavailable(
                reason=f"PostgreSQL {text} is too old; {_OLDEST_VERSION} or newer is needed: name another server"
            )
        return major, text.split()[0]

    def _known_version(self) -> tuple[int, str]:
        if self._version is None:
            raise ServerUnavailable(reason="it was not started; call start() or use `with`")
        return self._version


# What to do about a server that does not start, by what its log says.
_ADVICE = {
    "Address already in use": "its port is taken: choose another",
    "No space left on device": "the disk or tmpfs is full: make room, or set TMPDIR to a larger place",
    "File too large": "the disk or a limit on the size of files is too small",
    "could not map anonymous shared memory": "there is too little memory for it",
    "could not resize shared memory segment": "the tmpfs for shared memory is too small: give the container more",
}


def _advised(failure: ServerFailed) -> str:
    text = f"{failure.reason} {failure.log_tail}"
    advice = next((advice for words, advice in _ADVICE.items() if words in text), None)
    return f"{failure.reason} ({advice})" if advice else failure.reason


_shared_lock = threading.Lock()
_shared: dict[tuple[str | None, str], PostgresServer | TestDatabaseError] = {}


def shared_server(*, url: str | None = None, version: int | str | None = None) -> PostgresServer:
    """Returns the started server of this process; the same for all pytest-xdist workers of a test run.

    Each call is one use of it: the `stop` of the last use stops the server, or else the end of the process does.

    Args:
        url: A server to use instead of starting one; None looks at `CASCADE_TEST_URL`.
        version: The major version to start, or `system`; None looks at `CASCADE_TEST_POSTGRES`, and means 18
            without it.

    Raises:
        ServerUnavailable: It could not be started or reached; later calls raise the same again without another attempt.
        PermissionDenied: It refuses the role of the URL; later calls raise the same.
    """
    url = url or os.environ.get("CASCADE_TEST_URL") or None
    choice = str(version or os.environ.get("CASCADE_TEST_POSTGRES") or DEFAULT_VERSION)
    with _shared_lock:
        known = _shared.get((url, choice))
        if known is None:
            try:
                known = (PostgresServer.from_url(url) if url else _server_of_the_run(choice)).start()
            except TestDatabaseError as exc:
                known = exc
            _shared[url, choice] = known
        if isinstance(known, TestDatabaseError):
            raise known
        known._uses += 1
        return known.start()


def _server_of_the_run(choice: str) -> PostgresServer:
    if choice != "system" and not (choice.isascii() and choice.isdecimal()):
        raise ServerUnavailable(reason=f"PostgreSQL {choice!r} was asked for; it must be a major version or 'system'")
    directory = choose_directory(choice, worker_run_id())
    if choice == "system":
        return PostgresServer(server=_throw_away_server(directory, system_only=True, remove=True))
    return PostgresServer(server=_throw_away_server(directory, version=int(choice), remove=True))


def _throw_away_server(
    directory: str | Path | None,
    *,
    version: int | None = None,
    system_only: bool = False,
    remove: bool | None = None,
    loopback_port: int | None = None,
) -> SharedServer:
    network = {"listen_addresses": "127.0.0.1", "port": f"{loopback_port:d}"} if loopback_port is not None else {}
    thrown_away = remove if remove is not None else directory is None
    return SharedServer(
        Path(directory) if directory is not None else new_directory(),
        version=version,
        system_only=system_only,
        remove_when_last=thrown_away,
        settings=_SETTINGS | (_THROW_AWAY_SETTINGS if thrown_away else {}) | network,
        initdb_options=("--no-sync",) if thrown_away else (),
        without_maps=thrown_away,  # a sixth fewer files to copy and to remove for each test
    )


def sweep(own: Path, *, project: Path | None = None) -> None:
    """Removes what killed test runs left behind, and what a former run of the project kept."""
    for directory in directories(own):
        kept = kept_for(directory)
        if kept is None or (project is not None and kept == str(project)):
            remove_if_abandoned(directory)
