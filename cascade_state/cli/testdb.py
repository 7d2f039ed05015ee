"""`testdb serve`."""

from __future__ import annotations

import logging
import re
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cascade_state.cli.running import MISUSED, run, stop

__all__ = ["serve"]

_EXTRA = ("httpx", "starlette", "uvicorn", "h11")
_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours"}


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.", show_default="5000"),
    ] = None,
    postgres_url: Annotated[
        str | None,
        typer.Option("--postgres-url", help="PostgreSQL, as clients reach it: postgresql://…; else the variables."),
    ] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Instead: start a PostgreSQL of its own, with a port on loopback.")
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option("--directory", help="Keeps what --embedded holds; else it goes with the server."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="CASCADE_STATE_TESTDB_TOKEN",
            help="Bearer token that requests must carry; the variable keeps it out of lists of processes.",
            show_default=False,
        ),
    ] = None,
    initial_pool_size: Annotated[
        int | None,
        typer.Option("--initial-pool-size", min=0, help="Copies of a template kept ready; else as many as CPUs."),
    ] = None,
    max_pool_size: Annotated[
        int | None,
        typer.Option("--max-pool-size", min=1, help="Copies of a template at most; else four times the CPUs."),
    ] = None,
    max_databases: Annotated[
        int | None,
        typer.Option("--max-databases", min=1, help="Copies of all templates at most; idle templates lose theirs."),
    ] = None,
    reclaim_after: Annotated[
        str | None,
        typer.Option(
            "--reclaim-after",
            help="When all copies are out: one that nobody has been connected to for so long is taken back, as 1s.",
            show_default="1s",
        ),
    ] = None,
    unclaimed_after: Annotated[
        str | None,
        typer.Option("--unclaimed-after", help="The same, when nobody ever was connected.", show_default="30s"),
    ] = None,
    abandoned_after: Annotated[
        str | None,
        typer.Option(
            "--abandoned-after",
            help="An unfinished template that nobody has been connected to for so long is given to the next who asks.",
            show_default="2m",
        ),
    ] = None,
) -> None:
    """Hand out test databases over HTTP, as IntegreSQL does; its variables (INTEGRESQL_…, PG…) hold, options win."""
    if postgres_url is not None and embedded:
        raise typer.BadParameter("give --postgres-url or --embedded, not both")
    if directory is not None and not embedded:
        raise typer.BadParameter("--directory goes with --embedded")
    try:
        from cascade_state.testing.integresql.serving import embedded_postgres
        from cascade_state.testing.integresql.serving import serve as serve_settings
        from cascade_state.testing.integresql.settings import Settings, postgres_of
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        stop(f"testdb serve needs {error.name}: install cascade-state[integresql]", MISUSED)

    async def work() -> None:
        settings = Settings.from_environment().changed(
            host=host,
            port=port,
            postgres=postgres_of(postgres_url) if postgres_url is not None else None,
            token=token,
            initial_pool_size=initial_pool_size,
            max_pool_size=max_pool_size,
            max_databases=max_databases,
            reclaim_after=_duration("--reclaim-after", reclaim_after),
            unclaimed_after=_duration("--unclaimed-after", unclaimed_after),
            abandoned_after=_duration("--abandoned-after", abandoned_after),
        )
        logging.getLogger("cascade_state").setLevel(settings.log_level)
        server = None
        async with AsyncExitStack() as scope:
            if embedded:
                settings, server = await scope.enter_async_context(embedded_postgres(settings, directory))
            where = settings.postgres.masked_url
            await serve_settings(
                settings, server=server, started=lambda url: typer.echo(f"listening on {url}, with {where}")
            )

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    run(work)


def _duration(option: str, text: str | None) -> timedelta | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h)?", text)
    if match is None:
        raise typer.BadParameter(f"{option} must be seconds, or a number with one of the units ms, s, m, h, as 500ms")
    return timedelta(**{_UNITS[match[2] or "s"]: float(match[1])})
