"""The pytest plugin: a database per test, cloned from one migrated template; the store on both back ends; a clock.

pytest imports this module in every test run of an environment where the package is installed, and before a coverage
plugin starts. So it, and the modules of fixtures with it, import nothing heavy: what a fixture needs (drivers, Alembic,
SQLAlchemy) is imported when it is used.

How the parts share the work: `options` reads what the user wants; `template` says what the template database is made
of and names it by the hash of that; `databases` hands out copies and takes them back; `reporting` carries what there is
to tell from the process of a test to the terminal.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from cascade_state.testing.pytest_plugin import async_fixtures, fixtures, run
from cascade_state.testing.pytest_plugin.reporting import Reporter, settle

__all__: list[str] = []

_REPORTER = "cascade_state reporter"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options and ini keys."""
    group = parser.getgroup("cascade_state", "a PostgreSQL database per test")
    group.addoption(
        "--postgres-url",
        metavar="URL",
        help="use this server instead of starting one; its role must be allowed to create databases "
        "(also: CASCADE_TEST_URL)",
    )
    group.addoption(
        "--postgres-version",
        metavar="VERSION",
        help="the major version to start, from the wheel (18, the default, or 16) or the system; 'system' for the "
        "newest installed (also: CASCADE_TEST_POSTGRES)",
    )
    group.addoption(
        "--require-postgres",
        action="store_true",
        help="fail the tests that need a server when there is none, instead of skipping them "
        "(also: CASCADE_REQUIRE_POSTGRES=1)",
    )
    group.addoption(
        "--keep-databases",
        choices=("failed", "all", "none"),
        default="failed",
        help="which test databases to keep and name at the end: those of failed tests (the default), all, or none",
    )
    parser.addini(
        "cascade_state_alembic_ini",
        "the Alembic configuration that migrates the template database, an ini file or pyproject.toml, relative to "
        "pytest's own configuration; by default alembic.ini beside it, or [tool.alembic] in pyproject.toml",
    )
    parser.addini(
        "cascade_state_setup",
        "package.module:function that fills the template database after the migrations; gets its URL, may be a "
        "coroutine function",
    )
    parser.addini(
        "cascade_state_template_files",
        "further files, directories and globs that the template database depends on: a change of them makes a new one",
        type="linelist",
    )
    parser.addini(
        "cascade_state_leak_check",
        "fail a test that leaves connections open to its database",
        type="bool",
        default=True,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the fixtures, and the reporter where the terminal is."""
    config.addinivalue_line(
        "markers", "leaves_connections: the test may leave connections open to its test database (cascade_state)"
    )
    for module in (fixtures, async_fixtures):
        config.pluginmanager.register(module, module.__name__)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reporter(config), _REPORTER)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Keeps the run's server alive from the first pytest-xdist worker's start to the end of the run."""
    run.hold(node.config, node.workerinput["testrunuid"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Settles what becomes of the test's database, once all its phases are known."""
    report = yield
    settle(item, report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the run: databases go, and the server that it started, unless some were kept on it."""
    reporter = config.pluginmanager.get_plugin(_REPORTER)
    run.release(config, keep_server=reporter is not None and bool(reporter.kept))
