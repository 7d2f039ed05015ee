"""Clients that other people wrote run a full cycle, unmodified; skipped, and said so, where they cannot be had."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cascade_state.testing import DatabaseConfig
from cascade_state.testing.blocking import run_blocking
from tests.docs.pages import DOCS, blocks
from tests.integresql.facade import ROOT, WAIT, Facade, execute, facade_process, fetch, filled
from tests.integresql.foreign_clients import node_client, python_client

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(120)]  # the first run installs them

PAGE = DOCS / "how-to" / "other-languages.md"
NAMES = "SELECT name FROM pilot ORDER BY name"


@pytest.fixture(scope="module")
def facade() -> Iterator[Facade]:
    # With addresses as clients in other languages need them: host, port, password.
    with facade_process("--embedded", "--initial-pool-size", "1") as started:
        yield started


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    directory = tmp_path / "migrations"
    directory.mkdir()
    (directory / "1.sql").write_text(f"CREATE TABLE pilot (name text); -- {tmp_path}")
    return directory


def test_the_python_client_runs_a_full_cycle(facade: Facade, migrations: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integresql.foreign_python", f"{facade.url}/api", str(migrations)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{python_client()}", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_node_client_runs_a_full_cycle(facade: Facade, migrations: Path) -> None:
    installed = node_client()
    script = Path(__file__).with_name("foreign_node.mjs")
    # Its globs are relative to where it runs.
    process = subprocess.Popen(
        ["node", str(script), str(installed), facade.url, "migrations/*.sql"],
        cwd=migrations.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asked = []
    for line in process.stdout:
        question = json.loads(line)
        asked.append(question["what"])
        address = DatabaseConfig.from_json(question["config"])
        assert question["url"] == address
        print(json.dumps(_answer(question["what"], address)), file=process.stdin, flush=True)
    _, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 0, errors
    assert asked == ["migrate", "change", "look", "look"]


def test_the_example_of_the_page_runs(facade: Facade, migrations: Path) -> None:
    (example,) = (block.text for block in blocks(PAGE) if block.language == "javascript")
    directory = migrations.parent
    (directory / "node_modules").symlink_to(node_client() / "node_modules")
    (directory / "example.mjs").write_text(example.replace("http://127.0.0.1:5000", facade.url))
    (directory / "your-code.mjs").write_text(
        "export const migrate = async (url) => console.log('migrate', url)\n"
        "export const runTest = async (url) => console.log('test', url)\n"
    )
    done = subprocess.run(
        ["node", "example.mjs"], cwd=directory, capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"migrate postgresql://\S+/integresql_template_\w+\ntest postgresql://\S+/integresql_test_\w+\n", done.stdout
    )


def _answer(what: str, url: str) -> list[str]:
    if what == "migrate":
        run_blocking(filled(url))
        return []
    found = run_blocking(fetch(url, NAMES))
    if what == "change":
        run_blocking(execute(url, "INSERT INTO pilot VALUES ('Luigi')"))
    return found
