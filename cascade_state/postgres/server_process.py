"""One PostgreSQL server on one directory: make it, start it, stop it, kill it.

The programs are run directly. `pg_ctl` would look for readiness ten times a second; the server writes the
word `ready` into its data directory the moment it is, and reading that every few milliseconds saves a tenth
of a second per start. Whoever calls `start` or `stop` sees to it that nobody else does at the same time. For
the rooms that start servers.

Source: PostgreSQL manual, "Starting the Database Server", "Shutting Down the Server";
    `src/include/utils/pidfile.h`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cascade_state.postgres.binaries import Installation
from cascade_state.postgres.postmaster import (
    Postmaster,
    adopt_child,
    forget_stale_file,
    is_alive,
    last_postmaster,
    read_postmaster,
)
from cascade_state.postgres.server_identity import (
    ServerIdentity,
    data_directory_argument,
    identity_for,
    reachable_installation,
)
from cascade_state.postgres.server_sockets import PORT, make_socket_directory, remove_sockets

__all__ = ["SUPERUSER", "ServerFailed", "ServerProcess", "StopMode"]

StopMode = Literal["smart", "fast", "immediate"]
SUPERUSER = "postgres"

_POLL_SECONDS = 0.002
_LOG_LIMIT = 16 * 1024 * 1024
_LOG_TAIL = 4096
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class ServerFailed(Exception):
    """A server could not be made, started or stopped; `log_tail` is what it said last."""

    def __init__(self, reason: str, log_tail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.log_tail = log_tail


class ServerProcess:
    """The server on one directory, whichever process started it.

    The directory holds `pgdata/` (the data directory, the server's own), `server.log`, and the callers' lock
    files.

    Args:
        directory: Made when missing.
        settings: PostgreSQL settings of this run; they win over the data directory's.
        initdb_options: Further options for making the data directory.
        without_maps: Makes the data directory without free-space and visibility maps.
    """

    def __init__(
        self,
        directory: Path,
        *,
        settings: Mapping[str, str] | None = None,
        initdb_options: tuple[str, ...] = (),
        without_maps: bool = False,
    ) -> None:
        self.directory = directory
        self.data_directory: Path = directory / "pgdata"
        self.log_path: Path = directory / "server.log"
        self._settings = dict(settings or {})
        self._initdb_options = initdb_options
        self._without_maps = without_maps

    @property
    def version(self) -> int | None:
        """The major version that made the data directory; None when there is no data directory yet."""
        try:
            return int((self.data_directory / "PG_VERSION").read_text().split(".")[0])
        except FileNotFoundError:
            return None

    def running(self) -> Postmaster | None:
        """Returns the facts of the server that runs here now, ready or not."""
        return read_postmaster(self.data_directory)

    def start(self, installation: Installation, *, timeout: float) -> Postmaster:
        """Returns when the server accepts connections: the one that runs already, or a new one.

        A data directory is made when there is none. After a crash the server recovers by itself; orphans of
        the former server are waited for.

        Raises:
            ServerFailed: With the log's tail.
        """
        deadline = time.monotonic() + timeout
        try:
            while (running := self.running()) is not None:
                if running.status in ("ready", "standby"):
                    return running
                self._pause(deadline, f"the server is still {running.status}")
            identity = identity_for(self.data_directory)
            programs = reachable_installation(installation, identity)
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.version is None:
                self._initialise(programs, identity, timeout)
            return self._launch(programs, identity, deadline)
        except (OSError, LookupError) as exc:
            raise ServerFailed(f"PostgreSQL cannot be started in {self.directory}: {exc}", self._log_tail()) from exc

    def stop(self, *, mode: StopMode = "fast", timeout: float = 60.0) -> None:
        """Returns when the server is gone; does nothing when there is none.

        Args:
            mode: `fast` ends sessions and writes a checkpoint, `immediate` does neither (recovery follows).
            timeout: Seconds; after it the server is stopped in immediate mode, then killed.
        """
        running = self.running()
        if running is None:
            killed = last_postmaster(self.data_directory)
            if killed is not None:
                remove_sockets(Path(killed.socket_directory))
            return
        for number, patience in ((_SIGNALS[mode], timeout), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            if self._signal_and_wait(running.process_id, number, patience):
                break
        else:
            raise ServerFailed(f"server process {running.process_id} does not end", self._log_tail())
        remove_sockets(Path(running.socket_directory))

    def kill(self) -> None:
        """Ends the server's first process with SIGKILL, as a crash would.

        Its sessions end by themselves, each when it next waits for something, and keep their locks until then.
        """
        running = self.running()
        if running is not None and not self._signal_and_wait(running.process_id, signal.SIGKILL, 5.0):
            raise ServerFailed(f"server process {running.process_id} does not end", self._log_tail())

    def _initialise(self, programs: Installation, identity: ServerIdentity, timeout: float) -> None:
        """Makes the data directory under another name first: a killed attempt leaves nothing finished."""
        scratch = self.directory / f"pgdata.new-{secrets.token_hex(4)}"
        scratch.mkdir(mode=0o700)
        identity.own(scratch)
        command = [
            str(programs.initdb),
            f"--pgdata={data_directory_argument(scratch, identity)}",
            f"--username={SUPERUSER}",
            # The socket's directory lets nobody else in; over the network nobody comes in without a password.
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            *_locale_options(programs.version),
            *self._initdb_options,
        ]
        try:
            answer = subprocess.run(  # noqa: S603 - programs of an installation
                command,
                capture_output=True,
                timeout=timeout,
                check=False,
                **self._subprocess_options(scratch, identity),
            )
            if answer.returncode != 0:
                raise ServerFailed("initdb failed", answer.stderr.decode(errors="replace")[-_LOG_TAIL:])
            if self._without_maps:
                _remove_maps(scratch)
            scratch.rename(self.data_directory)
        except subprocess.TimeoutExpired as exc:
            raise ServerFailed(f"initdb took longer than {timeout:.0f} s", "") from exc
        finally:
            for leftover in self.directory.glob("pgdata.new-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _launch(self, programs: Installation, identity: ServerIdentity, deadline: float) -> Postmaster:
        sockets = make_socket_directory(self.directory, identity)
        try:
            return self._await_ready(programs, identity, sockets, deadline)
        except BaseException:
            remove_sockets(sockets)
            raise

    def _await_ready(
        self, programs: Installation, identity: ServerIdentity, sockets: Path, deadline: float
    ) -> Postmaster:
        while True:
            forget_stale_file(self.data_directory)
            begin = self._rotate_log()
            child = self._spawn(programs, identity, sockets)
            while child.poll() is None:
                running = self.running()
                if running is not None and running.process_id == child.pid and running.status in ("ready", "standby"):
                    return running
                try:
                    self._pause(deadline, "the server was not ready in time")
                except ServerFailed:
                    child.kill()
                    child.wait()
                    raise
            # The former server was killed and one of its sessions has not noticed yet. LC_ALL=C keeps this
            # English.
            if "is still in use" not in self._log_tail(begin):
                raise ServerFailed(f"the server ended at once (exit code {child.returncode})", self._log_tail(begin))
            self._pause(deadline, "processes of the former server still run")

    def _spawn(self, programs: Installation, identity: ServerIdentity, sockets: Path) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(sockets),
            "port": str(PORT),
            **self._settings,
        }
        command = [str(programs.postgres), "-D", data_directory_argument(self.data_directory, identity)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        # Statements that fail are in the log, with their values.
        with open(os.open(self.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as log:
            child = subprocess.Popen(  # noqa: S603 - programs of an installation
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is not meant for the server
                **self._subprocess_options(self.data_directory, identity),
            )
        adopt_child(child)
        return child

    def _subprocess_options(self, working_directory: Path, identity: ServerIdentity) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment |= {"LC_ALL": "C", "TZ": "UTC"}
        return {"cwd": working_directory, "env": environment, "umask": 0o077, **identity.subprocess_options()}

    def _signal_and_wait(self, process_id: int, number: int, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, number)
        while is_alive(process_id, self.data_directory):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _pause(self, deadline: float, reason: str) -> None:
        if time.monotonic() >= deadline:
            raise ServerFailed(reason, self._log_tail())
        time.sleep(_POLL_SECONDS)

    def _rotate_log(self) -> int:
        """Returns where this start's messages begin."""
        try:
            size = self.log_path.stat().st_size
        except FileNotFoundError:
            return 0
        if size <= _LOG_LIMIT:
            return size
        self.log_path.replace(self.log_path.with_suffix(".log.1"))
        return 0

    def _log_tail(self, begin: int = 0) -> str:
        try:
            with self.log_path.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(begin, log.tell() - _LOG_TAIL))
                return log.read().decode(errors="replace")
        except OSError:
            return ""


def _locale_options(version: int) -> tuple[str, ...]:
    """Order by code point and, where PostgreSQL brings it, Unicode's own rules: the same on every machine."""
    if version >= 17:
        return ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    return ("--locale=C",)


def _remove_maps(data_directory: Path) -> None:
    """Removes free-space and visibility maps from a server that has never run: without them it looks at the pages.

    They are hints. VACUUM writes those that it wants anew.
    """
    for path in (data_directory / "base").glob("*/*_*"):
        if path.name.endswith(("_fsm", "_vm")):
            path.unlink()
