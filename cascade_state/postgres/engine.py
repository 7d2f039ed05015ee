"""SQLAlchemy engines on asyncpg, made from a libpq URL.

asyncpg parses the URL itself, so that everything libpq knows works: several hosts, unix sockets, TLS options,
service-like query parameters. SQLAlchemy gets connections from it and adds the pool, the transaction and the
caller's SQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit
from weakref import WeakSet

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from cascade_state.abc.options import StoreOptions
from cascade_state.errors import InvalidArgument, StoreNotOpen
from cascade_state.postgres.direct import CONNECTION_CLASS, DriverConnection

__all__ = [
    "DriverConnections",
    "connect_arguments",
    "driver_url",
    "opened_meanwhile",
    "pooled_engine",
    "shown_url",
    "unpooled_engine",
]

_STATEMENT_CACHE_SIZE = (
    512  # an advance has one text for each combination of what it writes; the driver's default is 100
)


_SECRET_PARAMETERS = frozenset({"password", "sslpassword"})


def driver_url(url: str) -> str:
    """Returns the URL in the form that asyncpg (and libpq) takes."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres", "postgresql+asyncpg"):
        raise InvalidArgument(argument="url", reason="must begin with postgresql://")
    try:
        urlsplit(url)
    except ValueError:
        raise _bad_url() from None
    return f"postgresql://{rest}"


def _bad_url() -> InvalidArgument:
    # Whoever found out quotes what was not understood, which may be part of a password.
    return InvalidArgument(
        argument="url", reason="cannot be understood; special characters of a password are written as %XX"
    )


def shown_url(url: str) -> str:
    """Returns the URL without its password, for logs and people."""
    parts = urlsplit(url)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    if not at and "@" in parts.path:  # a password with a slash in it, which ends the address too early
        return f"{parts.scheme}://***"
    if at and ":" in userinfo:
        user = quote(unquote(userinfo.partition(":")[0]))
        parts = parts._replace(netloc=f"{user}:***@{hosts}")
    kept = [item for item in parts.query.split("&") if unquote(item.partition("=")[0]) not in _SECRET_PARAMETERS]
    return urlunsplit(parts._replace(query="&".join(kept)))


def connect_arguments(url: str, options: StoreOptions, settings: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns what asyncpg is to be called with.

    Behind a transaction pooler nothing may outlive a transaction: no prepared statement, no start-up setting.
    """
    dsn = driver_url(url)
    arguments: dict[str, Any] = {"dsn": dsn}
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    hosts = (parts.netloc.rpartition("@")[2], *query.get("host", ()))
    if any("," in host for host in hosts) and "target_session_attrs" not in query:
        arguments["target_session_attrs"] = "read-write"
    if options.pooler is not None:
        arguments["statement_cache_size"] = 0
    else:
        arguments["statement_cache_size"] = _STATEMENT_CACHE_SIZE
        arguments["max_cached_statement_lifetime"] = 0
        arguments["server_settings"] = {
            "application_name": options.application_name,
            "timezone": "UTC",
            "default_transaction_isolation": "read committed",  # whatever the database or the role has for a default
            **(settings or {}),
        }
    return arguments


# The driver connections opened inside an `opened_meanwhile` of this task.
_opened: ContextVar[list[DriverConnection] | None] = ContextVar("_opened", default=None)


@contextmanager
def opened_meanwhile() -> Iterator[list[DriverConnection]]:
    """Gives a list of the driver connections that the current task opens inside the block."""
    opened: list[DriverConnection] = []
    token = _opened.set(opened)
    try:
        yield opened
    finally:
        _opened.reset(token)


class DriverConnections:
    """Every driver connection of one store: once it is closed, none is left open, and none is opened any more."""

    def __init__(self) -> None:
        self._open: WeakSet[Any] = WeakSet()
        self._closed = False

    async def connect(self, arguments: Mapping[str, Any]) -> Any:
        """Opens a connection."""
        if self._closed:
            raise StoreNotOpen
        try:
            connection = await asyncpg.connect(connection_class=CONNECTION_CLASS, **arguments)
        except ValueError:  # also the driver's ClientConfigurationError
            raise _bad_url() from None
        self._open.add(connection)
        opened = _opened.get()
        if opened is not None:
            opened.append(connection)
        if self._closed:
            connection.terminate()
        return connection

    def refuse(self) -> None:
        """From now on none is opened."""
        self._closed = True

    async def terminate(self) -> None:
        """Ends the connections that somebody still uses; their calls raise `StoreUnavailable`."""
        for connection in list(self._open):
            if not connection.is_closed():
                connection.terminate()
        await asyncio.sleep(0)  # the event loop closes their sockets in its next turn


def pooled_engine(url: str, options: StoreOptions, connections: DriverConnections) -> AsyncEngine:
    """Returns the engine of units of work: at most `pool_size` connections, none over it."""
    return _engine(
        url,
        options,
        connections,
        pool_size=options.pool_size,
        max_overflow=0,
        pool_timeout=options.pool_timeout_seconds,
    )


def unpooled_engine(
    url: str,
    options: StoreOptions,
    connections: DriverConnections | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncEngine:
    """Returns the engine of connections that are kept or dedicated: each is opened when asked for, closed when left.

    Args:
        settings: Server settings of these connections; ignored behind a transaction pooler, which takes none.
    """
    return _engine(url, options, connections or DriverConnections(), settings, poolclass=NullPool)


def _engine(
    url: str,
    options: StoreOptions,
    connections: DriverConnections,
    settings: Mapping[str, str] | None = None,
    **pool: Any,
) -> AsyncEngine:
    arguments = connect_arguments(url, options, settings)
    adapter: dict[str, Any] = {}
    if options.pooler is not None:
        # Unnamed prepared statements are the only ones that leave nothing behind on a pooler's server
        # connections.
        adapter = {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}

    async def connect_driver(**_: Any) -> Any:
        return await connections.connect(arguments)

    def connect() -> Any:
        return engine.sync_engine.dialect.dbapi.connect(async_creator_fn=connect_driver, **adapter)  # type: ignore[union-attr]

    engine = create_async_engine("postgresql+asyncpg://", creator=connect, hide_parameters=True, **pool)
    return engine
