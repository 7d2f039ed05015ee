"""Locks between processes that the kernel releases when their holder dies, however it dies.

A lock is a file under `flock`. It survives neither a crash nor `kill -9` of its holder, so nobody ever has to
guess from a list of process ids who is still there. Children do not inherit it. For the rooms that start
servers.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

__all__ = ["USERS_LOCK", "FileLock"]

# Whoever holds this one in a server's directory, shared, uses that server.
USERS_LOCK = "users.lock"

_POLL_SECONDS = 0.005  # a start or stop that somebody waits for takes hundreds of milliseconds


class FileLock:
    """One holder's view of a lock file; each object counts as a holder of its own, also within a process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        _locks.add(self)

    @property
    def held(self) -> bool:
        """True between a successful `acquire` and `release`; False in a forked child."""
        return self._descriptor is not None

    def acquire(self, *, shared: bool = False, timeout: float | None = None, create: bool = True) -> bool:
        """Takes the lock and returns True, or False when it was not free in time.

        Args:
            shared: Together with other shared holders, against exclusive ones.
            timeout: Seconds; 0 does not wait, None waits for ever.
            create: Makes the file and its directory when missing; else a missing file counts as not free.
        """
        if self.held:
            raise RuntimeError(f"{self.path} is held already")
        deadline = None if timeout is None else time.monotonic() + timeout
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        while True:
            descriptor = self._open(create)
            if descriptor is None:
                return False
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError:
                os.close(descriptor)
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL_SECONDS)
                continue
            if self._is_current(descriptor):
                self._descriptor = descriptor
                return True
            os.close(descriptor)  # the last holder removed the file; there may be a new one

    def release(self) -> None:
        """Gives the lock up; does nothing when it is not held."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            # Said aloud because a child that was forked but has not run its hook yet still shares the
            # descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _open(self, create: bool) -> int | None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        while True:
            try:
                return os.open(self.path, flags, 0o600)
            except FileNotFoundError:
                if not create:
                    return None
                self.path.parent.mkdir(parents=True, exist_ok=True)

    def _is_current(self, descriptor: int) -> bool:
        """Tells whether the path still names the file that was locked."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)

    def _forget(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    # Closing without unlocking: the lock belongs to the parent, and must not outlive it through the child.
    for lock in list(_locks):
        lock._forget()


os.register_at_fork(after_in_child=_forget_in_child)
