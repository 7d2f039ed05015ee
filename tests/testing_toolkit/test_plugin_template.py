"""The plugin's template: made once for each state of its files, by whoever comes first, and never half."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from cascade_state.errors import InvalidArgument
from cascade_state.testing import PostgresServer
from tests.testing_toolkit.foreign_project import ForeignProject

# Some run pytest several times; the default is for a single honest test.
pytestmark = [pytest.mark.postgres, pytest.mark.timeout(180)]

TESTS = """
import os

import pytest
from sqlalchemy import text


@pytest.mark.parametrize("number", range(8))
async def test_rows(async_engine, number):
    async with async_engine.begin() as connection:
        assert (await connection.scalars(text("SELECT name FROM colour"))).all() == SEEDED
        await connection.execute(text("INSERT INTO colour VALUES ('mine')"))


SEEDED = os.environ.get("SEEDED", "").split()
"""

SEEDS = """
import asyncio

from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

SQL = text("INSERT INTO colour VALUES ('seeded')")


async def seed(url):
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.execute(SQL)
    await engine.dispose()


def seed_blocking(url):
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(SQL)


def make(url):
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE colour (name text)"))


not_callable = 7
"""


def test_the_workers_of_a_run_share_a_server_and_migrate_once(project: ForeignProject) -> None:
    project.write("test_rows.py", TESTS)
    code, output = project.run("-n", "4")
    assert code == 0, output
    assert "8 passed" in output
    assert project.migrations == 1
    assert output.count("cascade_state: PostgreSQL 18") == 2  # in the header and at the first use


def test_a_template_is_made_for_each_state_of_its_files_and_found_by_later_sessions(
    server: PostgresServer, project: ForeignProject
) -> None:
    project.write("test_rows.py", TESTS)

    def run(**environment: str) -> None:
        code, output = project.run(f"--postgres-url={server.url}", "-k", "0", **environment)
        assert code == 0, output

    run()
    assert project.migrations == 1
    assert len(project.templates(server)) == 1
    project.write("migrations/versions/0002.py", "revision = '0002'\ndown_revision = '0001'\ndef upgrade(): ...\n")
    run()
    assert project.migrations == 2
    project.write("seeds.py", SEEDS)
    project.configure("cascade_state_setup = seeds:seed", "cascade_state_template_files =", "    data/*.txt")
    project.write("data/a.txt", "a")
    run(SEEDED="seeded")
    run(SEEDED="seeded")
    assert project.migrations == 3
    project.write("data/b.txt", "b")
    run(SEEDED="seeded")
    assert project.migrations == 4
    assert len(project.templates(server)) == 4


def test_a_blocking_set_up_fills_the_template_and_needs_no_alembic(
    server: PostgresServer, project: ForeignProject
) -> None:
    project.write("test_rows.py", TESTS)
    project.write("seeds.py", SEEDS)
    project.configure("cascade_state_setup = seeds:seed_blocking")
    code, output = project.run(f"--postgres-url={server.url}", "-k", "0", SEEDED="seeded")
    assert code == 0, output
    (project.directory / "alembic.ini").unlink()
    project.configure("cascade_state_setup = seeds:make")
    code, output = project.run(f"--postgres-url={server.url}", "-k", "0")
    assert code == 0, output
    assert "template: seeds:make" in output
    assert project.migrations == 1


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (("cascade_state_setup = seeds",), "'seeds' must be package.module:function"),
        (("cascade_state_setup = no.such:thing",), "'no.such' was not found"),
        (("cascade_state_setup = seeds:nothing",), "'seeds:nothing' was not found"),
        (("cascade_state_setup = seeds:not_callable",), "cannot be called"),
        (("cascade_state_template_files = no/such*",), "nothing is at 'no/such*'"),
        (("cascade_state_alembic_ini = other.ini",), "no such Alembic configuration"),
    ],
)
def test_a_wrong_setting_is_said(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], complaint: str
) -> None:
    from cascade_state.testing.pytest_plugin.options import Options
    from cascade_state.testing.pytest_plugin.template import Recipe

    (tmp_path / "seeds.py").write_text("not_callable = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    name, _, setting = lines[0].partition(" = ")
    options = Options(
        url=None,
        version=None,
        required=False,
        keep="failed",
        configuration=tmp_path / setting if name == "cascade_state_alembic_ini" else None,
        setup=setting if name == "cascade_state_setup" else None,
        files=(setting,) if name == "cascade_state_template_files" else (),
        leak_check=True,
        root=tmp_path,
    )
    recipe = Recipe(options=options, server_version=server.version)

    async def build(url: str) -> None:
        recipe.build(url)

    with pytest.raises(InvalidArgument, match=re.escape(complaint)):
        server.blocking.ensure_template_exists(recipe.template, build)


def test_a_migration_that_fails_is_shown_and_leaves_nothing(server: PostgresServer, project: ForeignProject) -> None:
    project.write("test_rows.py", TESTS)
    revision = project.directory / "migrations/versions/0001_colour.py"
    good = revision.read_text()
    revision.write_text(f"{good}\n    raise ZeroDivisionError('no such luck')\n")
    code, output = project.run(f"--postgres-url={server.url}", "-k", "0 or 1")
    assert code == 1
    assert "2 errors" in output
    assert "ZeroDivisionError: no such luck" in output
    assert project.migrations == 1  # the second test met the same error, not another attempt
    assert not project.templates(server)
    revision.write_text(good)
    code, output = project.run(f"--postgres-url={server.url}", "-k", "0 or 1")
    assert code == 0, output


def test_an_environment_that_migrates_another_database_is_found_out(
    server: PostgresServer, project: ForeignProject
) -> None:
    project.write("test_rows.py", TESTS)
    environment = project.directory / "migrations/env.py"
    with server.blocking.temporary_database() as elsewhere:
        url = elsewhere.async_url.replace("%", "%%")
        line = f"config.set_main_option('sqlalchemy.url', {url!r})"
        environment.write_text(
            environment.read_text().replace("config = context.config", f"config = context.config\n{line}")
        )
        code, output = project.run(f"--postgres-url={server.url}", "-k", "0")
        assert code == 1
        assert "env.py must take its address from sqlalchemy.url" in output
        assert not project.templates(server)


def test_a_template_that_somebody_drops_meanwhile_is_made_again(
    server: PostgresServer, project: ForeignProject
) -> None:
    project.write(
        "test_rows.py",
        TESTS.replace(
            "async def test_rows(async_engine, number):",
            "async def test_rows(async_engine, postgres_server, template_database, number):\n"
            "    if number == 0:\n"
            "        await postgres_server.drop_database(template_database)",
        ),
    )
    code, output = project.run(f"--postgres-url={server.url}")
    assert code == 0, output
    assert project.migrations == 2


def test_what_a_killed_run_had_is_made_anew_by_the_next(server: PostgresServer, project: ForeignProject) -> None:
    project.write(
        "test_killed.py",
        """
        import os
        import signal


        async def test_dies(async_session):
            if os.environ.get("DIE"):
                os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    code, _ = project.run(f"--postgres-url={server.url}", DIE="yes")
    assert code == -signal.SIGKILL
    code, output = project.run(f"--postgres-url={server.url}")
    assert code == 0, output
    assert project.migrations == 1


def test_a_server_on_which_databases_were_kept_waits_for_the_next_run(project: ForeignProject) -> None:
    project.write("test_failing.py", "def test_fails(test_database):\n    assert False\n")

    def kept_by(*options: str) -> Path:
        code, output = project.run(*options)
        assert code == 1, output
        (url,) = re.findall(r"^    (postgresql://\S+)$", output, flags=re.MULTILINE)
        assert "and their server" in output
        sockets = Path(re.findall(r"host=([^&]+)", url)[0])
        assert (sockets / ".s.PGSQL.5432").exists()
        return sockets

    by_one = kept_by()
    by_workers = kept_by("-n", "2")
    assert not by_one.exists()
    code, output = project.run("--keep-databases=none")
    assert code == 1, output
    assert "test databases kept" not in output
    assert not by_workers.exists()


def test_the_project_may_be_configured_in_pyproject_only(server: PostgresServer, project: ForeignProject) -> None:
    project.write("test_rows.py", TESTS)
    (project.directory / "alembic.ini").unlink()
    project.write("pyproject.toml", '[tool.alembic]\nscript_location = "%(here)s/migrations"\n')
    code, output = project.run(f"--postgres-url={server.url}", "-k", "0")
    assert code == 0, output
    assert project.migrations == 1
    assert "template: pyproject.toml" in output
