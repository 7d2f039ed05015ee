"""Runs the tests on everything supported that this machine has. Run by `make matrix`.

Cells: PostgreSQL 16, the oldest and the newest SQLAlchemy 2.0, and each other supported Python that works
here. Every cell runs, then a table says which passed. A Python that is not installed is named, not failed.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ((3, 11), (3, 12), (3, 13))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of the tests: an environment and what is special about it."""

    name: str
    python: str = sys.executable
    requirements: tuple[str, ...] = ()
    postgres_version: str = "18"

    @property
    def directory(self) -> Path:
        """Where its environment lies; the usual one serves when nothing but the server differs."""
        own = self.requirements or self.python != sys.executable
        return ROOT / ".venvs" / re.sub(r"[^\w.]+", "-", self.name.lower()) if own else Path(sys.prefix)


def find_python(version: tuple[int, int]) -> str | None:
    """Return a working interpreter of that version, from PATH or from pyenv's folder."""
    number = f"{version[0]}.{version[1]}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    in_pyenv = sorted(pyenv.glob(f"{number}.*/bin/python"), reverse=True)
    for candidate in [f"python{number}", *map(str, in_pyenv)]:
        found = subprocess.run(
            [ROOT / "scripts" / "find-python"],
            env={**os.environ, "PYTHON": candidate},
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode == 0:
            return found.stdout.strip()
    return None


def cells(oldest_sqlalchemy: str) -> Iterator[Cell]:
    """Yield the runs to make; print the Pythons that are missing."""
    yield Cell(name="PostgreSQL 16", postgres_version="16")
    yield Cell(name=f"SQLAlchemy {oldest_sqlalchemy}", requirements=(f"sqlalchemy=={oldest_sqlalchemy}",))
    yield Cell(name="SQLAlchemy 2.0 newest", requirements=("sqlalchemy==2.0.*",))
    for version in PYTHONS:
        name = f"Python {version[0]}.{version[1]}"
        if version == sys.version_info[:2]:
            continue
        if python := find_python(version):
            yield Cell(name=name, python=python)
        else:
            print(f"{name} is not installed here.")


def run(cell: Cell, pytest: Sequence[str]) -> bool:
    """Make the cell's environment if it needs one, run the tests there, and say whether they passed."""
    print(f"\n{cell.name}", flush=True)
    if cell.directory != Path(sys.prefix):
        script = str(ROOT / "scripts" / "make-environment")
        command = [script, str(cell.directory), cell.python, *cell.requirements]
        if subprocess.run(command, check=False).returncode:
            return False
    environment = {**os.environ, "CASCADE_TEST_POSTGRES": cell.postgres_version}
    python = cell.directory / "bin" / "python"
    return subprocess.run([python, *pytest], cwd=ROOT, env=environment, check=False).returncode == 0


def main() -> int:
    """Run every cell, print the table, and fail if one failed."""
    oldest_sqlalchemy, _, *pytest = sys.argv[1:]
    outcomes = {cell.name: run(cell, pytest) for cell in cells(oldest_sqlalchemy)}
    print()
    for name, passed in outcomes.items():
        print(f"{'passed' if passed else 'FAILED'}  {name}")
    return not all(outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
