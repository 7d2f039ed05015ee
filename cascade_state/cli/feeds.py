"""`feeds`: the consumers of the feed, how far behind each is, and what stops it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from cascade_state.abc import Store
from cascade_state.abc.repository import MAXIMUM_LIMIT
from cascade_state.cli.options import AsJson, PartitionCount, Schema, Url
from cascade_state.cli.printing import print_columns, print_json
from cascade_state.cli.running import with_store

__all__ = ["list_", "pause", "remove", "reset", "resume"]

Consumer = Annotated[str, typer.Argument(help="The name of the consumer.")]


class Start(StrEnum):
    """Where a consumer can start."""

    BEGINNING = "beginning"
    NOW = "now"


def list_(url: Url, schema: Schema = None, partition_count: PartitionCount = None, as_json: AsJson = False) -> None:
    """List the consumers of the feed: how far behind, paused or not, and in how many partitions they fail."""

    async def work(store: Store) -> list[dict[str, Any]]:
        consumers = await store.feeds.list_consumers(limit=MAXIMUM_LIMIT)
        return [await _described(store, asdict(found)) for found in consumers]

    found = with_store(url, schema, partition_count, work)
    if as_json:
        print_json(found)
        return
    rows = [
        (item["consumer"], item["lag"], item["oldest_recorded_at"], item["paused_at"], len(item["failing"]))
        for item in found
    ]
    print_columns("Consumers", ("consumer", "lag", "oldest event", "paused", "failing partitions"), rows)
    failing = [
        (failure["consumer"], failure["partition_id"], failure["attempts"], failure["failed_at"], failure["last_error"])
        for item in found
        for failure in item["failing"]
    ]
    if failing:
        print_columns("Failing", ("consumer", "partition", "attempts", "since the last", "error"), failing)


def pause(
    consumer: Consumer, url: Url, schema: Schema = None, partition_count: PartitionCount = None, as_json: AsJson = False
) -> None:
    """Pause a consumer, everywhere, until it is resumed. Batches in hand are finished."""
    _change(consumer, (url, schema, partition_count), lambda store: store.feeds.pause(consumer), "paused", as_json)


def resume(
    consumer: Consumer, url: Url, schema: Schema = None, partition_count: PartitionCount = None, as_json: AsJson = False
) -> None:
    """Let a paused consumer go on where it was."""
    _change(consumer, (url, schema, partition_count), lambda store: store.feeds.resume(consumer), "resumed", as_json)


def reset(
    consumer: Consumer,
    url: Url,
    start: Annotated[Start, typer.Option("--start", help="Where it begins again.")] = Start.BEGINNING,
    schema: Schema = None,
    partition_count: PartitionCount = None,
    as_json: AsJson = False,
) -> None:
    """Put a consumer, which must not be running, back to the beginning, or to now."""

    async def work(store: Store) -> bool:
        await store.feeds.get(consumer)  # a wrong name is not to make a new one
        await store.feeds.reset(consumer, start.value)
        return True

    _change(consumer, (url, schema, partition_count), work, f"reset to {start.value}", as_json)


def remove(
    consumer: Consumer, url: Url, schema: Schema = None, partition_count: PartitionCount = None, as_json: AsJson = False
) -> None:
    """Remove a consumer, which must not be running. What only it had not handled may be purged then."""

    async def work(store: Store) -> bool:
        await store.feeds.get(consumer)
        return await store.feeds.remove(consumer)

    _change(consumer, (url, schema, partition_count), work, "removed", as_json)


async def _described(store: Store, consumer: dict[str, Any]) -> dict[str, Any]:
    lag = await store.feeds.lag(consumer["consumer"])
    failing = await store.feeds.list_failing(consumer["consumer"], limit=MAXIMUM_LIMIT)
    return {
        **consumer,
        "lag": lag.events,
        "oldest_recorded_at": lag.oldest_recorded_at,
        "failing": [asdict(failure) for failure in failing],
    }


def _change(
    consumer: str,
    place: tuple[str, str | None, int | None],
    work: Callable[[Store], Awaitable[bool]],
    what: str,
    as_json: bool,
) -> None:
    """Runs a change and says whether there was anything to change."""
    changed = with_store(*place, work)
    if as_json:
        print_json({"consumer": consumer, "changed": changed})
    else:
        typer.echo(f"{consumer} {what}" if changed else f"{consumer} was {what} already")
