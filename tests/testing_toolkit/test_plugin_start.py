"""What the plugin costs a suite that does not use it: next to nothing, and no line of coverage."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cascade_state.testing import PostgresServer
from tests.testing_toolkit.foreign_project import ForeignProject

ROOT = Path(__file__).resolve().parents[2]
WAIT = 60.0

HEAVY = (
    "alembic",
    "asyncpg",
    "cascade_state.abc",
    "cascade_state.model",
    "cascade_state.postgres",
    "psycopg",
    "sqlalchemy",
)


def import_times(*modules: str) -> dict[str, int]:
    """The cumulated microseconds of the modules, imported one after the other by a fresh interpreter."""
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {', '.join(modules)}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=WAIT,
    )
    found = re.findall(r"^import time: +\d+ \| +(\d+) \| (\S+)$", answer.stderr, flags=re.MULTILINE)
    return {module: int(microseconds) for microseconds, module in found}


def test_the_plugin_is_light() -> None:
    code = (
        f"import sys, cascade_state.testing.pytest_plugin\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=WAIT)
    assert answer.stdout.strip() == ""


def test_importing_it_costs_a_fraction_of_importing_pytest() -> None:
    # What pytest-asyncio costs is not the plugin's doing: it is there, and loaded, or it is not imported.
    plugin = "cascade_state.testing.pytest_plugin"
    shares = []
    for _ in range(3):
        times = import_times("pytest", "pytest_asyncio", plugin)
        shares.append(times[plugin] / times["pytest"])
    assert min(shares) < 0.35  # pytest itself takes a tenth of a second, so this is far below 150 ms


@pytest.mark.postgres
@pytest.mark.timeout(180)
def test_coverage_is_measured_as_without_it(server: PostgresServer, project: ForeignProject) -> None:
    project.write(
        "test_paint.py",
        """
        from paint.models import Colour, shout


        async def test_paint(async_session):
            async_session.add(Colour(name=shout("red")))
            await async_session.commit()
        """,
    )
    project.configure("cascade_state_setup = paint.seeds:seed")
    project.write("paint/seeds.py", "from paint.models import Colour\n\n\nasync def seed(url):\n    assert Colour\n")
    options = ("--cov=paint", "--cov-report=term-missing", f"--postgres-url={server.url}")
    code, output = project.run(*options)
    assert code == 0, output
    assert re.search(r"^paint/models.py +\d+ +0 +100%", output, flags=re.MULTILINE), output
    assert re.search(r"^paint/seeds.py +\d+ +0 +100%", output, flags=re.MULTILINE), output
