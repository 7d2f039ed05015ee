"""Statements about advisory locks, and the row that counts the holders of each.

Whoever waits does so in the server, for as long as `lock_timeout` of that one statement says; that setting is made in
the statement itself, and ends with it (session-level locks) or is put back by the caller (a unit of work).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    cast,
    column,
    extract,
    func,
    literal,
    literal_column,
    select,
    table,
    true,
)
from sqlalchemy.dialects.postgresql import insert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import BIGINT, INTEGER, TEXT, param, relation
from cascade_state.postgres.tables import lock_tokens

__all__ = [
    "DESCRIBE",
    "IS_HELD",
    "LIST",
    "NEXT_TOKEN",
    "RESTORE_LOCK_TIMEOUT",
    "SESSION",
    "TOKEN_KEYS",
    "TRANSACTION_TRY",
    "TRANSACTION_WAIT",
    "TRY",
    "UNLOCK",
    "UNLOCK_ALL",
    "WAIT",
]

TOKEN_KEYS = ("partition_id", "lock_key")

_LOCK_TIMEOUT = "lock_timeout"
_locks = table(
    "pg_locks",
    *(
        column(name)
        for name in ("locktype", "database", "classid", "objid", "objsubid", "mode", "pid", "granted", "waitstart")
    ),
    schema="pg_catalog",
)
_sessions = table(
    "pg_stat_activity",
    *(column(name) for name in ("pid", "application_name", "backend_start", "xact_start", "query_start")),
    schema="pg_catalog",
)
_databases = table("pg_database", column("oid"), column("datname"), schema="pg_catalog")


def _try(call: Any, *more: ColumnElement[Any]) -> Select[Any]:
    return select(call(param("key", BIGINT)).label("granted"), *more)


def _wait(call: Any) -> Select[Any]:
    # The time-out is a row that the lock is taken for: it is set before.
    patience = (
        select(func.set_config(literal(_LOCK_TIMEOUT), param("milliseconds", TEXT), true()).label("milliseconds"))
        .cte("patience")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return select(patience.c.milliseconds, call(param("key", BIGINT)).label("locked")).select_from(patience)


def _pair(name: str, build: Callable[[bool], Any]) -> Mapping[bool, Statement]:
    """Returns a statement for a lock that is not shared, and one for a lock that is."""
    return MappingProxyType(
        {
            False: Statement(f"locks.{name}", lambda: build(False)),
            True: Statement(f"locks.{name}_shared", lambda: build(True)),
        }
    )


TRY = _pair("try", lambda shared: _try(func.pg_try_advisory_lock_shared if shared else func.pg_try_advisory_lock))
WAIT = _pair("wait", lambda shared: _wait(func.pg_advisory_lock_shared if shared else func.pg_advisory_lock))
UNLOCK = _pair("unlock", lambda shared: _try(func.pg_advisory_unlock_shared if shared else func.pg_advisory_unlock))
UNLOCK_ALL = Statement("locks.unlock_all", lambda: select(func.pg_advisory_unlock_all()))
SESSION = Statement("locks.session", lambda: select(func.pg_backend_pid().label("pid")))

TRANSACTION_TRY = _pair(
    "transaction_try",
    lambda shared: _try(
        func.pg_try_advisory_xact_lock_shared if shared else func.pg_try_advisory_xact_lock,
        func.current_setting(literal(_LOCK_TIMEOUT)).label("lock_timeout"),
    ),
)
TRANSACTION_WAIT = _pair(
    "transaction_wait",
    lambda shared: _wait(func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock),
)
RESTORE_LOCK_TIMEOUT = Statement(
    "locks.restore_lock_timeout",
    lambda: select(func.set_config(literal(_LOCK_TIMEOUT), param("lock_timeout", TEXT), true())),
)


def _next_token() -> Any:
    """One more than the last holder's; the clock's microseconds where they are more, or where no row tells of one."""
    clock = cast(extract("epoch", func.statement_timestamp()) * literal_column("1000000", BIGINT), BigInteger)
    counted = insert(lock_tokens).from_select(
        ["partition_id", "lock_key", "lock_name", "token", "backend_pid", "acquired_at"],
        select(
            param("partition_id", INTEGER),
            param("key", BIGINT),
            param("lock_name", TEXT),
            clock,
            param("backend_pid", INTEGER),
            func.statement_timestamp(),
        ),
    )
    return counted.on_conflict_do_update(
        index_elements=[lock_tokens.c.partition_id, lock_tokens.c.lock_key],
        set_={
            "lock_name": counted.excluded.lock_name,
            "token": func.greatest(counted.excluded.token, lock_tokens.c.token + literal_column("1", BIGINT)),
            "backend_pid": counted.excluded.backend_pid,
            "acquired_at": counted.excluded.acquired_at,
        },
    ).returning(lock_tokens.c.token)


NEXT_TOKEN = Statement("locks.next_token", _next_token)


def _here() -> ColumnElement[bool]:
    """Of this database, and with a number of 64 bits: two of 32 bits are another kind of lock."""
    database = select(_databases.c.oid).where(_databases.c.datname == func.current_database()).scalar_subquery()
    return and_(
        _locks.c.locktype == literal("advisory"),
        _locks.c.database == database,
        cast(_locks.c.objsubid, BigInteger) == literal_column("1", BIGINT),
    )


def _half(name: str) -> ColumnElement[int]:
    return cast(_locks.c[name], BigInteger)


def _is_held() -> Select[Any]:
    held = select(_locks.c.pid).where(
        _here(),
        _half("classid") == param("upper_half", BIGINT),
        _half("objid") == param("lower_half", BIGINT),
        _locks.c.granted,
    )
    return select(held.exists().label("is_held"))


IS_HELD = Statement("locks.is_held", _is_held)


def _list() -> Select[Any]:
    return (
        select(
            _half("classid").label("upper_half"),
            _half("objid").label("lower_half"),
            _locks.c.mode,
            _locks.c.pid,
            _locks.c.granted,
            _locks.c.waitstart,
            _sessions.c.application_name,
            _sessions.c.backend_start,
            _sessions.c.xact_start,
            _sessions.c.query_start,
        )
        .select_from(_locks.outerjoin(_sessions, _sessions.c.pid == _locks.c.pid))
        .where(_here())
    )


LIST = Statement("locks.list", _list)


def _describe() -> Select[Any]:
    wanted = relation("wanted", dict(zip(TOKEN_KEYS, (INTEGER, BIGINT), strict=True))).subquery("wanted")
    token = lock_tokens.c
    return select(token.lock_key, token.lock_name, token.backend_pid, token.acquired_at).join(
        wanted, and_(token.partition_id == wanted.c.partition_id, token.lock_key == wanted.c.lock_key)
    )


DESCRIBE = Statement("locks.describe", _describe)
