"""The table of IntegreSQL's and PostgreSQL's variables: what each sets, and how it is read.

The reference is made from it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

__all__ = ["VARIABLES", "Variable"]

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "disabled": logging.CRITICAL + 10,
}


@dataclass(frozen=True, slots=True)
class Variable:
    """One line of the table: names by precedence, the setting it makes, how it is read, what it means."""

    names: tuple[str, ...]
    setting: str
    read: Callable[[str], Any]
    default: str
    meaning: str


def _boolean(text: str) -> bool:
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError(text)


def _absent(text: str) -> bool:
    return not _boolean(text)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _port(text: str) -> int:
    value = _count(text)
    if value > 65535:
        raise ValueError(text)
    return value


def _milliseconds(text: str) -> timedelta:
    return timedelta(milliseconds=_count(text))


def _level(text: str) -> int:
    try:
        return _LEVELS[text.lower()]
    except KeyError:
        raise ValueError(text) from None


_IN_VAIN = "Accepted, without effect: "

# In the order of the reference; `make generate` prints it.
VARIABLES: tuple[Variable, ...] = (
    Variable(("INTEGRESQL_ADDRESS",), "host", str, "127.0.0.1", "address to listen on"),
    Variable(("INTEGRESQL_PORT",), "port", _port, "5000", "port to listen on"),
    Variable(
        ("INTEGRESQL_PGHOST", "PGHOST"), "postgres_host", str, "127.0.0.1", "PostgreSQL's host or socket directory"
    ),
    Variable(("INTEGRESQL_PGPORT", "PGPORT"), "postgres_port", _port, "5432", "PostgreSQL's port"),
    Variable(("INTEGRESQL_PGUSER", "PGUSER", "USER"), "postgres_user", str, "postgres", "management role"),
    Variable(("INTEGRESQL_PGPASSWORD", "PGPASSWORD"), "postgres_password", str, "empty", "its password"),
    Variable(("INTEGRESQL_PGDATABASE",), "postgres_database", str, "postgres", "maintenance database"),
    Variable(("INTEGRESQL_ROOT_TEMPLATE",), "root_template", str, "template0", "what templates are copied from"),
    Variable(("INTEGRESQL_DB_PREFIX",), "prefix", str, "integresql", "first part of all names"),
    Variable(("INTEGRESQL_TEMPLATE_DB_PREFIX",), "template_prefix", str, "template", "second part, of templates"),
    Variable(("INTEGRESQL_TEST_DB_PREFIX",), "test_prefix", str, "test", "second part, of test databases"),
    Variable(
        ("INTEGRESQL_TEST_PGUSER",),
        "test_username",
        str,
        "management role",
        "owner of templates and test databases; the answers carry its name and password",
    ),
    Variable(("INTEGRESQL_TEST_PGPASSWORD",), "test_password", str, "empty", "the owner's password"),
    Variable(
        ("INTEGRESQL_TEST_INITIAL_POOL_SIZE",),
        "initial_pool_size",
        _count,
        "number of CPUs",
        "copies kept ready; 0 counts as 1",
    ),
    Variable(("INTEGRESQL_TEST_MAX_POOL_SIZE",), "max_pool_size", _count, "CPUs × 4", "copies of a template at most"),
    Variable(
        ("INTEGRESQL_TEST_DB_MINIMAL_LIFETIME_MS",),
        "minimal_lifetime",
        _milliseconds,
        "250",
        "a database is not taken back sooner after it was handed out; see --reclaim-after for what decides",
    ),
    Variable(
        ("INTEGRESQL_TEMPLATE_FINALIZE_TIMEOUT_MS", "INTEGRESQL_ECHO_REQUEST_TIMEOUT_MS"),
        "finalize_timeout",
        _milliseconds,
        "60000",
        "how long a request for a database waits for its template",
    ),
    Variable(
        ("INTEGRESQL_TEST_DB_GET_TIMEOUT_MS", "INTEGRESQL_ECHO_REQUEST_TIMEOUT_MS"),
        "get_timeout",
        _milliseconds,
        "60000",
        "how long it then waits for a database",
    ),
    Variable(("INTEGRESQL_ECHO_REQUEST_TIMEOUT_MS",), "request_timeout", _milliseconds, "60000", "of any request: 503"),
    Variable(
        ("INTEGRESQL_ECHO_ENABLE_REQUEST_TIMEOUT_MIDDLEWARE",),
        "no_request_timeout",
        _absent,
        "true",
        "false: only the waits above end a request",
    ),
    Variable(
        ("INTEGRESQL_ECHO_ENABLE_CORS_MIDDLEWARE",),
        "cors",
        _boolean,
        "false",
        "true: pages of any origin may call the API (IntegreSQL: always)",
    ),
    Variable(
        ("INTEGRESQL_ECHO_ENABLE_REQUEST_ID_MIDDLEWARE",), "request_ids", _boolean, "true", "answers have X-Request-Id"
    ),
    Variable(
        ("INTEGRESQL_ECHO_ENABLE_TRAILING_SLASH_MIDDLEWARE",),
        "trailing_slash",
        _boolean,
        "true",
        "a slash at the end of a path does not matter",
    ),
    Variable(("INTEGRESQL_ECHO_ENABLE_LOGGER_MIDDLEWARE",), "log_requests", _boolean, "true", "requests are logged"),
    Variable(("INTEGRESQL_LOGGER_LEVEL",), "log_level", _level, "info", "trace, debug, info, warn, error, disabled"),
    Variable(("INTEGRESQL_LOGGER_REQUEST_LEVEL",), "request_log_level", _level, "info", "level of a request's line"),
    Variable(("INTEGRESQL_LOGGER_LOG_REQUEST_BODY",), "log_request_body", _boolean, "false", "with its body"),
    Variable(("INTEGRESQL_LOGGER_LOG_REQUEST_HEADER",), "log_request_header", _boolean, "false", "with its headers"),
    Variable(("INTEGRESQL_LOGGER_LOG_REQUEST_QUERY",), "log_request_query", _boolean, "false", "with its query"),
    Variable(
        ("INTEGRESQL_LOGGER_LOG_RESPONSE_BODY",),
        "log_response_body",
        _boolean,
        "false",
        "with the answer, passwords masked",
    ),
    Variable(
        ("INTEGRESQL_LOGGER_LOG_RESPONSE_HEADER",),
        "log_response_header",
        _boolean,
        "false",
        "with the answer's headers",
    ),
    Variable(
        ("INTEGRESQL_POOL_MAX_PARALLEL_TASKS",),
        "",
        _count,
        "",
        _IN_VAIN + "as many copies are made at once as there are CPUs, for all templates together",
    ),
    Variable(
        ("INTEGRESQL_TEST_DB_RETRY_RECREATE_SLEEP_MIN_MS", "INTEGRESQL_TEST_DB_RETRY_RECREATE_SLEEP_MAX_MS"),
        "",
        _milliseconds,
        "",
        _IN_VAIN + "nothing is recreated while somebody is connected, so nothing is retried for it",
    ),
    Variable(
        ("INTEGRESQL_DEBUG_ENDPOINTS", "INTEGRESQL_ECHO_DEBUG", "INTEGRESQL_ECHO_ENABLE_RECOVER_MIDDLEWARE"),
        "",
        _boolean,
        "",
        _IN_VAIN + "there is no Go profiler here, and a failing request never ends the process",
    ),
    Variable(("INTEGRESQL_LOGGER_PRETTY_PRINT_CONSOLE",), "", _boolean, "", _IN_VAIN + "the log is for people already"),
)
