"""The database functions of a test server as blocking calls, under the same names: `server.blocking`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from cascade_state.testing.blocking import as_plain_function, run_blocking
from cascade_state.testing.masking import masked_url

if TYPE_CHECKING:
    from cascade_state.testing.databases import DatabaseCommands, TemporaryDatabase

__all__ = ["BlockingDatabases", "BlockingTemporaryDatabase"]


class BlockingDatabases:
    """What `PostgresServer` does with databases, for code without an event loop; promises and errors are the same.

    Calls may come from any thread, and from inside a running event loop, which they hold up.
    """

    def __init__(self, server: DatabaseCommands) -> None:
        self._server = server

    def create_database(self, name: str) -> None:
        """Creates an empty database."""
        run_blocking(self._server.create_database(name))

    def create_database_from_template(self, name: str, template: str) -> None:
        """Creates a copy of the template."""
        run_blocking(self._server.create_database_from_template(name, template))

    def drop_database(self, name: str, *, force: bool = False) -> None:
        """Drops the database, a finished template included."""
        run_blocking(self._server.drop_database(name, force=force))

    def database_exists(self, name: str) -> bool:
        """Tells whether a database of this name exists."""
        return run_blocking(self._server.database_exists(name))

    def ensure_template_exists(
        self,
        name: str,
        setup: Callable[[str], Any],
        *,
        timeout: timedelta = timedelta(seconds=60),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Returns when the template database exists and is finished; a `setup` coroutine gets a loop of its own."""
        plain = as_plain_function(setup)
        run_blocking(self._server.ensure_template_exists(name, plain, timeout=timeout, metadata=metadata))

    def collect_garbage(
        self,
        *,
        prefix: str,
        older_than: timedelta | None = None,
        keep: Collection[str] = (),
        dry_run: bool = False,
    ) -> list[str]:
        """Drops databases of tests that nobody needs any more; returns their names."""
        return run_blocking(
            self._server.collect_garbage(prefix=prefix, older_than=older_than, keep=keep, dry_run=dry_run)
        )

    def temporary_database(self, name: str | None = None) -> BlockingTemporaryDatabase:
        """Creates an empty database now; `with` drops it at its end."""

        async def create() -> TemporaryDatabase:
            return await self._server.temporary_database(name)

        return BlockingTemporaryDatabase(run_blocking(create()))

    def temporary_database_from_template(self, template: str, name: str | None = None) -> BlockingTemporaryDatabase:
        """Creates a copy of the template now; `with` drops it at its end."""

        async def create() -> TemporaryDatabase:
            return await self._server.temporary_database_from_template(template, name)

        return BlockingTemporaryDatabase(run_blocking(create()))


class BlockingTemporaryDatabase:
    """A `TemporaryDatabase` for `with`; dropping it twice is harmless."""

    def __init__(self, database: TemporaryDatabase) -> None:
        self._database = database
        self.name: str = database.name
        self.url: str = database.url

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {masked_url(self.url)}>"

    @property
    def async_url(self) -> str:
        """The URL for SQLAlchemy's asyncio, `postgresql+asyncpg://`."""
        return self._database.async_url

    def drop(self) -> None:
        """Drops the database.

        Raises:
            DatabaseInUse: Somebody is connected to it, and it stays.
        """
        run_blocking(self._database.drop())

    def force_drop(self) -> None:
        """Drops the database and ends the sessions that are connected to it, in one command of the server."""
        run_blocking(self._database.force_drop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        run_blocking(self._database.__aexit__(*exc_info))
