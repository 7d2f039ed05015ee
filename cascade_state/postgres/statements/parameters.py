"""Parameters of statements: bound values, relations made of arrays, and the one clock.

Arrays travel as text[] and are cast in the statement. text[] is the one array type that the driver knows without
asking the server; any other costs several round trips at its first use on a connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    JSON,
    BigInteger,
    Boolean,
    Cast,
    ColumnElement,
    DateTime,
    Integer,
    Interval,
    Select,
    TableValuedAlias,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import TypeEngine

from cascade_state.postgres.direct import InstantText

__all__ = [
    "BIGINT",
    "BOOLEAN",
    "INSTANT",
    "INTEGER",
    "INTERVAL",
    "JSONB_DOCUMENT",
    "JSON_DOCUMENT",
    "NOW",
    "TEXT",
    "UUID_VALUE",
    "WANTED_PARTITIONS",
    "as_text",
    "columns",
    "looked_up",
    "param",
    "partition_values",
    "relation",
    "scalars",
]

TEXT: TypeEngine[Any] = Text()
INTEGER: TypeEngine[Any] = Integer()
BIGINT: TypeEngine[Any] = BigInteger()
BOOLEAN: TypeEngine[Any] = Boolean()
UUID_VALUE: TypeEngine[Any] = Uuid()
INSTANT: TypeEngine[Any] = DateTime(timezone=True)
INTERVAL: TypeEngine[Any] = Interval()
JSON_DOCUMENT: TypeEngine[Any] = JSON()
JSONB_DOCUMENT: TypeEngine[Any] = JSONB()

# The instant of a statement: the store's clock when it has one, else the database's. STABLE: it may stand in an UPDATE.
NOW: ColumnElement[datetime] = func.coalesce(
    cast(bindparam("now", type_=InstantText()), INSTANT), func.statement_timestamp()
)


def param(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Returns a bound value. JSON and instants travel as text, whatever codecs the connection has for them."""
    if isinstance(type_, DateTime):
        return cast(bindparam(name, type_=InstantText()), type_)
    if isinstance(type_, (JSON, JSONB)):
        return cast(bindparam(name, type_=TEXT), type_)
    return bindparam(name, type_=type_)


def scalars(name: str, types: dict[str, TypeEngine[Any]]) -> Select[Any]:
    """Returns a relation of one row, `item` 0, made of the parameters `{name}_{column}`."""
    return select(
        literal_column("0", INTEGER).label("item"),
        *(param(f"{name}_{column}", type_).label(column) for column, type_ in types.items()),
    )


def relation(name: str, types: dict[str, TypeEngine[Any]]) -> Select[Any]:
    """Returns a relation with a row for each element of the equally long text[] parameters `{name}_{column}`."""
    arrays = [bindparam(f"{name}_{column}", type_=ARRAY(Text)) for column in types]
    unnested = func.unnest(*arrays).table_valued(*types, name=f"{name}_text").render_derived()
    return select(*(_typed(unnested.c[column], type_).label(column) for column, type_ in types.items()))


def columns(name: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict[str, list[str | None]]:
    """Returns the values of a `relation`: for each column an array of text."""
    arrays: list[list[str | None]] = [[] for _ in names]
    for row in rows:
        for array, value in zip(arrays, row, strict=True):
            array.append(as_text(value))
    return {f"{name}_{column}": array for column, array in zip(names, arrays, strict=True)}


def as_text(value: Any) -> str | None:
    """Returns a value as PostgreSQL reads it from text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
    if isinstance(value, UUID):
        return str(value)
    return repr(value)


WANTED_PARTITIONS = {"partition_id": INTEGER}


def partition_values(partitions: Iterable[int]) -> dict[str, list[str | None]]:
    """Returns the values of the relation `wanted` of chosen partitions."""
    return columns("wanted", tuple(WANTED_PARTITIONS), ((partition,) for partition in sorted(partitions)))


def _typed(column: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
    return column if isinstance(type_, Text) else Cast(column, type_)


def looked_up(rows: CTE, types: dict[str, TypeEngine[Any]], name: str) -> TableValuedAlias:
    """Returns the keys of `rows` as a relation that the planner looks up one by one.

    It takes a bound LIMIT for a tenth of the table, and would read all of the table to find the limited rows again. It
    takes an array for a few elements.
    """
    arrays = [func.array(select(rows.c[column_name]).scalar_subquery()) for column_name in types]
    return (
        func.unnest(*arrays)
        .table_valued(*(column(column_name, type_) for column_name, type_ in types.items()))
        .render_derived(name=name)
    )
