"""From what the driver raises to what the store raises; the one place where that is decided.

Errors are classified by SQLSTATE, never by message or constraint name: a distributed engine changes both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from cascade_state.errors import SchemaMismatch, StoreError, StoreUnavailable, TransactionAborted, UsageError

__all__ = ["translated", "translated_error"]

_ABORTED = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "55P03": "a lock was not available in time",
    "25P02": "an earlier statement of this transaction failed",
}
_UNAVAILABLE = {
    "25006": "the server accepts no writes (a standby?)",
    "57014": "the statement was cancelled or timed out",
    "57P01": "the connection was terminated by an administrator",
    "57P02": "the server crashed",
    "57P03": "the server is starting up or shutting down",
    "57P05": "the connection was idle for too long",
    "25P03": "the transaction was idle for too long",
    "53300": "the server has no connection left",
}
_REFUSED = {
    "26000": "a prepared statement is gone; a transaction pooler needs pooler='pgbouncer'",
    "28000": "this user may not connect in this way",
    "28P01": "wrong user or password",
    "3D000": "there is no such database",
    "42501": "the role lacks a right",
}
_NOT_MIGRATED = frozenset({"42P01", "42703", "3F000"})
# Text of a distributed engine's commit failure and lost node connection: the only two messages that are
# looked at, because both come as XX000.
_DISTRIBUTED = ("could not commit transaction for shard", "server closed the connection unexpectedly")

# How SQLAlchemy says, in a code of its own, that a connection that broke before has no transaction any more.
_CONNECTION_WAS_LOST = "8s2b"


@contextmanager
def translated() -> Iterator[None]:
    """Translates what the driver or SQLAlchemy raises inside; everything else passes unchanged."""
    try:
        yield
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        sqlalchemy_errors.SQLAlchemyError,
        AsyncAdapt_asyncpg_dbapi.Error,  # the adapter's own, where we call it without the engine in between
        OSError,
        EOFError,
    ) as error:
        raise translated_error(error) from error


def translated_error(error: BaseException) -> Exception:
    """Returns the store's error for a driver's; it never repeats the driver's text, which may hold values."""
    sqlstate = _sqlstate(error)
    if sqlstate is None:
        return _without_sqlstate(error)
    if sqlstate in _ABORTED:
        return TransactionAborted(reason=_ABORTED[sqlstate], sqlstate=sqlstate)
    if sqlstate in _UNAVAILABLE:
        return StoreUnavailable(reason=_UNAVAILABLE[sqlstate], sqlstate=sqlstate)
    if sqlstate.startswith("08"):
        return StoreUnavailable(reason="the connection failed", sqlstate=sqlstate)
    if sqlstate.startswith("53"):
        return StoreUnavailable(reason="the server is out of a resource", sqlstate=sqlstate)
    if sqlstate == "XX000" and any(text in str(error) for text in _DISTRIBUTED):
        return TransactionAborted(reason="a node failed or refused at commit", sqlstate=sqlstate)
    if sqlstate in _NOT_MIGRATED:
        return SchemaMismatch(
            expected="the tables of this version", found="none or other ones", reason="has it been migrated?"
        )
    reason = f": {_REFUSED[sqlstate]}" if sqlstate in _REFUSED else ""
    return StoreError(f"the database refused (SQLSTATE {sqlstate}){reason}", sqlstate=sqlstate)


def _without_sqlstate(error: BaseException) -> Exception:
    if isinstance(error, sqlalchemy_errors.TimeoutError):
        return StoreUnavailable(reason="no connection of the pool became free in time")
    if isinstance(error, sqlalchemy_errors.PendingRollbackError) and error.code == _CONNECTION_WAS_LOST:
        return StoreUnavailable(reason="the connection failed before")
    original: Any = getattr(error, "orig", None) or error
    cause = original.__cause__ or original
    if isinstance(cause, asyncpg.InterfaceError) and "another operation is in progress" in str(cause):
        return UsageError("two tasks used one connection at the same time")
    if isinstance(cause, (asyncpg.InterfaceError, OSError, EOFError, asyncpg.InternalClientError)) or isinstance(
        error, sqlalchemy_errors.DBAPIError
    ):
        return StoreUnavailable(reason=f"the connection failed ({type(cause).__name__})")
    return StoreError(f"the database library refused ({type(error).__name__})")


def _sqlstate(error: BaseException) -> str | None:
    for candidate in (
        error,
        getattr(error, "orig", None),
        getattr(getattr(error, "orig", None), "__cause__", None),
    ):
        state = getattr(candidate, "sqlstate", None)
        if isinstance(state, str):
            return state
    return None
