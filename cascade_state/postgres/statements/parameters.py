"""Parameters of statements: bound values, relations made of arrays, and the one clock.

An array travels as the text of an array literal, one parameter for each column of a relation, and the server makes it
text[] and then what the column is. So the driver need not ask the server for array types, which costs several round
trips at their first use on a connection, and need not look at every element. And the planner, which cannot see how many
elements there are, makes one plan for any number of them instead of a new one at each execution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
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
    "columns",
    "looked_up",
    "param",
    "partition_values",
    "relation",
    "scalars",
    "unforeseen",
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


def unforeseen(value: ColumnElement[Any]) -> Any:
    """Returns a value that the planner does not see.

    Otherwise it goes by what its statistics knew of the table: it takes what is due by now, or behind a late place, for
    little, and what is within the limit for all of that, and sorts it. But by the time it runs there may be much. And
    it believes that a plan for these values is better than one for any, so it plans each time.
    """
    return select(value).scalar_subquery()


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
    """Returns a relation with a row for each element of the equally long array parameters `{name}_{column}`."""
    arrays = [cast(unforeseen(bindparam(f"{name}_{column}", type_=TEXT)), ARRAY(Text)) for column in types]
    unnested = func.unnest(*arrays).table_valued(*types, name=f"{name}_text").render_derived()
    return select(*(_typed(unnested.c[column], type_).label(column) for column, type_ in types.items()))


def columns(name: str, names: tuple[str, ...], rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """Returns the values of a `relation`: for each column an array literal."""
    given = rows if isinstance(rows, Sequence) else list(rows)
    arrays: Iterable[Sequence[Any]] = zip(*given, strict=True) if given else ((),) * len(names)
    return dict(zip(_parameters(name, names), map(_array, arrays), strict=True))


@cache
def _parameters(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([f"{name}_{column}" for column in names])


def _array(values: Iterable[Any]) -> str:
    return "{" + ",".join([_ELEMENTS[type(value)](value) for value in values]) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _seconds(duration: timedelta) -> str:
    return f"{duration.days} days {duration.seconds} seconds {duration.microseconds} microseconds"


class _Elements(dict[type, Callable[[Any], str]]):
    """How a value is written as an element of an array literal: by its class, or the nearest of its bases."""

    def __missing__(self, kind: type) -> Callable[[Any], str]:
        write = self[kind] = next(self[base] for base in kind.__mro__[1:] if base in self)
        return write


# What is not quoted holds no character with a meaning there.
_ELEMENTS = _Elements(
    {
        type(None): lambda _: "NULL",
        str: _quoted,
        int: int.__repr__,
        bool: bool.__repr__,
        UUID: lambda value: value.hex,
        datetime: datetime.isoformat,
        timedelta: _seconds,
    }
)


WANTED_PARTITIONS = {"partition_id": INTEGER}


def partition_values(partitions: Iterable[int]) -> dict[str, str]:
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
