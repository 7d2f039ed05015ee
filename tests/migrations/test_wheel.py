"""What a user installs: a wheel built from the source distribution, outside the checkout, with its migrations."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOW = """
import asyncio, sys
import cascade_state
from cascade_state import FlowDefinition, FlowInstance, StepDefinition, open_store

async def main(url):
    async with open_store(url) as store:
        await store.migrate()
        await store.check_schema()
        charge = StepDefinition(step_id="charge", component_type="http")
        order = FlowDefinition(flow_id="order", name="Order", steps=(charge,))
        order = await store.flow_definitions.deploy(order)
        flow = await store.advance(FlowInstance.create(order, trigger_data={"sku": "A-7"}).start())
        flow = await store.advance(flow.complete_step("charge", {"receipt": "r-1"}).complete())
        print(cascade_state.__file__)
        print((await store.flow_instances.get(flow.flow_instance_id)).status)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    # Without isolation: the build back end is in the environment of the tests, nothing is fetched.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, and with the dependencies of this one; not with this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (wheel,) = distributions.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel), cwd=folder)
    packages = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A path entry, whose own .pth files are not read: an editable install of the checkout stays invisible.
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def run(*command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


MIGRATIONS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "migrations").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


@pytest.mark.timeout(180)
def test_wheel_and_source_distribution_carry_the_migrations(distributions: Path) -> None:
    (wheel,), (source,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(source) as archive_of_source:
        in_source = {name.partition("/")[2] for name in archive_of_source.getnames()}
    assert len(MIGRATIONS) >= 7
    assert in_wheel >= {f"cascade_state/{name}" for name in (*MIGRATIONS, "alembic.ini")}
    assert in_source >= {*MIGRATIONS, "alembic.ini"}
    assert "cascade_state/py.typed" in in_wheel


@pytest.mark.postgres
@pytest.mark.timeout(180)
def test_a_flow_runs_on_the_installed_wheel(installed: Path, tmp_path: Path, empty_database_url: str) -> None:
    where, status = run(str(installed), "-c", FLOW, empty_database_url, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(installed.parent.parent)
    assert status == "COMPLETED"


@pytest.mark.postgres
@pytest.mark.timeout(180)
def test_the_installed_command_migrates_and_checks(installed: Path, tmp_path: Path, empty_database_url: str) -> None:
    command = str(installed.parent / "cascade-state")
    run(command, "migrate", "--url", empty_database_url, "--schema", "flows", cwd=tmp_path)
    run(command, "check", "--url", empty_database_url, "--schema", "flows", cwd=tmp_path)
