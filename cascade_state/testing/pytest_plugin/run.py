"""What one process of a test run shares between its tests: the server, the template, the databases.

Everything is made when a fixture first asks for it, and ends with the configuration: after the last test's report,
which may still decide that its database is kept. A process that hands out tests to pytest-xdist workers uses no
database, but it keeps the run's server alive while workers come and go, so that the template is made once.
"""

from __future__ import annotations

import contextlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cascade_state.errors import DatabaseNotFound
from cascade_state.testing.pytest_plugin.options import Options, options_of

if TYPE_CHECKING:
    from types import TracebackType

    from cascade_state.postgres.file_lock import FileLock
    from cascade_state.testing.databases import TemporaryDatabase
    from cascade_state.testing.pytest_plugin.databases import Databases
    from cascade_state.testing.pytest_plugin.template import Recipe, TemplateDatabase
    from cascade_state.testing.server import PostgresServer

__all__ = ["RUN", "Run", "hold", "release", "run_of"]

# Migrations of an old project take long, and the other workers have nothing better to do than wait.
_BUILD_MINUTES = 15


class Run:
    """The shared things of this process."""

    def __init__(self, options: Options, processes: int) -> None:
        self.options = options
        self._processes = processes
        self.facts: dict[str, Any] = {}
        self._templates: dict[bool, TemplateDatabase | tuple[Exception, TracebackType | None]] = {}

    @cached_property
    def server(self) -> PostgresServer:
        """The started server."""
        from cascade_state.testing.server import shared_server, sweep

        server = shared_server(url=self.options.url, version=self.options.version)
        if server.directory is not None:
            sweep(server.directory, project=self.options.root)
        self.facts["server"] = server.version_text
        return server

    @cached_property
    def databases(self) -> Databases:
        """The test databases of this process."""
        from cascade_state.testing.pytest_plugin.databases import Databases

        return Databases(self.server, self._processes)

    def hand_out(self, *, with_store: bool = False) -> TemporaryDatabase:
        """Returns a copy of the template for one test; a template that somebody dropped meanwhile is made again."""
        try:
            return self.databases.hand_out(self.template(with_store=with_store))
        except DatabaseNotFound:
            del self._templates[with_store]
            return self.databases.hand_out(self.template(with_store=with_store))

    def template(self, *, with_store: bool = False) -> TemplateDatabase:
        """Returns the finished template; the first process that asks makes it, once for each state of its files.

        What went wrong once is said again to every test of this process, without another attempt.
        """
        if with_store not in self._templates:
            try:
                self._templates[with_store] = self._ensured(self._recipe(with_store))
            except Exception as exc:
                self._templates[with_store] = (exc, exc.__traceback__)
        known = self._templates[with_store]
        if isinstance(known, tuple):
            raise known[0].with_traceback(known[1])  # as it was: else it would grow with every test
        return known

    def close(self, *, keep_server: bool) -> None:
        """Drops what was not kept and leaves the server."""
        if "databases" in self.__dict__:
            self.databases.close()
        if "server" in self.__dict__:
            if keep_server:
                self.server.leave_running(self.options.root)
            else:
                self.server.stop()

    def _recipe(self, with_store: bool) -> Recipe:
        from cascade_state.testing.pytest_plugin.template import Recipe

        recipe = Recipe(options=self.options, server_version=self.server.version)
        if with_store and not recipe.brings_store:
            return Recipe(options=self.options, server_version=self.server.version, with_store=True)
        return recipe

    def _ensured(self, recipe: Recipe) -> TemplateDatabase:
        from datetime import timedelta

        self.server.blocking.ensure_template_exists(
            recipe.template, recipe.build, timeout=timedelta(minutes=_BUILD_MINUTES), metadata=recipe.metadata
        )
        self.facts |= {"server": self.server.version_text}
        self.facts.setdefault("templates", {})[recipe.template.name] = str(recipe.template.hash)
        return recipe.template


RUN = pytest.StashKey[Run]()
_HELD = pytest.StashKey["FileLock"]()


def run_of(config: pytest.Config) -> Run:
    """Returns what this process shares."""
    if RUN not in config.stash:
        worker = getattr(config, "workerinput", {"workercount": 1})
        config.stash[RUN] = Run(options_of(config), worker["workercount"])
    return config.stash[RUN]


def hold(config: pytest.Config, run_id: str) -> None:
    """Keeps the server that workers of the run may start until this process releases it."""
    options = options_of(config)
    if _HELD in config.stash or options.url:
        return
    from cascade_state.postgres.file_lock import USERS_LOCK, FileLock
    from cascade_state.testing.run_directory import choose_directory

    with contextlib.suppress(OSError):  # then the last worker that is there removes it
        lock = FileLock(choose_directory(options.version or "18", run_id) / USERS_LOCK)
        if lock.acquire(shared=True, timeout=5):
            config.stash[_HELD] = lock


def release(config: pytest.Config, *, keep_server: bool) -> None:
    """Ends what this process shares; a server that was started stays where somebody is to look into it."""
    run = config.stash.get(RUN, None)
    if run is not None:
        run.close(keep_server=keep_server)
        del config.stash[RUN]
    lock = config.stash.get(_HELD, None)
    if lock is not None:
        _end_server_of_workers(lock, options_of(config).root if keep_server else None)
        del config.stash[_HELD]


def _end_server_of_workers(lock: FileLock, project: Path | None) -> None:
    directory = lock.path.parent
    if not (directory / "pgdata").exists():  # no worker needed a server
        with contextlib.suppress(OSError):
            lock.path.unlink()
            directory.rmdir()
        lock.release()
        return
    from cascade_state.postgres.shared_server import remove_if_abandoned
    from cascade_state.testing.run_directory import mark_kept

    if project is not None:
        mark_kept(directory, project)
    lock.release()
    if project is None:
        remove_if_abandoned(directory)
