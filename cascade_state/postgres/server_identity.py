"""Which operating-system user a server runs as, and what that user can reach.

PostgreSQL refuses to run as root, so root hands its servers to another user. That user often cannot enter the
directory root works in (a home directory, a checkout under one). Two devices help without loosening anybody's
permissions: a data directory out of reach is entered by root first and named `/proc/self/cwd` to the server,
    and
programs out of reach are copied once to a place that everybody can read. For the rooms that start servers.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_state.postgres.binaries import Installation

__all__ = ["ServerIdentity", "data_directory_argument", "identity_for", "reachable_installation"]

# The first that exists: PostgreSQL's own account, the wheel's, and the account that every Unix has.
_CANDIDATES = ("postgres", "pgserver", "nobody")
_COPY_PARENTS = ("/var/cache", "/var/tmp", "/tmp")  # noqa: S108 - see _only_root_writes


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """A user and group; `changes_user` says that this process must step down to it."""

    user_id: int
    group_id: int
    changes_user: bool

    def subprocess_options(self) -> dict[str, Any]:
        """Returns the arguments that make `subprocess` start a program as this user."""
        if not self.changes_user:
            return {}
        return {"user": self.user_id, "group": self.group_id, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Gives the path to this user."""
        if self.changes_user:
            os.chown(path, self.user_id, self.group_id)

    def can_enter(self, directory: Path) -> bool:
        """Tells whether permission bits let this user reach the directory through all of its parents."""
        if not self.changes_user:
            return True
        resolved = directory.resolve()
        return all(self._has(path.stat(), stat.S_IXUSR) for path in (resolved, *resolved.parents))

    def can_write(self, directory: Path) -> bool:
        """Tells whether permission bits let this user make files in the directory."""
        if not self.changes_user:
            return os.access(directory, os.W_OK | os.X_OK)
        return self.can_enter(directory) and self._has(directory.stat(), stat.S_IWUSR)

    def can_run(self, program: Path) -> bool:
        """Tells whether permission bits let this user run the program."""
        return self.can_enter(program.parent) and (not self.changes_user or self._has(program.stat(), stat.S_IXUSR))

    def _has(self, facts: os.stat_result, user_bit: int) -> bool:
        if facts.st_uid == self.user_id:
            return bool(facts.st_mode & user_bit)
        if facts.st_gid == self.group_id:
            return bool(facts.st_mode & (user_bit >> 3))
        return bool(facts.st_mode & (user_bit >> 6))


def identity_for(data_directory: Path) -> ServerIdentity:
    """Returns the user that a server on this data directory runs as.

    Not root: this process's user. Root: the owner of the data directory when it has one that is not root,
    else the first of postgres, pgserver and nobody that exists.

    Raises:
        LookupError: Root, and none of these accounts exists.
    """
    if os.geteuid() != 0:
        return ServerIdentity(user_id=os.geteuid(), group_id=os.getegid(), changes_user=False)
    if data_directory.exists() and (facts := data_directory.stat()).st_uid != 0:
        return ServerIdentity(user_id=facts.st_uid, group_id=facts.st_gid, changes_user=True)
    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return ServerIdentity(user_id=entry.pw_uid, group_id=entry.pw_gid, changes_user=True)
    raise LookupError(f"PostgreSQL does not run as root, and none of the users {', '.join(_CANDIDATES)} exists")


def data_directory_argument(data_directory: Path, identity: ServerIdentity) -> str:
    """Returns the name under which the server can open its data directory, given that it starts inside of it.

    Raises:
        PermissionError: The server's user cannot reach the directory, and this system has no `/proc`.
    """
    if identity.can_enter(data_directory):
        return str(data_directory)
    if sys.platform == "linux":
        # Root has changed into the directory before stepping down; this link names it without walking its
        # parents.
        return "/proc/self/cwd"
    raise PermissionError(f"user {identity.user_id} may not enter {data_directory}; choose a directory it can reach")


def reachable_installation(installation: Installation, identity: ServerIdentity) -> Installation:
    """Returns the installation, or a copy of it that the server's user can run.

    The copy belongs to root, nobody else can write it, and it is made once for each installation.

    Raises:
        PermissionError: No place for the copy could be found.
    """
    programs = (installation.postgres, installation.initdb)
    if all(identity.can_run(program) for program in programs):
        return installation
    facts = installation.postgres.stat()
    fingerprint = f"{installation.postgres.resolve()}:{facts.st_size}:{facts.st_mtime_ns}"
    name = f"postgresql-{installation.version}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:12]}"
    for parent in map(Path, _COPY_PARENTS):
        if not (parent.is_dir() and identity.can_enter(parent) and os.access(parent, os.W_OK)):
            continue
        target = parent / "cascade_state" / name
        if _only_root_writes(target) or _copy_installation(installation, target):
            copied = target.joinpath(*installation.bin_directory.parts[-3:])
            copy = Installation(version=installation.version, bin_directory=copied)
            if all(identity.can_run(program) for program in (copy.postgres, copy.initdb)):
                return copy
    raise PermissionError(f"user {identity.user_id} may not run {installation.postgres}, and no copy could be made")


def _only_root_writes(target: Path) -> bool:
    """Tells whether target and its parent are real directories of root: nobody slipped another program in."""
    for directory in (target.parent, target):
        try:
            facts = directory.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            return False
    return True


def _copy_installation(installation: Installation, target: Path) -> bool:
    """Copies programs, libraries and shared files: whole or not at all, even when two do it at once."""
    source = installation.bin_directory.parent
    package = source.parent
    pieces = [source / name for name in ("bin", "lib", "share")]
    # A wheel's repaired libraries lie beside its package (Linux) or in it (macOS), and are found by relative
    # path.
    pieces += [package.with_name(f"{package.name}.libs"), package / ".dylibs"]
    try:
        if not target.parent.exists():
            target.parent.mkdir()
            target.parent.chmod(0o755)  # whatever the umask is
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    except OSError:
        return False
    try:
        for piece in filter(Path.is_dir, pieces):
            copied = scratch / piece.relative_to(package.parent)
            shutil.copytree(piece, copied, ignore=shutil.ignore_patterns("*.a", "pgxs"))
        for path in (scratch, *scratch.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.parent.name == "bin" or ".so" in path.name
                path.chmod(0o755 if executable else 0o644)
        scratch.rename(target)
    except OSError:
        return _only_root_writes(target)  # somebody else's copy arrived first
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _only_root_writes(target)
