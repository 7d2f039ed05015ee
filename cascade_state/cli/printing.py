"""What the subcommands print: JSON for programs, tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import typer
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["print_columns", "print_json", "print_table"]

_ANY_WIDTH = 1_000_000


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


def print_columns(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a table with a head for each column; when nobody looks at it, a row is never broken into lines."""
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*("–" if value is None else str(_plain(value)) for value in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_ANY_WIDTH)
    console.print(table)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value
