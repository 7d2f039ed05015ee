"""Where the throw-away servers of test runs live, and which of them is this run's.

The processes of a test run (the workers of pytest-xdist) agree upon a directory without talking to each other: its
name is made of the run's id and what was asked for. A directory whose users are all gone is swept by the next start,
except for one in which databases of failed tests were kept: that one waits for its project's next run, or an hour.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["choose_directory", "directories", "kept_for", "mark_kept", "new_directory", "worker_run_id"]

PREFIX = "cascade_state-test-"
_TMPFS = Path("/dev/shm")  # noqa: S108 - names there are random, and each server's data is its own
_TMPFS_ROOM = 512 * 1024 * 1024  # bytes; containers often get 64 MB, which a handful of databases fill
_MARK = "kept.json"
_KEPT_SECONDS = 3600.0


def worker_run_id() -> str | None:
    """Returns the id of the test run that this process is a pytest-xdist worker of."""
    return os.environ.get("PYTEST_XDIST_TESTRUNUID")


def choose_directory(choice: str, run_id: str | None) -> Path:
    """Returns the directory of this run's server; a new one for a process by itself.

    Args:
        choice: Which server was asked for: the runs of different choices do not meet.
        run_id: What the processes of the run have in common; None for a process by itself.
    """
    if run_id is None:
        return new_directory()
    digest = hashlib.sha256(f"{os.geteuid()}:{choice}:{run_id}".encode()).hexdigest()[:16]
    # Whoever was first chose the place; the room there may have shrunk below the limit since.
    for parent in (_TMPFS, Path(tempfile.gettempdir())):
        if (parent / f"{PREFIX}{digest}").is_dir():
            return parent / f"{PREFIX}{digest}"
    return _parent_directory() / f"{PREFIX}{digest}"


def new_directory() -> Path:
    """Returns a directory that is nobody's yet."""
    return _parent_directory() / f"{PREFIX}{secrets.token_hex(8)}"


def directories(own: Path) -> Iterator[Path]:
    """Yields the directories of other test runs on this machine, live and abandoned ones."""
    for parent in {_TMPFS, Path(tempfile.gettempdir()), own.parent}:
        for directory in parent.glob(f"{PREFIX}*"):
            if directory != own:
                yield directory


def mark_kept(directory: Path, project: Path) -> None:
    """Says that databases in the directory are meant to outlive the run."""
    (directory / _MARK).write_text(json.dumps({"project": str(project)}))


def kept_for(directory: Path) -> str | None:
    """Returns the project for which databases in the directory are still kept."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        mark = directory / _MARK
        if time.time() - mark.stat().st_mtime < _KEPT_SECONDS:
            return str(json.loads(mark.read_text())["project"])
    return None


def _parent_directory() -> Path:
    if _TMPFS.is_dir() and os.access(_TMPFS, os.W_OK) and shutil.disk_usage(_TMPFS).free >= _TMPFS_ROOM:
        return _TMPFS
    return Path(tempfile.gettempdir())
