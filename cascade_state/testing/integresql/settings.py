"""How the server is set up: IntegreSQL's variables, PostgreSQL's, and the options of the command, in one value.

An option wins over a variable, `INTEGRESQL_PGHOST` over `PGHOST`. A variable that cannot be read as what it should be
is passed over with a warning, and the default holds, as in the original.
"""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from cascade_state.errors import InvalidArgument
from cascade_state.testing.connections import plain_url
from cascade_state.testing.integresql.database_config import DatabaseConfig
from cascade_state.testing.integresql.names import Names
from cascade_state.testing.integresql.variables import VARIABLES, Variable

__all__ = ["LoggedParts", "Settings", "postgres_of"]

_logger = logging.getLogger("cascade_state.testdb")
_CPUS = os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedParts:
    """Which parts of requests and answers are logged."""

    request_body: bool = False
    request_header: bool = False
    request_query: bool = False
    response_body: bool = False
    response_header: bool = False


_POSTGRES = DatabaseConfig(host="127.0.0.1", port=5432, username="postgres", password="", database="postgres")
_NAMES = Names()
_LOGGED = LoggedParts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that `cascade-state testdb serve` can be told.

    Args:
        host: Address to listen on; the default lets only this machine in.
        port: 0 takes a free one.
        token: Bearer token that requests must carry; None asks for none.
        postgres: Where PostgreSQL is, as clients are told; its database is the maintenance database.
        test_username: Role that owns templates and test databases and is named in the answers; None: that of
            `postgres`.
        test_password: Its password.
        root_template: What templates are copied from.
        names: IntegreSQL's prefixes.
        initial_pool_size: Copies kept ready for each template; less than 1 becomes 1.
        max_pool_size: Copies of a template at most.
        max_databases: Copies of all templates at most; None: no limit.
        reclaim_after: How long nobody must have been connected to a database before an exhausted pool takes it
            back, when somebody was connected before.
        unclaimed_after: The same, when nobody ever was.
        minimal_lifetime: No database is taken back sooner after it was handed out.
        abandoned_after: How long nobody must have been connected to an unfinished template before it is given to the
            next who asks.
        finalize_timeout: How long a request for a database waits for its template.
        get_timeout: How long it then waits for a database.
        leave_timeout: How long `PUT` waits for connections to the template to end.
        closing_timeout: How long a connection that is being closed may take before it counts as open.
        request_timeout: No request takes longer; None: no limit.
        log_level: Of all messages.
        request_log_level: At which a request is logged.
        logged: Further parts of requests to log.
        cors: Lets pages of other origins call the API.
        request_ids: Gives each answer the request's id, or a new one.
        trailing_slash: Takes paths that end in a slash.
        log_requests: Logs each request.
    """

    host: str = "127.0.0.1"
    port: int = 5000
    token: str | None = field(default=None, repr=False)
    postgres: DatabaseConfig = _POSTGRES
    test_username: str | None = None
    test_password: str = field(default="", repr=False)
    root_template: str = "template0"
    names: Names = _NAMES
    initial_pool_size: int = _CPUS
    max_pool_size: int = _CPUS * 4
    max_databases: int | None = None
    reclaim_after: timedelta = timedelta(seconds=1)
    unclaimed_after: timedelta = timedelta(seconds=30)
    minimal_lifetime: timedelta = timedelta(milliseconds=250)
    abandoned_after: timedelta = timedelta(seconds=120)
    finalize_timeout: timedelta = timedelta(seconds=60)
    get_timeout: timedelta = timedelta(seconds=60)
    leave_timeout: timedelta = timedelta(seconds=30)
    closing_timeout: timedelta = timedelta(seconds=2)
    request_timeout: timedelta | None = timedelta(seconds=60)
    log_level: int = logging.INFO
    request_log_level: int = logging.INFO
    logged: LoggedParts = _LOGGED
    cors: bool = False
    request_ids: bool = True
    trailing_slash: bool = True
    log_requests: bool = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Returns the settings that the variables say, the defaults where they say nothing."""
        found = dict(os.environ if environment is None else environment)
        read: dict[str, Any] = {}
        for variable in VARIABLES:
            for name in variable.names:
                if found.get(name, "") != "" and _take(variable, name, found[name], read):
                    break
        return cls().changed(**read)

    def changed(self, **options: Any) -> Self:
        """Returns the settings with these in place of the old ones; an option that is None says nothing.

        `postgres_host`, `postgres_port`, `postgres_user`, `postgres_password`, `postgres_database` are the parts of
        `postgres`, `prefix`, `template_prefix`, `test_prefix` those of `names`; `log_…` those of `logged`.
        """
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        parts = {
            name: given.pop(option)
            for name, option in (
                ("host", "postgres_host"),
                ("port", "postgres_port"),
                ("username", "postgres_user"),
                ("password", "postgres_password"),
                ("database", "postgres_database"),
            )
            if option in given
        }
        given["postgres"] = given.get("postgres", self.postgres).changed(**parts)
        prefixes = {name: given.pop(name) for name in ("prefix", "template_prefix", "test_prefix") if name in given}
        logged = {name: given.pop(f"log_{name}") for name in LoggedParts.__dataclass_fields__ if f"log_{name}" in given}
        largest = max(1, given.get("max_pool_size", self.max_pool_size))
        given["max_pool_size"] = largest
        given["initial_pool_size"] = min(max(1, given.get("initial_pool_size", self.initial_pool_size)), largest)
        given["names"] = replace(self.names, **prefixes, digits=len(str(10 * largest)))
        given["logged"] = replace(self.logged, **logged)
        if given.pop("no_request_timeout", False):
            given["request_timeout"] = None
        return replace(self, **given)

    def config_of(self, database: str) -> DatabaseConfig:
        """Returns what the API tells of a template or test database."""
        if self.test_username is None:
            return self.postgres.changed(database=database)
        return self.postgres.changed(database=database, username=self.test_username, password=self.test_password)


def postgres_of(url: str, environment: Mapping[str, str] | None = None) -> DatabaseConfig:
    """Returns the parts of a PostgreSQL URL, with what libpq's variables say where it says nothing.

    Raises:
        ServerUnavailable: It is not a PostgreSQL URL.
        InvalidArgument: It names several hosts, or its port is not a number.
    """
    found = os.environ if environment is None else environment
    parts = urlsplit(plain_url(url))
    query: dict[str, str] = dict(parse_qsl(parts.query))
    try:
        port = query.pop("port", "") or parts.port or found.get("PGPORT") or 5432
        number = int(port)
    except ValueError:
        raise InvalidArgument(argument="postgres_url", reason="the port must be a number, and the host one") from None
    host = query.pop("host", "") or unquote(parts.hostname or "") or found.get("PGHOST") or "127.0.0.1"
    if "," in host:
        raise InvalidArgument(argument="postgres_url", reason="names several hosts; clients are told one")
    return DatabaseConfig(
        host=host,
        port=number,
        username=query.pop("user", "") or unquote(parts.username or "") or found.get("PGUSER") or getpass.getuser(),
        password=query.pop("password", "") or unquote(parts.password or "") or found.get("PGPASSWORD") or "",
        database=query.pop("dbname", "") or unquote(parts.path.removeprefix("/")) or "postgres",
        additional_params=query,
    )


def _take(variable: Variable, name: str, text: str, read: dict[str, Any]) -> bool:
    try:
        value = variable.read(text)
    except ValueError:
        _logger.warning("variable=%s ignored: not what it should be; the default holds", name)
        return False
    if variable.setting:
        read[variable.setting] = value
    return True
