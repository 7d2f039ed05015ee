"""What the tables are made of: their `MetaData`, their kinds of columns, and what holds for many of them.

Only `tables.py` imports this module.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Integer,
    Interval,
    MetaData,
    Text,
    Uuid,
    text,
)
from sqlalchemy.types import UserDefinedType

__all__ = [
    "REFERENCE",
    "XID8",
    "bigint_column",
    "instant_column",
    "integer_column",
    "interval_column",
    "json_column",
    "lease_columns",
    "metadata",
    "one_of",
    "partition_column",
    "spread_by",
    "text_column",
    "uuid_column",
    "with_instance",
]

metadata: MetaData = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    }
)

# Copied to every node: small, rarely written, joined from everywhere.
REFERENCE: str = "reference"
# Split by partition_id, every table in the same way, so that one partition of all of them lies on one node.
_COLOCATED = "partition_id, colocated with flow_instances"


def spread_by(owner: str, storage: dict[str, str] | None = None) -> dict[str, Any]:
    """What `Table.info` says of a distributed table: whose partition its rows lie in, and its storage parameters."""
    return {"distribution": _COLOCATED, "partition_of": owner, "storage": storage or {}}


class XID8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id: grows with each transaction, never wraps."""

    cache_ok: bool | None = True

    def get_col_spec(self, **_: Any) -> str:
        """Returns the name of the type."""
        return "xid8"


def text_column(name: str, *, nullable: bool = False) -> Column[str]:
    """Text that compares by code point."""
    return Column(name, Text(collation="C"), nullable=nullable)


def json_column(name: str, *, nullable: bool = False) -> Column[Any]:
    """A document, kept to the letter."""
    return Column(name, JSON(), nullable=nullable)


def uuid_column(name: str, *, nullable: bool = False) -> Column[Any]:
    """An id."""
    return Column(name, Uuid(), nullable=nullable)


def instant_column(name: str, *, nullable: bool = False) -> Column[Any]:
    """An instant."""
    return Column(name, DateTime(timezone=True), nullable=nullable)


def interval_column(name: str, *, default: str) -> Column[Any]:
    """A duration."""
    return Column(name, Interval(), nullable=False, server_default=text(default))


def integer_column(name: str) -> Column[int]:
    """A small number."""
    return Column(name, Integer(), nullable=False, autoincrement=False)


def bigint_column(name: str, *, nullable: bool = False, default: str | None = None) -> Column[int]:
    """A counter."""
    server_default = None if default is None else text(default)
    return Column(name, BigInteger(), nullable=nullable, server_default=server_default, autoincrement=False)


def partition_column() -> Column[int]:
    """The partition that a row lies in; the store fills it."""
    return integer_column("partition_id")


def lease_columns() -> list[Column[Any]]:
    """The columns of a lease; the token only ever grows for one row."""
    return [
        text_column("lease_holder", nullable=True),
        bigint_column("lease_token", default="0"),
        instant_column("lease_expires_at", nullable=True),
    ]


def one_of(column: str, *values: str) -> CheckConstraint:
    """A check that a text column holds one of these words, in the place of a native enum."""
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


def with_instance() -> ForeignKeyConstraint:
    """The foreign key of rows that go with their flow instance."""
    return ForeignKeyConstraint(
        ["partition_id", "flow_instance_id"],
        ["flow_instances.partition_id", "flow_instances.flow_instance_id"],
        ondelete="CASCADE",
    )
