"""Connections of the testing toolkit to its servers, and their errors in our words.

The only file of `testing` that knows the driver.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
from asyncpg import exceptions as pg

from cascade_state.errors import (
    DatabaseAlreadyExists,
    DatabaseInUse,
    DatabaseNotFound,
    InvalidDatabaseName,
    PermissionDenied,
    ServerUnavailable,
    TestDatabaseError,
)
from cascade_state.testing.masking import masked_url

__all__ = [
    "Connection",
    "as_ours",
    "checked_name",
    "connect",
    "database_of",
    "driver_url",
    "is_lock_timeout",
    "is_template_mark",
    "open_connection",
    "plain_url",
    "quoted",
    "translated",
    "url_of",
]

Connection = Any  # asyncpg ships no types

_NAME_LIMIT = 63  # bytes; PostgreSQL would cut longer names off, and two tests would share a database
_CONNECT_SECONDS = 10.0
# What to do about a resource that ran out, by SQLSTATE.
_ADVICE = {
    "53100": "the disk or tmpfs of the server is full: drop databases, or give it more room",
    "53200": "the server is out of memory: use fewer processes",
    "53300": "the server takes no more connections: use fewer processes, or raise max_connections",
    "28000": "check the role in the URL and the server's pg_hba.conf",
    "28P01": "check role and password of the URL",
    "42501": "the role needs CREATEDB, and must own what it drops",
}


def checked_name(name: str) -> str:
    """Returns the name when a database can have it.

    Raises:
        InvalidDatabaseName: Not text, empty, with a NUL or a lone surrogate, or longer than 63 bytes.
    """
    if not isinstance(name, str):
        raise InvalidDatabaseName(database=name, reason="must be text")
    if not name:
        raise InvalidDatabaseName(database=name, reason="must not be empty")
    if "\0" in name:
        raise InvalidDatabaseName(database=name, reason="must not contain NUL")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidDatabaseName(database=name, reason="must be valid Unicode") from None
    if length > _NAME_LIMIT:
        raise InvalidDatabaseName(database=name, reason=f"is {length} bytes long; {_NAME_LIMIT} are allowed")
    return name


def quoted(name: str) -> str:
    """Returns the checked name as an SQL identifier."""
    return '"' + checked_name(name).replace('"', '""') + '"'


def plain_url(url: str) -> str:
    """Returns the URL without a driver's name: `postgresql+asyncpg://…` becomes `postgresql://…`.

    Raises:
        ServerUnavailable: It is not a PostgreSQL URL.
    """
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ServerUnavailable(reason="the URL of a test server begins with postgresql://")
    return f"postgresql://{rest}"


def database_of(url: str) -> str:
    """Returns the quoted database name in a URL; empty when it names none."""
    return urlsplit(url).path.removeprefix("/")


def url_of(url: str, database: str) -> str:
    """Returns the URL of another database on the same server."""
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"postgresql://{parts.netloc}/{quote(checked_name(database), safe='')}{query}"


def driver_url(url: str, driver: str) -> str:
    """Returns the URL with the name of a SQLAlchemy driver: `postgresql+asyncpg://…`."""
    return f"postgresql+{driver}://" + plain_url(url).partition("://")[2]


@asynccontextmanager
async def connect(url: str, *, application_name: str = "cascade_state testing") -> AsyncIterator[Connection]:
    """Yields a connection of one's own and closes it.

    Raises:
        ServerUnavailable: Nobody answers, or the server takes no more connections.
        PermissionDenied: Wrong role or password.
    """
    # One-off commands need no prepared statements; without them this works behind a pooler, too.
    connection = await open_connection(url, application_name=application_name, statement_cache_size=0)
    try:
        yield connection
    finally:
        if not connection.is_closed():
            await connection.close(timeout=_CONNECT_SECONDS)


async def open_connection(
    url: str, *, application_name: str, settings: Mapping[str, str] | None = None, **options: Any
) -> Connection:
    """Returns a connection that is kept: its statements are prepared once. Whoever has it closes it.

    Raises:
        ServerUnavailable: Nobody answers, or the server takes no more connections.
        PermissionDenied: Wrong role or password.
        DatabaseNotFound: There is no such database.
    """
    name = application_name.encode()[:_NAME_LIMIT].decode(errors="ignore")
    try:
        with translated(database_of(url)):
            return await asyncpg.connect(
                url,
                timeout=_CONNECT_SECONDS,
                server_settings={"application_name": name, **(settings or {})},
                **options,
            )
    except ServerUnavailable as exc:
        raise ServerUnavailable(reason=f"nobody answers at {masked_url(url)}: {exc.reason}") from exc.__cause__


@contextmanager
def translated(database: str) -> Iterator[None]:
    """Turns the driver's errors of a command about this database into ours, by SQLSTATE."""
    try:
        yield
    except TestDatabaseError:  # ours already; some are OSErrors as well
        raise
    except (pg.DuplicateDatabaseError, pg.UniqueViolationError) as exc:  # the latter: two at the same moment
        raise DatabaseAlreadyExists(database=database) from exc
    except pg.InvalidCatalogNameError as exc:
        raise DatabaseNotFound(database=database) from exc
    except pg.ObjectInUseError as exc:
        raise DatabaseInUse(database=database) from exc
    except (pg.InsufficientPrivilegeError, pg.InvalidAuthorizationSpecificationError) as exc:
        raise PermissionDenied(reason=_advised(exc)) from exc
    except pg.QueryCanceledError:
        raise
    except (
        pg.InsufficientResourcesError,  # a full disk, no memory, no more connections
        pg.PostgresSystemError,  # a file that cannot be written or read
        pg.OperatorInterventionError,  # it starts, stops or crashed
        pg.PostgresConnectionError,
    ) as exc:
        raise ServerUnavailable(reason=_advised(exc)) from exc
    except (
        pg.InterfaceError,
        pg.InternalClientError,  # the server ended the session while nothing was asked of it
        OSError,
    ) as exc:
        raise ServerUnavailable(reason=_one_line(exc)) from exc


def as_ours(exc: Exception) -> Exception:
    """Returns an error in our words for what the server refused and `translated` has no class for."""
    if not isinstance(exc, pg.PostgresError):
        return exc
    ours = TestDatabaseError(_one_line(exc))
    ours.__cause__ = exc
    return ours


def is_lock_timeout(exc: BaseException) -> bool:
    """Tells whether a statement gave up waiting for a lock."""
    return isinstance(exc, pg.LockNotAvailableError)


def is_template_mark(exc: BaseException) -> bool:
    """Tells whether DROP DATABASE was refused because the database is marked as a template."""
    return isinstance(exc, pg.WrongObjectTypeError)


def _advised(exc: Any) -> str:
    advice = _ADVICE.get(exc.sqlstate)
    return f"{_one_line(exc)} ({advice})" if advice else _one_line(exc)


def _one_line(exc: BaseException) -> str:
    text = " ".join(str(exc).split()) or type(exc).__name__
    password = os.environ.get("PGPASSWORD")
    return text.replace(password, "***") if password else text
