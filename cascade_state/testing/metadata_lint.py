"""A lint over tables: the rules under which one schema serves one server and a distributed one alike.

It looks at SQLAlchemy's metadata and needs no database:

- D1 every table has a primary key, and each key, unique constraint and unique index of a distributed table begins with
  `partition_id`.
- D2 `partition_id` is an ordinary integer, never null, never generated, of the same type everywhere.
- D3 a foreign key leads to a reference table, or is (partition_id, flow_instance_id) to flow_instances ON DELETE
  CASCADE; tables whose partition is not that of a flow have none. Every constraint is named as its kind says, in at
  most 63 bytes.
- D4 no native enum, no sequence, no identity, no trigger.
- D5 no table names a schema.

`Table.info` tells reference tables from distributed ones (`distribution`), and whose partition a row lies in
(`partition_of`). Tests import this module, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import (
    CheckConstraint,
    Column,
    Constraint,
    Enum,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)

from cascade_state.testing.sql_lint import Violation

__all__ = ["lint_metadata"]

MAXIMUM_IDENTIFIER_BYTES = 63
_PARTITION = "partition_id"
_OWNER = ("flow_instances", (_PARTITION, "flow_instance_id"))

_PREFIXES: tuple[tuple[type[Constraint], str], ...] = (
    (PrimaryKeyConstraint, "pk_"),
    (ForeignKeyConstraint, "fk_"),
    (UniqueConstraint, "uq_"),
    (CheckConstraint, "ck_"),
)


def lint_metadata(metadata: MetaData) -> list[Violation]:
    """Returns the rules that the tables break."""
    return [
        Violation(rule, subject, reason)
        for table in metadata.tables.values()
        for rule, subject, reason in _check_table(table)
    ]


def _check_table(table: Table) -> Iterator[tuple[str, str, str]]:
    if table.schema is not None:
        yield "D5", table.name, "names a schema"
    distribution = table.info.get("distribution")
    if distribution is None:
        yield "D1", table.name, "does not say how it is distributed"
    if not table.primary_key.columns:
        yield "D1", table.name, "has no primary key"
    if distribution != "reference":
        yield from _check_keys(table)
        yield from _check_partition(table)
    yield from _check_names(table)
    for column in table.columns:
        yield from _check_column(column)
    for key in table.foreign_key_constraints:
        yield from _check_foreign_key(table, key)
    if table.dispatch.after_create or table.dispatch.before_create:
        yield "D4", table.name, "runs something of its own when it is made, as triggers are"


def _check_keys(table: Table) -> Iterator[tuple[str, str, str]]:
    for constraint in table.constraints:
        if isinstance(constraint, (PrimaryKeyConstraint, UniqueConstraint)):
            if [column.name for column in constraint.columns][:1] != [_PARTITION]:
                yield "D1", _named(table, constraint), f"does not begin with {_PARTITION}"
    for index in table.indexes:
        if index.unique and [column.name for column in index.columns][:1] != [_PARTITION]:
            yield "D1", _named(table, index), f"is unique and does not begin with {_PARTITION}"


def _check_partition(table: Table) -> Iterator[tuple[str, str, str]]:
    column = table.columns.get(_PARTITION)
    if column is None:
        yield "D2", table.name, f"has no {_PARTITION}"
        return
    subject = f"{table.name}.{_PARTITION}"
    if type(column.type) is not Integer or column.nullable:
        yield "D2", subject, "is not an integer that is never null"
    if column.computed is not None or column.identity is not None or column.server_default is not None:
        yield "D2", subject, "is filled by the database"
    if column.default is not None or column.onupdate is not None:
        yield "D2", subject, "is filled by itself"


def _check_names(table: Table) -> Iterator[tuple[str, str, str]]:
    names = [table.name, *(column.name for column in table.columns)]
    for constraint in table.constraints:
        prefix = next((prefix for kind, prefix in _PREFIXES if isinstance(constraint, kind)), "")
        yield from _check_name(table, constraint, prefix)
        names.append(str(constraint.name))
    for index in table.indexes:
        yield from _check_name(table, index, "uq_" if index.unique else "ix_")
        names.append(str(index.name))
    for name in names:
        if len(name.encode()) > MAXIMUM_IDENTIFIER_BYTES:
            yield "D3", name, f"is longer than {MAXIMUM_IDENTIFIER_BYTES} bytes"


def _check_name(table: Table, item: Constraint | Index, prefix: str) -> Iterator[tuple[str, str, str]]:
    if not str(item.name or "").startswith(f"{prefix}{table.name}"):
        yield "D3", _named(table, item), f"is not named {prefix}{table.name}…"


def _check_column(column: Column[object]) -> Iterator[tuple[str, str, str]]:
    subject = f"{column.table.name}.{column.name}"
    if isinstance(column.type, Enum) and column.type.native_enum:
        yield "D4", subject, "is a native enum; use text and a CHECK"
    if column.identity is not None or (column.default is not None and column.default.is_sequence):
        yield "D4", subject, "takes its value from a sequence"
    if column is column.table.autoincrement_column:
        yield "D4", subject, "would become a serial column"


def _check_foreign_key(table: Table, key: ForeignKeyConstraint) -> Iterator[tuple[str, str, str]]:
    subject = _named(table, key)
    target = key.referred_table
    if any("SET" in (action or "").upper() for action in (key.ondelete, key.onupdate)):
        yield "D3", subject, "sets columns of its key; a distributed engine refuses that"
    if target.info.get("distribution") == "reference":
        return
    referred = tuple(element.column.name for element in key.elements)
    if (target.name, tuple(key.column_keys)) != _OWNER or referred != _OWNER[1] or key.ondelete != "CASCADE":
        yield "D3", subject, "is neither to a reference table nor (partition_id, flow_instance_id) ON DELETE CASCADE"
    elif table.info.get("partition_of") != "flow instance":
        yield "D3", subject, "may lie on another node than the flow"


def _named(table: Table, item: Constraint | Index) -> str:
    return f"{table.name}.{item.name or type(item).__name__}"
