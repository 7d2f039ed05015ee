"""`migrate`, `check` and `schema dump`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cascade_state.abc import Store
from cascade_state.cli.options import AsJson, PartitionCount, Schema, Url
from cascade_state.cli.printing import print_json
from cascade_state.cli.running import FAILED, run, with_store
from cascade_state.errors import SchemaMismatch
from cascade_state.ids import DEFAULT_PARTITION_COUNT
from cascade_state.postgres.schema import dump_schema, head_revision

__all__ = ["check", "dump", "migrate"]


def migrate(url: Url, schema: Schema = None, partition_count: PartitionCount = None, as_json: AsJson = False) -> None:
    """Bring the schema to the newest revision; several at once are safe, one works and the others wait."""

    async def work(store: Store) -> None:
        await store.migrate()
        _report(store, as_json)

    with_store(url, schema, partition_count, work)


def check(url: Url, schema: Schema = None, partition_count: PartitionCount = None, as_json: AsJson = False) -> None:
    """Say whether the schema is the one this version works with; exit 1 if it is not."""

    async def work(store: Store) -> SchemaMismatch | None:
        try:
            await store.check_schema()
        except SchemaMismatch as mismatch:
            if not as_json:
                raise
            return mismatch
        _report(store, as_json)
        return None

    mismatch = with_store(url, schema, partition_count, work)
    if mismatch is not None:
        print_json({"ok": False, "expected": mismatch.expected, "found": mismatch.found, "reason": str(mismatch)})
        raise typer.Exit(FAILED)


def dump(
    schema: Schema = None,
    partition_count: PartitionCount = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write to this file instead of the standard output."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the whole schema as SQL; needs no database."""

    async def work() -> str:
        return dump_schema(schema=schema, partition_count=partition_count or DEFAULT_PARTITION_COUNT)

    sql = run(work)
    if output is not None:
        output.write_text(sql, encoding="utf-8")
    elif as_json:
        print_json({"revision": head_revision(), "sql": sql})
    else:
        typer.echo(sql, nl=False)


def _report(store: Store, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "ok": True,
        "revision": head_revision(),
        "schema": store.options.schema,
        "partition_count": store.options.partition_count,
    }
    if as_json:
        print_json(facts)
    else:
        where = "" if facts["schema"] is None else f" in schema {facts['schema']}"
        typer.echo(f"at revision {facts['revision']}{where}, {facts['partition_count']} partitions")
