"""What the user asked for: command line first, then variables of the environment, then defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from cascade_state.testing.masking import masked_url

__all__ = ["Options", "header_of", "options_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The plugin's options and ini keys; `version` is a major version or `system`, None for the default."""

    url: str | None
    version: str | None
    required: bool
    keep: str
    configuration: Path | None
    setup: str | None
    files: tuple[str, ...]
    leak_check: bool
    root: Path


def options_of(config: pytest.Config) -> Options:
    """Returns what holds for this test run."""
    root = config.inipath.parent if config.inipath is not None else config.rootpath
    return Options(
        url=config.getoption("postgres_url") or os.environ.get("CASCADE_TEST_URL") or None,
        version=config.getoption("postgres_version") or os.environ.get("CASCADE_TEST_POSTGRES") or None,
        required=config.getoption("require_postgres") or os.environ.get("CASCADE_REQUIRE_POSTGRES") == "1",
        keep=config.getoption("keep_databases"),
        configuration=_configuration(config.getini("cascade_state_alembic_ini"), root),
        setup=config.getini("cascade_state_setup") or None,
        files=tuple(config.getini("cascade_state_template_files")),
        leak_check=config.getini("cascade_state_leak_check"),
        root=root,
    )


def header_of(config: pytest.Config) -> str | None:
    """Returns a line about server and migrations; None when the project chose nothing of both."""
    options = options_of(config)
    if options.url is None and options.version is None and options.configuration is None and options.setup is None:
        return None
    server = masked_url(options.url) if options.url else f"PostgreSQL {options.version or 18}, started when needed"
    parts = [_shown(options.configuration, options.root)] if options.configuration else []
    parts += [options.setup] if options.setup else []
    return f"cascade_state: {server}; template: {', '.join(parts) or 'empty'}"


def _configuration(chosen: str, root: Path) -> Path | None:
    if chosen:
        return root / chosen
    if (root / "alembic.ini").is_file():
        return root / "alembic.ini"
    pyproject = root / "pyproject.toml"
    if pyproject.is_file() and "[tool.alembic]" in pyproject.read_text(encoding="utf-8", errors="replace"):
        return pyproject
    return None


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
