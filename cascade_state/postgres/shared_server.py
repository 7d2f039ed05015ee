"""One server for all who opened its directory; it stops with the last of them.

Two lock files do the counting. Everybody who uses the server holds `users.lock` shared for as long as they
use it. Starts and stops happen under `change.lock`, one at a time. Whoever leaves asks, under `change.lock`,
for `users.lock`
exclusively: granted means that nobody else is there, and the server stops. The kernel gives up the locks of a
    process
that was killed, so its death counts as leaving. When all were killed the server lives on, and whoever comes
next finds it running, adopts it, and stops it when leaving last.

For `embedded` and for the test servers.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from cascade_state.postgres.binaries import Installation, find_installation
from cascade_state.postgres.file_lock import USERS_LOCK, FileLock
from cascade_state.postgres.postmaster import Postmaster
from cascade_state.postgres.server_process import SUPERUSER, ServerFailed, ServerProcess, StopMode

__all__ = ["SharedServer", "remove_if_abandoned", "socket_url"]

_CHANGE_LOCK = "change.lock"


class SharedServer:
    """This caller's use of the server on a directory. Calls block; they may come from any thread.

    Args:
        directory: Made when missing.
        version: Major version for a new data directory; None takes 18 from the wheel, else the newest there
            is. A data directory that exists keeps its own.
        system_only: Does not use the wheel's programs.
        remove_when_last: The last to leave removes the directory.
        settings: PostgreSQL settings of a run that this caller starts.
        initdb_options: Options for making the data directory.
        without_maps: Makes the data directory without free-space and visibility maps, so that copies of its databases
            have fewer files; VACUUM makes those that it wants.
    """

    def __init__(
        self,
        directory: Path,
        *,
        version: int | None = None,
        system_only: bool = False,
        remove_when_last: bool = False,
        settings: Mapping[str, str] | None = None,
        initdb_options: tuple[str, ...] = (),
        without_maps: bool = False,
    ) -> None:
        self.directory: Path = directory.expanduser().absolute()
        self._process = ServerProcess(
            self.directory, settings=settings, initdb_options=initdb_options, without_maps=without_maps
        )
        self._version = version
        self._system_only = system_only
        self.remove_when_last = remove_when_last
        self._change = FileLock(self.directory / _CHANGE_LOCK)
        self._users = FileLock(self.directory / USERS_LOCK)
        self._thread_lock = threading.Lock()
        self._postmaster: Postmaster | None = None
        self._owner_process = 0

    @property
    def postmaster(self) -> Postmaster:
        """The running server's facts as of this caller's last `start`."""
        if self._postmaster is None:
            raise ServerFailed(f"the server in {self.directory} is not started")
        return self._postmaster

    @property
    def started(self) -> bool:
        """True between `start` and `stop` of this caller, whether or not the server has died meanwhile."""
        return self._users.held

    @property
    def version(self) -> int | None:
        """The data directory's major version; None before it is made."""
        return self._process.version

    def start(self, *, timeout: float = 60.0) -> Postmaster:
        """Returns when the server accepts connections; starts it where none runs, or where it crashed.

        Raises:
            ServerFailed: It does not start, or another caller's start or stop takes longer than the time-out.
        """
        with self._thread_lock, self._changing(timeout):
            new_user = not self._users.held
            if new_user:
                self._users.acquire(shared=True, timeout=timeout)
            try:
                self._postmaster = self._process.start(self._installation(), timeout=timeout)
            except BaseException:
                if new_user:
                    self._users.release()
                    self._remove_failed()
                raise
            if new_user:
                self._owner_process = os.getpid()
                atexit.register(self._stop_at_exit)
            return self._postmaster

    def stop(self, *, mode: StopMode = "fast", timeout: float = 60.0) -> None:
        """Leaves the server; the last to leave stops it. Does nothing for a caller that has not started.

        Raises:
            ServerFailed: The server does not end, or another caller's start or stop takes longer than the
                time-out.
        """
        with self._thread_lock:
            atexit.unregister(self._stop_at_exit)
            if not self._users.held:
                return
            with self._changing(timeout):
                self._users.release()
                self._postmaster = None
                if not self._users.acquire(timeout=0):
                    return
                try:
                    self._process.stop(mode=mode, timeout=timeout)
                    if self.remove_when_last:
                        _remove(self.directory)
                finally:
                    self._users.release()

    def leave(self) -> None:
        """Leaves the server running, also when nobody else uses it."""
        with self._thread_lock:
            atexit.unregister(self._stop_at_exit)
            self._users.release()
            self._postmaster = None

    def restart(self, *, mode: StopMode = "immediate", timeout: float = 60.0) -> Postmaster:
        """Stops the server under everybody's feet and starts it again; the address stays.

        For tests of recovery: other users of the directory see their connections break.
        """
        self.interrupt(mode=mode, timeout=timeout)
        return self.start(timeout=timeout)

    def interrupt(self, *, mode: StopMode = "immediate", timeout: float = 60.0) -> None:
        """Stops the server but does not leave it: `start` brings it back."""
        with self._thread_lock, self._changing(timeout):
            self._process.stop(mode=mode, timeout=timeout)

    def crash(self, *, timeout: float = 60.0) -> None:
        """Kills the server with SIGKILL; `start` brings it back through crash recovery."""
        with self._thread_lock, self._changing(timeout):
            self._process.kill()

    def _remove_failed(self) -> None:
        """Removes what a failed first start left of a server that would have been thrown away."""
        if self.remove_when_last and self._users.acquire(timeout=0):
            try:
                _remove(self.directory)
            finally:
                self._users.release()

    def _installation(self) -> Installation:
        version = self._process.version or self._version
        installation = find_installation(version, system_only=self._system_only)
        if installation is None:
            wanted = f"PostgreSQL {version}" if version else "PostgreSQL"
            where = "on this system" if self._system_only else "in the wheel (extra 'embedded') or on this system"
            raise ServerFailed(f"{wanted} was not found {where}")
        return installation

    @contextlib.contextmanager
    def _changing(self, timeout: float) -> Iterator[None]:
        try:
            taken = self._change.acquire(timeout=timeout)
        except OSError as exc:
            raise ServerFailed(f"{self.directory} cannot be used: {exc}") from exc
        if not taken:
            raise ServerFailed(f"somebody else has been starting or stopping the server for {timeout:.0f} s")
        try:
            yield
        finally:
            self._change.release()

    def _stop_at_exit(self) -> None:
        if self._owner_process == os.getpid():
            with contextlib.suppress(ServerFailed):
                self.stop(mode="immediate" if self.remove_when_last else "fast")


def socket_url(postmaster: Postmaster, database: str) -> str:
    """Returns a `postgresql://` URL of a database of this server, for SQLAlchemy, asyncpg and libpq alike."""
    host = quote(postmaster.socket_directory, safe="/")
    # The port is said aloud because clients would else take it from PGPORT.
    return f"postgresql://{SUPERUSER}@/{quote(database, safe='')}?host={host}&port={postmaster.port}"


def remove_if_abandoned(directory: Path) -> bool:
    """Stops the server of a directory that nobody uses any more and removes it; tells whether it did."""
    with contextlib.suppress(OSError):
        directory.rmdir()  # a creator that died before its first lock; a live one makes it again
        return True
    change, users = FileLock(directory / _CHANGE_LOCK), FileLock(directory / USERS_LOCK)
    try:
        if not change.acquire(timeout=0, create=False):
            return False
        if not users.acquire(timeout=0):
            return False
        ServerProcess(directory).stop(mode="immediate", timeout=10.0)
        _remove(directory)
    except (OSError, ServerFailed):  # another user's directory, or one that resists: somebody else's turn
        return False
    finally:
        users.release()
        change.release()
    return True


def _remove(directory: Path) -> None:
    """Removes everything; the lock that guards the removal goes last, so that nobody starts in between."""
    for path in directory.iterdir():
        if path.name == _CHANGE_LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    (directory / _CHANGE_LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody new has already put a lock there
        directory.rmdir()
