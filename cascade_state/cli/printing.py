"""What the subcommands print: JSON for programs, tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

import typer
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["print_json", "print_table"]


def print_json(value: Any) -> None:
    """Prints one JSON document: keys in the order given, text as it is."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def print_table(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """Prints a table of two columns, without colours when nobody looks at it."""
    table = Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, "–" if value is None else str(_plain(value)))
    Console().print(table)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value
