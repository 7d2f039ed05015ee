"""The direct path: statements built once with SQLAlchemy Core, compiled once per schema, run on the asyncpg connection.

Why: executing a compiled statement on the driver connection costs a fifth of what SQLAlchemy's own execution
costs, and a round trip less. SQLAlchemy still gives the tables, the SQL, the pool and the caller's
transaction; only the last step, from text and values to records, goes around it.

What makes it safe: the statement runs on the very connection that the SQLAlchemy connection holds, and its
owner has started the transaction before (`executor.py`). Values are always bound. A statement's parameters
are named here and ordered at compile time, so no caller counts placeholders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy import Text
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect
from sqlalchemy.sql import ClauseElement

__all__ = [
    "CONNECTION_CLASS",
    "CompiledStatement",
    "DriverConnection",
    "InstantText",
    "Record",
    "Statement",
    "StatementCache",
    "begin_is_sent",
    "expect_begin",
    "has_begun",
    "on_statement",
    "was_rolled_back_instead",
]

DriverConnection: TypeAlias = "asyncpg.Connection[Record]"
Record: TypeAlias = asyncpg.Record


class _OwnDriverConnection(asyncpg.Connection):  # type: ignore[misc]
    """A driver connection that remembers how the server answered the last COMMIT, and can send more with a BEGIN.

    A COMMIT of a transaction in which a statement failed is no error to the server: it rolls back and says so. Whoever
    swallowed the statement's error would believe that everything is stored.

    Whoever sends the BEGIN (the direct path or SQLAlchemy, whichever has the first statement), the settings of the
    transaction travel with it, so that they cost no round trip of their own.
    """

    __slots__ = ("commit_status", "has_begun", "with_begin")

    commit_status: str | None
    has_begun: bool
    with_begin: str

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        if query.startswith("BEGIN"):
            self.has_begun = True
            query += getattr(self, "with_begin", "")
        status: str = await super().execute(query, *args, timeout=timeout)
        if query == "COMMIT;":
            self.commit_status = status
        return status


# What the store's own connections are made of.
CONNECTION_CLASS: type[Any] = _OwnDriverConnection


def expect_begin(connection: DriverConnection, settings: str) -> None:
    """Prepares one of our own connections for its next transaction: what is to be sent with its BEGIN."""
    own: Any = connection
    own.commit_status = None
    own.has_begun = False
    own.with_begin = settings


def begin_is_sent(connection: DriverConnection) -> None:
    """Notes on one of our own connections that its transaction begins now, whatever becomes of that."""
    own: Any = connection
    own.has_begun = True


def has_begun(connection: DriverConnection) -> bool:
    """Whether BEGIN was sent, or failed before, since `expect_begin`; on a connection of somebody else's it was."""
    return getattr(connection, "has_begun", True)


def was_rolled_back_instead(connection: DriverConnection) -> bool:
    """Whether the server answered the last COMMIT on one of our own connections with a rollback."""
    return getattr(connection, "commit_status", None) == "ROLLBACK"


# The dialect decides how placeholders and casts are written; it holds no connection and no state.
_DIALECT = asyncpg_dialect.dialect()  # type: ignore[no-untyped-call]

# Called with (name, SQL text) whenever a statement is compiled; the lint of the test suite listens.
on_statement: list[Callable[[str, str], None]] = []


class InstantText(Text):
    """The type of a parameter that is an instant, which travels as ISO 8601 text.

    The driver takes the first and the last instant that Python knows for minus infinity and infinity, in binary form.
    """


class Statement:
    """A named recipe for one SQL statement; compiled when it is first run with some schema."""

    __slots__ = ("build", "name")

    def __init__(self, name: str, build: Callable[[], ClauseElement]) -> None:
        self.name: str = name
        self.build: Callable[[], ClauseElement] = build

    def __repr__(self) -> str:
        return f"Statement({self.name})"


class CompiledStatement:
    """SQL text with its parameters in order."""

    __slots__ = ("_constants", "_instants", "_names", "text")

    def __init__(self, statement: Statement, schema: str | None) -> None:
        compiled = statement.build().compile(
            dialect=_DIALECT,
            schema_translate_map={None: schema} if schema else None,
            render_schema_translate=schema is not None,
        )
        self.text: str = str(compiled)
        self._names: tuple[str, ...] = tuple(compiled.positiontup or ())  # type: ignore[attr-defined]
        self._constants: dict[str, Any] = {name: value for name, value in compiled.params.items() if value is not None}
        binds = compiled.binds  # type: ignore[attr-defined]
        self._instants = [
            position for position, name in enumerate(self._names) if isinstance(binds[name].type, InstantText)
        ]
        for listener in on_statement:
            listener(statement.name, self.text)

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """Returns the values in the order of the placeholders; constants of the statement fill in for missing ones."""
        constants = self._constants
        arguments = [values[name] if name in values else constants.get(name) for name in self._names]
        for position in self._instants:
            instant = arguments[position]
            if instant is not None:
                arguments[position] = instant.isoformat()
        return arguments


# Of all stores of this process that name no schema, as most do. A statement takes milliseconds to compile; a process
# that opens a store for each piece of work (each test, say) would spend much of its time on that.
_without_schema: dict[Statement, CompiledStatement] = {}


class StatementCache:
    """The compiled statements of a store: one per statement, for its schema."""

    __slots__ = ("_compiled", "schema")

    def __init__(self, schema: str | None) -> None:
        self.schema: str | None = schema
        self._compiled: dict[Statement, CompiledStatement] = _without_schema if schema is None else {}

    async def fetch(
        self, connection: DriverConnection, statement: Statement, values: Mapping[str, Any]
    ) -> list[Record]:
        """Runs a statement on a driver connection and returns its records. Driver errors pass through."""
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = CompiledStatement(statement, self.schema)
        records: list[Record] = await connection.fetch(compiled.text, *compiled.arguments(values))
        return records
