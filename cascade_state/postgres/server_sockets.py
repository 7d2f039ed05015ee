"""Where a server's sockets are: in a directory of its own that nobody else can enter.

The path of a socket may have a hundred bytes, so they do not live beside the data. For the rooms that start
servers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from cascade_state.postgres.server_identity import ServerIdentity

__all__ = ["PORT", "make_socket_directory", "remove_sockets"]

PORT = 5432  # names the socket file only; the directory is the server's own
_SHORT_PARENT = Path("/tmp")  # noqa: S108 - TMPDIR may be long; what is made there is checked
_PATH_LIMIT = 100  # bytes; sun_path holds 104 on BSD and macOS, 108 on Linux, with the final NUL


def make_socket_directory(directory: Path, identity: ServerIdentity) -> Path:
    """Returns a short directory that only the server's user can enter; the same at each start."""
    real = directory.resolve()
    name = f"cascade_state-{hashlib.sha256(f'{identity.user_id}:{real}'.encode()).hexdigest()[:12]}"
    for parent in dict.fromkeys((Path(tempfile.gettempdir()), _SHORT_PARENT)):
        path = parent / name
        if len(os.fsencode(path / f".s.PGSQL.{PORT}.lock")) >= _PATH_LIMIT or not identity.can_write(parent):
            continue
        try:
            path.mkdir(mode=0o700)
            identity.own(path)
        except FileExistsError:
            facts = path.lstat()
            private = stat.S_ISDIR(facts.st_mode) and not facts.st_mode & 0o077
            if not private or facts.st_uid != identity.user_id:
                # Somebody else's: names in /tmp can be guessed.
                path = Path(tempfile.mkdtemp(dir=parent, prefix="cascade_state-"))
                identity.own(path)
        return path
    raise PermissionError(f"no short directory for sockets that user {identity.user_id} can write")


def remove_sockets(directory: Path) -> None:
    """Removes what `make_socket_directory` made, and what a killed server left in it."""
    with contextlib.suppress(OSError):
        for socket in directory.glob(".s.PGSQL.*"):
            socket.unlink(missing_ok=True)
        directory.rmdir()
