"""Runs pytest in other directories, each time in a process forked from one that has imported what takes long.

Only what is neither a pytest plugin nor ours is imported ahead: the run finds pytest, the plugin and the project as a
fresh interpreter would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["PytestServer"]

ROOT = Path(__file__).resolve().parents[2]
WAIT = 120.0

# Plugins of this suite that say nothing about ours. pytest rewrites what it loads: without them a run starts in half
# the time, and so does each of its workers.
UNCONCERNED = ("anyio", "cacheprovider", "hypothesispytest", "pytest_alembic", "randomly")

SERVER = """
import gc, json, os, runpy, sys
import pytest, unittest.mock
import alembic.command, alembic.config, alembic.script, asyncpg, psycopg
import sqlalchemy.dialects.postgresql.asyncpg, sqlalchemy.dialects.postgresql.psycopg, sqlalchemy.ext.asyncio, sqlalchemy.orm

runpy.run_path("tests/coverage_threads.py")["look_packages_up_once"]()
gc.freeze()  # pytest collects garbage ten times in each run, and need not look through all of this
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(job["directory"])
        os.environ.clear()
        os.environ.update(job["environment"])
        output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, job["directory"])
        sys.exit(pytest.main(job["arguments"]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, flush=True)
"""  # noqa: E501


class PytestServer:
    """The process that is forked from; `run` is one run of pytest."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def run(self, directory: Path, *arguments: str, **environment: str) -> tuple[int, str]:
        """Runs pytest in the directory, in the environment of a fresh terminal; returns exit code and output."""
        clean = {name: text for name, text in os.environ.items() if not name.startswith(("CASCADE_", "PYTEST_"))}
        with tempfile.NamedTemporaryFile() as output:
            job = {
                "directory": str(directory),
                "arguments": [*(f"-pno:{name}" for name in UNCONCERNED), *arguments],
                "environment": clean | environment,
                "output": output.name,
            }
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return code, Path(output.name).read_text(errors="replace")

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate(timeout=WAIT)
