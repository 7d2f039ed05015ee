"""Databases on a test server: make, look, copy, drop.

Every command is one short connection to the maintenance database, so that no pool and no event loop has to
outlive it. Names are taken as they are, quoted, and refused when PostgreSQL would cut them off.
"""

from __future__ import annotations

import logging
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, Self

from cascade_state.errors import DatabaseInUse, DatabaseNotFound, TestDatabaseError
from cascade_state.model.arguments import check_duration
from cascade_state.testing.blocking_databases import BlockingDatabases
from cascade_state.testing.connections import (
    Connection,
    checked_name,
    connect,
    driver_url,
    is_template_mark,
    quoted,
    translated,
)
from cascade_state.testing.masking import masked_url
from cascade_state.testing.sessions import Session, sessions_of, sessions_that_stay
from cascade_state.testing.templates import ensure_template

__all__ = ["DatabaseCommands", "TemporaryDatabase", "create_copy", "drop", "in_use"]

_logger = logging.getLogger(__name__)
# For a session that is just ending; one that stays longer is in use.
_PATIENCE_SECONDS = 1.0


class DatabaseCommands(ABC):
    """The database functions of a test server.

    All raise `ServerUnavailable` and `PermissionDenied` besides what they name.
    """

    # Copying files instead of logging pages halves the time where nothing waits for a disk, and triples it
    # where something does: for a server that says so. An empty text leaves the choice to PostgreSQL.
    copy_strategy = ""

    @property
    @abstractmethod
    def url(self) -> str:
        """The `postgresql://` URL of the maintenance database."""

    @abstractmethod
    def url_for(self, name: str) -> str:
        """Returns the `postgresql://` URL of another database of this server."""

    @cached_property
    def blocking(self) -> BlockingDatabases:
        """The coroutines below as blocking calls of the same names."""
        return BlockingDatabases(self)

    async def create_database(self, name: str) -> None:
        """Creates an empty database.

        Raises:
            DatabaseAlreadyExists: The name is taken.
            InvalidDatabaseName: See `checked_name`.
        """
        # template0, because nobody can be connected to it: concurrent calls never meet.
        await self._run(name, f"CREATE DATABASE {quoted(name)} TEMPLATE template0")

    async def create_database_from_template(self, name: str, template: str) -> None:
        """Creates a copy of the template: schema, data, sequences, extensions.

        Raises:
            DatabaseAlreadyExists: The name is taken.
            DatabaseNotFound: The template does not exist.
            DatabaseInUse: Somebody is connected to the template.
        """
        checked_name(name)
        checked_name(template)
        async with connect(self.url) as connection:
            await create_copy(connection, name, template, strategy=self.copy_strategy)

    async def drop_database(self, name: str, *, force: bool = False) -> None:
        """Drops the database, a finished template included.

        Args:
            name: Any database of the server but the maintenance database.
            force: Ends the sessions that are connected to it, in the same command.

        Raises:
            DatabaseNotFound: There is none.
            DatabaseInUse: Somebody is connected to it, and it stays.
        """
        checked_name(name)
        async with connect(self.url) as connection:
            await drop(connection, name, force=force)

    async def database_exists(self, name: str) -> bool:
        """Tells whether a database of this name exists, finished or not."""
        async with connect(self.url) as connection:
            with translated(name):
                found = await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", checked_name(name))
        return found is not None

    async def ensure_template_exists(
        self,
        name: str,
        setup: Callable[[str], Any],
        *,
        timeout: timedelta = timedelta(seconds=60),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Returns when the template database exists and is finished; builds it when nobody has.

        Any number of tasks, threads and processes may ask at once: one of them runs `setup`, the others wait.

        Args:
            name: The template's name; put a hash of what `setup` does into it.
            setup: A function or coroutine function; gets the URL of a scratch database, which becomes the
                template when it returns. A plain function runs in a thread.
            timeout: How long to wait for another builder; the own `setup` may take longer.
            metadata: JSON values, kept in the database's comment.

        Raises:
            InvalidArgument: The time-out is no timedelta.
            TemplateBusy: Somebody else was still building it.
            DatabaseAlreadyExists: A database of this name exists that is not a template built here.
            Exception: Whatever `setup` raised; nothing remains of the attempt, and the next caller tries
                again.
        """
        check_duration(timeout, "timeout", allow_zero=True)
        await ensure_template(self, checked_name(name), setup, timeout=timeout, metadata=metadata or {})

    async def collect_garbage(
        self,
        *,
        prefix: str,
        older_than: timedelta | None = None,
        keep: Collection[str] = (),
        dry_run: bool = False,
    ) -> list[str]:
        """Drops databases of tests that nobody needs any more: templates, copies, leftovers; returns their names.

        Whatever is in use stays: what somebody is connected to, leases, makes or builds, and what belongs to an open
        pool.

        Args:
            prefix: Every database whose name begins so, no matter who made it; scratch databases of a template
                whose name begins so.
            older_than: Only what was last used longer ago than this, as far as that is known: a copy in a pool when
                it was last leased or given back, a template when it was built or its pool last used, others when
                they were made. What has no known age stays. None: any age.
            keep: Names of databases, of templates (with their copies), or hashes, full or short, of templates.
            dry_run: Drops nothing, returns the names all the same.

        Raises:
            InvalidArgument: `prefix` is empty.
        """
        from cascade_state.testing.garbage import collect_garbage  # late: it knows the pool, which knows this module

        return await collect_garbage(self, prefix=prefix, older_than=older_than, keep=keep, dry_run=dry_run)

    def temporary_database(self, name: str | None = None) -> _Creation:
        """Creates an empty database and drops it at the end of `async with`; or `await` it."""
        return _Creation(self, name, None)

    def temporary_database_from_template(self, template: str, name: str | None = None) -> _Creation:
        """Creates a copy of the template and drops it at the end of `async with`; or `await` it."""
        return _Creation(self, name, template)

    async def _run(self, name: str, command: str) -> None:
        async with connect(self.url) as connection:
            with translated(name):
                await connection.execute(command)


class TemporaryDatabase:
    """A database that lives as long as its scope; dropping it twice is harmless."""

    def __init__(self, server: DatabaseCommands, name: str) -> None:
        self._server = server
        self._dropped = False
        self.name = name
        self.url: str = server.url_for(name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {masked_url(self.url)}>"

    @property
    def async_url(self) -> str:
        """The URL for SQLAlchemy's asyncio, `postgresql+asyncpg://`."""
        return driver_url(self.url, "asyncpg")

    async def drop(self) -> None:
        """Drops the database.

        Raises:
            DatabaseInUse: Somebody is connected to it, and it stays.
        """
        await self._drop(force=False)

    async def force_drop(self) -> None:
        """Drops the database and ends the sessions that are connected to it, in one command of the server."""
        await self._drop(force=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self.drop()
        except TestDatabaseError as exc:
            # The outcome of the test is what counts; whoever left a connection open reads this.
            _logger.warning("temporary database %s was not dropped: %s", self.name, exc)

    async def _drop(self, *, force: bool) -> None:
        if self._dropped:
            return
        try:
            await self._server.drop_database(self.name, force=force)
        except DatabaseNotFound:  # dropped behind our back: the wish is fulfilled
            pass
        self._dropped = True


class _Creation:
    """The pending creation of a temporary database: `await` it or enter it."""

    def __init__(self, server: DatabaseCommands, name: str | None, template: str | None) -> None:
        self._server = server
        self._name = checked_name(name) if name is not None else f"tmp_{os.getpid()}_{secrets.token_hex(6)}"
        self._template = template
        self._database: TemporaryDatabase | None = None

    def __await__(self) -> Generator[Any, None, TemporaryDatabase]:
        return self._create().__await__()

    async def __aenter__(self) -> TemporaryDatabase:
        self._database = await self._create()
        return self._database

    async def __aexit__(self, *exc_info: object) -> None:
        if self._database is not None:
            await self._database.__aexit__(*exc_info)

    async def _create(self) -> TemporaryDatabase:
        if self._template is None:
            await self._server.create_database(self._name)
        else:
            await self._server.create_database_from_template(self._name, self._template)
        return TemporaryDatabase(self._server, self._name)


async def create_copy(connection: Connection, name: str, template: str, *, strategy: str) -> None:
    """Creates a copy of the template, on a connection to the maintenance database."""
    command = f"CREATE DATABASE {quoted(name)} TEMPLATE {quoted(template)} {strategy}"
    await _refuse_in_use(connection, template)
    try:
        with translated(name):
            await connection.execute(command)
    except DatabaseNotFound as exc:
        raise DatabaseNotFound(database=template) from exc
    except DatabaseInUse as exc:
        raise in_use(template, await sessions_of(connection, template)) from exc


async def drop(connection: Connection, name: str, *, force: bool) -> None:
    """Drops the database, a finished template included, on a connection to the maintenance database."""
    command = f"DROP DATABASE {quoted(name)}" + (" WITH (FORCE)" if force else "")
    if not force:
        await _refuse_in_use(connection, name)
    try:
        with translated(name):
            await _drop(connection, name, command)
    except DatabaseInUse as exc:
        raise in_use(name, await sessions_of(connection, name)) from exc


def in_use(name: str, sessions: Sequence[Session]) -> DatabaseInUse:
    """Returns the error that names who is connected."""
    users = tuple((session.process_id, session.application_name) for session in sessions)
    return DatabaseInUse(database=name, connections=users)


async def _refuse_in_use(connection: Connection, name: str) -> None:
    # The server would wait for five seconds before it says so.
    sessions = await sessions_that_stay(connection, name, patience=_PATIENCE_SECONDS)
    if sessions:
        raise in_use(name, sessions)


async def _drop(connection: Connection, name: str, command: str) -> None:
    try:
        await connection.execute(command)
        return
    except Exception as exc:
        if not is_template_mark(exc):
            raise
    await connection.execute(f"ALTER DATABASE {quoted(name)} IS_TEMPLATE false")
    try:
        await connection.execute(command)
    except BaseException:
        await connection.execute(f"ALTER DATABASE {quoted(name)} IS_TEMPLATE true")
        raise
