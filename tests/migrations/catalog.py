"""What a schema holds, read from PostgreSQL's catalogue in a form that two schemas can be compared in."""

from __future__ import annotations

from typing import Any

import asyncpg

__all__ = ["describe", "row_counts", "table_names"]

_COLUMNS = """
    SELECT c.relname AS "table", a.attname AS name, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           pg_get_expr(d.adbin, d.adrelid), l.collname
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    WHERE c.relnamespace = to_regnamespace($1) AND a.attnum > 0 AND NOT a.attisdropped
"""
_CONSTRAINTS = """
    SELECT r.conrelid::regclass::text AS "table", r.conname AS name, pg_get_constraintdef(r.oid) AS definition
    FROM pg_constraint r JOIN pg_class c ON c.oid = r.conrelid
    WHERE c.relnamespace = to_regnamespace($1) AND r.contype <> 'n'
"""
_INDEXES = """
    SELECT tablename AS "table", indexname AS name, indexdef AS definition
    FROM pg_indexes WHERE quote_ident(schemaname) = $1
"""
_STORAGE = """
    SELECT relname AS "table", 'storage' AS name, reloptions AS definition
    FROM pg_class WHERE relnamespace = to_regnamespace($1) AND reloptions IS NOT NULL
"""


async def describe(url: str, schema: str = "public", *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns columns, constraints, indexes and storage parameters by name; names carry no schema."""
    connection = await asyncpg.connect(url)
    try:
        quoted = await connection.fetchval("SELECT quote_ident($1)", schema)
        await connection.execute(f"SET search_path TO {quoted}")
        found: dict[str, Any] = {}
        for kind, query in (
            ("column", _COLUMNS),
            ("constraint", _CONSTRAINTS),
            ("index", _INDEXES),
            ("storage", _STORAGE),
        ):
            for row in await connection.fetch(query, quoted):
                if row["table"] not in without:
                    facts = [str(value).replace(f"{quoted}.", "") for value in tuple(row)[2:]]
                    found[f"{kind} {row['table']}.{row['name']}"] = facts
        return found
    finally:
        await connection.close()


async def table_names(url: str, schema: str = "public") -> set[str]:
    """Returns the names of everything that lies in a schema: tables, indexes, types."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT relname AS name FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident($1)) "
            "UNION ALL SELECT typname FROM pg_type WHERE typnamespace = to_regnamespace(quote_ident($1))",
            schema,
        )
        return {row["name"] for row in rows}
    finally:
        await connection.close()


async def row_counts(url: str, tables: tuple[str, ...]) -> dict[str, int]:
    """Returns how many rows each table has."""
    connection = await asyncpg.connect(url)
    try:
        return {name: await connection.fetchval(f"SELECT count(*) FROM {name}") for name in tables}
    finally:
        await connection.close()
