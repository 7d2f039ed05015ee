"""The same test under pytest-postgresql: in an environment of its own, for it is no dependency of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from benchmarks.databases.ways import NOTE
from cascade_state.postgres.schema import dump_schema

__all__ = ["PytestPostgresql"]

_REQUIREMENTS = ("pytest-postgresql==10.0.0", "psycopg[binary]>=3.2", "pytest>=8.4")
_PYTHON = Path(__file__).resolve().parents[2] / ".venvs" / "pytest-postgresql" / "bin" / "python"

_CONFTEST = """
import json, time
from pathlib import Path
from pytest_postgresql import factories

server = factories.postgresql_noproc(
    host={host!r}, port={port}, user={user!r}, password="", dbname={name!r}, load=[Path({schema!r})]
)
postgresql = factories.postgresql("server")
marks = []

def pytest_runtest_logstart(nodeid, location):
    marks.append(time.perf_counter())

def pytest_sessionfinish():
    marks.append(time.perf_counter())
    Path({result!r}).write_text(json.dumps([after - before for before, after in zip(marks, marks[1:])]))
"""

_TESTS = """
import time
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_one(postgresql, number):
    with postgresql.cursor() as cursor:
        cursor.execute("INSERT INTO note (text) VALUES ('one')")
        cursor.execute("SELECT count(*) FROM note")
        assert cursor.fetchone() == (1,)
    postgresql.commit()
    time.sleep({pause})
"""


class PytestPostgresql:
    """Runs its tests against a server that is there; `problem` tells why it cannot.

    `python` is that of an environment that has it; without, one is made.
    """

    def __init__(self, url: str, directory: Path, *, python: Path | None = None, name: str = "bench_pp") -> None:
        self._url = url
        self._directory = directory
        self._name = name
        self._python = python or _PYTHON
        self.problem = self._install() if python is None else None
        self._schema = directory / "schema.sql"
        self._schema.write_text(f"{dump_schema()}\n{NOTE};\n")

    def run(self, count: int, pause: float) -> list[float]:
        """Returns the seconds of each test with its set-up and tear-down, without the first, which makes a template."""
        parts = urlsplit(self._url)
        query = parse_qs(parts.query)
        result = self._directory / "result.json"
        conftest = _CONFTEST.format(
            host=query.get("host", [parts.hostname or "localhost"])[0],
            port=query.get("port", [str(parts.port or 5432)])[0],
            user=parts.username,
            name=self._name,
            schema=str(self._schema),
            result=str(result),
        )
        (self._directory / "conftest.py").write_text(conftest)
        (self._directory / "test_it.py").write_text(_TESTS.format(count=count + 1, pause=pause))
        done = subprocess.run(
            [str(self._python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"],
            cwd=self._directory,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        seconds: list[float] = json.loads(result.read_text())
        return seconds[1:]

    def _install(self) -> str | None:
        if not self._python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(self._python.parents[1])], check=True, timeout=120)
        done = subprocess.run(
            [str(self._python), "-m", "pip", "-qq", "--disable-pip-version-check", "install", *_REQUIREMENTS],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return None if done.returncode == 0 else "it could not be installed"
