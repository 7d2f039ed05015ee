"""Runs of a project's own Alembic environment, as `alembic upgrade` would do it, on a database of ours.

The environment belongs to somebody else: `env.py` may be of either kind, sets up logging, extends `sys.path`, and takes
its URL from `sqlalchemy.url`. It finds all of this as on the command line, and leaves nothing of it behind.

Source: Alembic, "Tutorial", "Using Asyncio with Alembic"; Python, `logging.config.fileConfig`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from cascade_state.errors import TestDatabaseError
from cascade_state.postgres.schema import alembic_lock
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.connections import connect, driver_url

__all__ = ["heads_of", "load_configuration", "named_driver", "options_that_count", "sync_driver", "upgrade"]

SYNC_DRIVERS = ("psycopg", "psycopg2", "pg8000")
# Where the files are and how new revisions are written: nothing that a revision's SQL could depend on.
_OPTIONS_OF_NO_CONSEQUENCE = frozenset(
    {
        "file_template",
        "here",
        "output_encoding",
        "path_separator",
        "prepend_sys_path",
        "recursive_version_locations",
        "script_location",
        "sourceless",
        "sqlalchemy.url",
        "timezone",
        "truncate_slug_length",
        "version_locations",
        "version_path_separator",
    }
)


def load_configuration(path: Path) -> Config:
    """Returns the configuration in an ini file or `pyproject.toml`, usable from any working directory.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such Alembic configuration: {path}")
    project = path if path.suffix == ".toml" else path.parent / "pyproject.toml"
    with_project: dict[str, Any] = {}
    if project.is_file() and "toml_file" in inspect.signature(Config).parameters:
        with_project["toml_file"] = str(project)
    config = Config(None if path.suffix == ".toml" else str(path), **with_project)
    location = config.file_config.get(config.config_ini_section, "script_location", fallback=None)
    # Alembic means the working directory, which is the file's on the command line but any in a test run.
    if location and ":" not in location and not Path(location).is_absolute():
        config.set_main_option("script_location", str(path.parent / location).replace("%", "%%"))
    return config


def heads_of(config: Config) -> list[str]:
    """Returns the newest revisions."""
    with _sys_path_as_it_is():
        return sorted(ScriptDirectory.from_config(config).get_heads())


def options_that_count(config: Config) -> list[str]:
    """Returns what `env.py` may read from the main section, besides what changes no database."""
    section = config.config_ini_section
    if not config.file_config.has_section(section):
        return []
    raw = config.file_config.items(section, raw=True)
    return [f"{name}={value}" for name, value in sorted(raw) if name not in _OPTIONS_OF_NO_CONSEQUENCE]


def named_driver(config: Config) -> str | None:
    """Returns the driver in the project's own `sqlalchemy.url`."""
    with contextlib.suppress(Exception):  # a reference to a variable that is not set, an option of other shape
        match = re.match(r"postgres(?:ql)?\+(\w+)://", config.get_main_option("sqlalchemy.url") or "")
        return match.group(1) if match else None
    return None


def sync_driver(config: Config | None = None) -> str | None:
    """Returns the blocking driver that the project names, else the first one that is installed."""
    named = named_driver(config) if config is not None else None
    if named in SYNC_DRIVERS:
        return named
    return next((driver for driver in SYNC_DRIVERS if importlib.util.find_spec(driver)), None)


def upgrade(config: Config, url: str) -> None:
    """Migrates the database to every head. Blocks; to be called where no event loop runs.

    Raises:
        TestDatabaseError: The migrations went to another database.
        Exception: What the migrations raised.
    """
    address = driver_url(url, _driver_for(config))
    config.set_main_option("sqlalchemy.url", address.replace("%", "%%"))
    with alembic_lock, _logging_as_it_is(), _sys_path_as_it_is():
        command.upgrade(config, "heads")
        has_revisions = bool(ScriptDirectory.from_config(config).get_heads())
    if has_revisions and run_blocking(_is_empty(url)):
        raise TestDatabaseError(
            "the migrations did not go to the test database: env.py must take its address from sqlalchemy.url, as in "
            "config.get_main_option('sqlalchemy.url'), and look elsewhere only when that is not set"
        )


def _driver_for(config: Config) -> str:
    named = named_driver(config)
    if named is not None:
        return named
    # An env.py that knows nothing of asyncio cannot use asyncpg.
    environment = Path(ScriptDirectory.from_config(config).dir) / "env.py"
    if "async" in environment.read_text(encoding="utf-8", errors="replace"):
        return "asyncpg"
    return sync_driver() or "asyncpg"


async def _is_empty(url: str) -> bool:
    async with connect(url) as connection:
        found = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'S'))"
        )
    return not found


@contextlib.contextmanager
def _sys_path_as_it_is() -> Iterator[None]:
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def _logging_as_it_is() -> Iterator[None]:
    """Lets `env.py` set up logging, and undoes it: levels, handlers, and which loggers are switched off."""
    root = logging.getLogger()
    disabled_level = root.manager.disable
    before = {logger: _state(logger) for logger in (root, *_loggers())}
    # `fileConfig` closes every handler that it finds here, also those of pytest.
    closing = logging._handlerList[:]  # type: ignore[attr-defined]
    named = dict(logging._handlers)  # type: ignore[attr-defined]
    logging._handlerList.clear()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for logger in (root, *_loggers()):
            _restore(logger, before.get(logger, (logging.NOTSET, [], True, False)))
        logging._handlerList[:] = closing  # type: ignore[attr-defined]
        logging._handlers.clear()  # type: ignore[attr-defined]
        logging._handlers.update(named)  # type: ignore[attr-defined]
        logging.disable(disabled_level)


def _loggers() -> list[logging.Logger]:
    return [each for each in logging.getLogger().manager.loggerDict.values() if isinstance(each, logging.Logger)]


def _state(logger: logging.Logger) -> tuple[int, list[logging.Handler], bool, bool]:
    return logger.level, list(logger.handlers), logger.propagate, logger.disabled


def _restore(logger: logging.Logger, state: tuple[int, list[logging.Handler], bool, bool]) -> None:
    level, handlers, logger.propagate, logger.disabled = state
    logger.handlers[:] = handlers
    if logger.level != level:
        logger.setLevel(level)
