"""A project of somebody else: SQLAlchemy, Alembic as its own templates make it, and no word about flows."""

from __future__ import annotations

import contextlib
import io
import json
import textwrap
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config

from cascade_state.testing import PostgresServer
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.connections import connect
from tests.testing_toolkit.pytest_server import PytestServer

__all__ = ["ForeignProject"]

REVISION = '''
"""Colours."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.create_table("colour", sa.Column("name", sa.Text, primary_key=True))
    with (Path(__file__).parents[2] / "migrated.log").open("a") as log:
        log.write("0001\\n")
'''

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Colour(Base):
    __tablename__ = "colour"

    name: Mapped[str] = mapped_column(primary_key=True)


def shout(name):
    return name.upper()
"""


class ForeignProject:
    """A directory with `alembic.ini`, `migrations/`, `paint/models.py`, `pytest.ini`, and tests to be added.

    Args:
        pytest_server: Runs its tests.
        directory: Where.
        mark: Goes into the migration, so that two projects do not share a template.
        template: The kind of `env.py`, by the name of Alembic's own template.
    """

    def __init__(self, pytest_server: PytestServer, directory: Path, mark: str, *, template: str = "async") -> None:
        self.directory = directory
        self._pytest = pytest_server
        self._log = directory / "migrated.log"
        with contextlib.redirect_stdout(io.StringIO()):
            command.init(Config(str(directory / "alembic.ini")), str(directory / "migrations"), template)
        self.write("migrations/versions/0001_colour.py", f"# {mark}\n{REVISION}")
        self.write("paint/__init__.py", "")
        self.write("paint/models.py", MODELS)
        self.configure()

    def configure(self, *lines: str) -> None:
        """Writes `pytest.ini` with these lines more."""
        settings = ["[pytest]", "asyncio_mode = auto", "asyncio_default_fixture_loop_scope = function", *lines]
        self.write("pytest.ini", "\n".join(settings))

    def write(self, path: str, text: str) -> Path:
        """Writes a file and returns its path."""
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    @property
    def migrations(self) -> int:
        """How often the revision ran."""
        return len(self._log.read_text().splitlines()) if self._log.exists() else 0

    def run(self, *options: str, **environment: str) -> tuple[int, str]:
        """Runs pytest there; returns its exit code and what it printed."""
        return self._pytest.run(self.directory, *options, **environment)

    def templates(self, server: PostgresServer) -> list[str]:
        """The template databases that were made of this project."""

        async def look() -> list[str]:
            async with connect(server.url) as connection:
                rows = await connection.fetch(
                    "SELECT datname::text, shobj_description(oid, 'pg_database') FROM pg_database WHERE datistemplate"
                )
            comments = {name: json.loads(comment) for name, comment in rows if (comment or "").startswith("{")}
            return [name for name, comment in comments.items() if self._is_of(comment)]

        return run_blocking(look())

    def _is_of(self, comment: Any) -> bool:
        return bool(comment.get("metadata", {}).get("project") == str(self.directory))
