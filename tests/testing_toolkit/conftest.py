"""Foreign projects for the tests of the pytest plugin, on the server of this test run."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cascade_state.testing import PostgresServer
from tests.testing_toolkit.foreign_project import ForeignProject
from tests.testing_toolkit.pytest_server import PytestServer

__all__: list[str] = []


@pytest.fixture(scope="session")
def nested_pytest() -> Iterator[PytestServer]:
    """Runs pytest in other directories."""
    started = PytestServer()
    yield started
    started.close()


@pytest.fixture
def make_project(
    server: PostgresServer, nested_pytest: PytestServer, tmp_path: Path
) -> Iterator[Callable[..., ForeignProject]]:
    """Makes projects with tests of their own; their templates are dropped afterwards."""
    made: list[ForeignProject] = []

    def make(*, template: str = "async") -> ForeignProject:
        directory = tmp_path / f"project{len(made)}"
        project = ForeignProject(nested_pytest, directory, secrets.token_hex(4), template=template)
        made.append(project)
        return project

    yield make
    for project in made:
        for name in project.templates(server):
            server.blocking.drop_database(name)


@pytest.fixture
def project(make_project: Callable[..., ForeignProject]) -> ForeignProject:
    """A project with an asynchronous `env.py`."""
    return make_project()
