"""From a subcommand to a coroutine with a store, and from an error to an exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import typer

from cascade_state.abc import Store
from cascade_state.errors import CascadeStateError, UsageError
from cascade_state.ids import DEFAULT_PARTITION_COUNT
from cascade_state.opening import open_store

__all__ = ["FAILED", "MISUSED", "run", "stop", "with_store"]

T = TypeVar("T")

FAILED = 1
MISUSED = 2  # what typer itself says to a wrong option


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Runs the work of a subcommand; one of our errors ends the process with its message instead of a traceback."""

    async def all_of_it() -> T:
        return await work()

    try:
        return asyncio.run(all_of_it())
    except CascadeStateError as error:
        stop(str(error), MISUSED if isinstance(error, UsageError) else FAILED)


def with_store(url: str, schema: str | None, partition_count: int | None, work: Callable[[Store], Awaitable[T]]) -> T:
    """Runs work on an open store; without a partition count, the one that the database has."""

    async def opened() -> T:
        count = partition_count or await _stored_partition_count(url, schema) or DEFAULT_PARTITION_COUNT
        async with open_store(url, schema=schema, partition_count=count, application_name="cascade-state") as store:
            return await work(store)

    return run(opened)


def stop(message: str, code: int) -> NoReturn:
    """Ends the process: the message goes to the standard error."""
    typer.echo(f"cascade-state: {message}", err=True)
    raise typer.Exit(code)


async def _stored_partition_count(url: str, schema: str | None) -> int | None:
    if not url.startswith("postgresql"):
        return None
    from cascade_state.postgres.schema import installed_schema

    return (await installed_schema(url, schema=schema)).partition_count
