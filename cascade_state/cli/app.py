"""The command and its subcommands, put together."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from cascade_state.cli import feeds, flows, schema, statistics, testdb, workers

__all__ = ["app"]

# No pretty tracebacks: they show local variables, and those hold addresses with passwords.
app: typer.Typer = typer.Typer(
    name="cascade-state",
    help="Looks after a store of flows: its schema, its figures, its old and its moving flows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
schema_app: typer.Typer = typer.Typer(help="Shows the schema.", no_args_is_help=True)
schema_app.command("dump")(schema.dump)
testdb_app: typer.Typer = typer.Typer(help="Test databases for suites in any language.", no_args_is_help=True)
testdb_app.command("serve")(testdb.serve)

app.command("migrate")(schema.migrate)
app.command("check")(schema.check)
app.add_typer(schema_app, name="schema")
app.command("statistics")(statistics.show)
app.command("workers")(workers.show)
feeds_app: typer.Typer = typer.Typer(help="Looks after the consumers of the feed.", no_args_is_help=True)
feeds_app.command("list")(feeds.list_)
feeds_app.command("pause")(feeds.pause)
feeds_app.command("resume")(feeds.resume)
feeds_app.command("reset")(feeds.reset)
feeds_app.command("remove")(feeds.remove)

app.add_typer(feeds_app, name="feeds")
app.command("purge")(flows.purge)
app.command("purge-events")(flows.purge_events)
app.command("export")(flows.export)
app.command("import")(flows.import_)
app.add_typer(testdb_app, name="testdb")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("cascade-state"))
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    pass
