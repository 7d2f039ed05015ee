"""What a project's template database is made of, and the name that follows from it.

The name holds the hash of everything that the making depends on: the migrations, the set-up function's file, further
files that the project names, and PostgreSQL's major version. A change of any makes another name, so an old template is
never taken for a new one, and one that is there need not be looked into.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_state.errors import InvalidArgument
from cascade_state.testing.hashing import DirectoryHash, hash_directory, hash_file, hash_texts, migration_hash
from cascade_state.testing.pytest_plugin.options import Options

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["PREFIX", "Recipe", "TemplateDatabase"]

PREFIX = "cascade_state_template_"
# Changes when the same files would be made into another database.
_FORMAT = "cascade_state pytest template 1"


class TemplateDatabase(str):
    """The name of a finished template database; `hash` is of what it was made from."""

    def __new__(cls, name: str, digest: DirectoryHash) -> TemplateDatabase:
        """Returns the name, with the hash of what the template was made from."""
        return super().__new__(cls, name)

    def __init__(self, name: str, digest: DirectoryHash) -> None:
        self.hash: DirectoryHash = digest

    @property
    def name(self) -> str:
        """The name, for symmetry with databases."""
        return str(self)


@dataclass(kw_only=True)
class Recipe:
    """How to make a template database on a server of one version, with the store's own tables or without."""

    options: Options
    server_version: int
    with_store: bool = False

    @cached_property
    def template(self) -> TemplateDatabase:
        """The template's name and hash."""
        digest = hash_texts(_FORMAT, *self._ingredients())
        return TemplateDatabase(f"{PREFIX}{digest.short}", digest)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the template's comment tells."""
        heads = _alembic().heads_of(self._config) if self._config is not None else []
        return {"hash": self.template.hash, "heads": heads, "project": str(self.options.root)}

    @cached_property
    def brings_store(self) -> bool:
        """Whether the project's own migrations make the store's tables."""
        if self._config is None:
            return False
        from cascade_state.postgres.schema import head_revision

        return head_revision() in _alembic().heads_of(self._config)

    def build(self, url: str) -> None:
        """Makes the database at the URL what the template is to be. Blocks."""
        if self._config is not None:
            _alembic().upgrade(self._config, url)
        if self.with_store:
            from cascade_state.postgres.schema import migrate_database

            asyncio.run(migrate_database(url))
        if self.options.setup is not None:
            with _importable(self.options.root):
                setup = _function(self.options.setup)
                if inspect.iscoroutinefunction(setup):
                    asyncio.run(setup(url))
                else:
                    setup(url)

    @cached_property
    def _config(self) -> Config | None:
        if self.options.configuration is None:
            return None
        try:
            config: Config = _alembic().load_configuration(self.options.configuration)
        except FileNotFoundError as exc:
            raise InvalidArgument(argument="cascade_state_alembic_ini", reason=str(exc)) from exc
        return config

    def _ingredients(self) -> Iterator[str]:
        yield f"server {self.server_version}"
        if self._config is not None:
            yield migration_hash(self._config, salt=_alembic().options_that_count(self._config))
        if self.with_store:
            from cascade_state.postgres.schema import migrations_directory

            yield "store"
            yield hash_directory(migrations_directory(), include=("*.py",))
        if self.options.setup is not None:
            yield f"setup {self.options.setup}"
            with _importable(self.options.root):
                yield hash_file(_file_of(self.options.setup))
        for pattern in self.options.files:
            for path in _files(self.options.root, pattern):
                yield f"file {path.relative_to(self.options.root) if path.is_relative_to(self.options.root) else path}"
                yield hash_directory(path) if path.is_dir() else hash_file(path)


def _alembic() -> Any:
    return importlib.import_module("cascade_state.testing.alembic_runs")


def _files(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.glob(pattern)) if not Path(pattern).is_absolute() else [Path(pattern)]
    if not any(path.exists() for path in found):
        raise InvalidArgument(argument="cascade_state_template_files", reason=f"nothing is at {pattern!r}")
    return found


def _function(path: str) -> Any:
    if ":" not in path:
        raise InvalidArgument(argument="cascade_state_setup", reason=f"{path!r} must be package.module:function")
    try:
        function = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as exc:
        raise InvalidArgument(argument="cascade_state_setup", reason=f"{path!r} was not found: {exc}") from exc
    if not callable(function):
        raise InvalidArgument(argument="cascade_state_setup", reason=f"{path!r} cannot be called")
    return function


def _file_of(path: str) -> Path:
    module = path.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as exc:
        raise InvalidArgument(argument="cascade_state_setup", reason=f"{module!r} was not found: {exc}") from exc
    if spec is None or spec.origin is None:
        raise InvalidArgument(argument="cascade_state_setup", reason=f"{module!r} was not found")
    return Path(spec.origin)


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Lets the project's own modules be found, as when pytest is started there with `python -m pytest`."""
    added = str(root) not in sys.path
    if added:
        sys.path.append(str(root))
    try:
        yield
    finally:
        if added and str(root) in sys.path:
            sys.path.remove(str(root))
