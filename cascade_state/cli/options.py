"""The options that several subcommands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AsJson", "PartitionCount", "Schema", "Url"]

Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="DATABASE_URL",
        help="The store: postgresql://… or embedded://…",
        show_default=False,
    ),
]
Schema = Annotated[
    str | None,
    typer.Option("--schema", help="The database schema of the installation; else the connection's default."),
]
PartitionCount = Annotated[
    int | None,
    typer.Option(
        "--partition-count",
        help="How many partitions: chosen by the first migration (256 unless said otherwise), checked later.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
