"""What a data directory says about the server on it, and whether that is true.

A server writes `postmaster.pid` into its data directory. After a crash the file stays and its process id may
have gone to somebody else, or to a zombie that nobody reaps. For the rooms that start servers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Postmaster", "adopt_child", "forget_stale_file", "is_alive", "last_postmaster", "read_postmaster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Postmaster:
    """The facts of `postmaster.pid`; `status` is ready, starting, stopping or standby."""

    process_id: int
    port: int
    socket_directory: str
    status: str


# Servers started by this process are its children: only it can reap them, whoever stops them. The key holds
# the parent's id too, because a forked child of this process inherits the table but not the children.
_children: dict[tuple[int, int], subprocess.Popen[bytes]] = {}


def adopt_child(child: subprocess.Popen[bytes]) -> None:
    """Remembers a server that this process started, so that `is_alive` can reap it."""
    _children[os.getpid(), child.pid] = child


def read_postmaster(data_directory: Path) -> Postmaster | None:
    """Returns the facts of the server that lives on this directory; None when there is none."""
    postmaster = last_postmaster(data_directory)
    if postmaster is None or not is_alive(postmaster.process_id, data_directory):
        return None
    return postmaster


def last_postmaster(data_directory: Path) -> Postmaster | None:
    """Returns the facts of the server that runs here or was killed here; None when the last one ended."""
    try:
        lines = (data_directory / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    try:
        return Postmaster(
            process_id=abs(int(lines[0])),
            port=int(lines[3]),
            socket_directory=lines[4].strip(),
            status=lines[7].strip() if len(lines) > 7 else "starting",
        )
    except (IndexError, ValueError):  # read while it was being written
        return None


def is_alive(process_id: int, data_directory: Path) -> bool:
    """Tells whether the process runs (a zombie does not) and works in this data directory."""
    child = _children.get((os.getpid(), process_id))
    if child is not None:
        if child.poll() is None:
            return True
        del _children[os.getpid(), process_id]
        return False
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _is_running_in(process_id, data_directory)


def forget_stale_file(data_directory: Path) -> bool:
    """Removes the file of a server that is gone; tells whether there was one.

    The server would do so itself, but for a zombie or a reused process id. Removing it is safe here: the
    caller holds the lock under which servers start, and a server looks for orphans of the former one in
    shared memory as well.
    """
    postmaster = last_postmaster(data_directory)
    if postmaster is not None and is_alive(postmaster.process_id, data_directory):
        return False
    try:
        (data_directory / "postmaster.pid").unlink()
    except FileNotFoundError:
        return False
    return True


def _is_running_in(process_id: int, data_directory: Path) -> bool:
    if sys.platform == "linux":
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
            return state not in "ZX" and os.path.samefile(f"/proc/{process_id}/cwd", data_directory)
        except (FileNotFoundError, ProcessLookupError):
            return False
        except PermissionError:
            return True
    answer = subprocess.run(  # noqa: S603 - the only input is a number
        ["/bin/ps", "-o", "stat=,command=", "-p", str(process_id)],
        capture_output=True,
        text=True,
        check=False,
    )
    return bool(answer.stdout) and not answer.stdout.startswith("Z") and "postgres" in answer.stdout
