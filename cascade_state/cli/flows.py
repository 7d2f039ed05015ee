"""`purge`, `export` and `import`."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console

from cascade_state.abc import Store
from cascade_state.abc.repository import MAXIMUM_LIMIT
from cascade_state.cli.options import AsJson, PartitionCount, Schema, Url
from cascade_state.cli.printing import print_json
from cascade_state.cli.running import MISUSED, stop, with_store
from cascade_state.model.flow_status import FlowStatus

__all__ = ["export", "import_", "purge", "purge_events"]


class Ended(StrEnum):
    """The statuses of flows that may be purged."""

    COMPLETED = FlowStatus.COMPLETED.value
    FAILED = FlowStatus.FAILED.value
    CANCELLED = FlowStatus.CANCELLED.value


Before = Annotated[
    str | None,
    typer.Option("--before", help="An instant with its offset, as 2026-01-31T00:00:00+00:00."),
]
OlderThan = Annotated[
    str | None,
    typer.Option("--older-than", help="Instead: an age by this machine's clock, as 90d, 12h, 30m."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Remove what consumers of the feed have not handled, too: they never see it.")
]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def purge(
    url: Url,
    before: Before = None,
    older_than: OlderThan = None,
    status: Annotated[
        list[Ended] | None,
        typer.Option("--status", help="Only flows that ended so; may be repeated.", case_sensitive=False),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAXIMUM_LIMIT, help="How many flows go in one transaction.")
    ] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, say how many would go.")] = False,
    force: Force = False,
    schema: Schema = None,
    partition_count: PartitionCount = None,
    as_json: AsJson = False,
) -> None:
    """Remove flows that ended before an instant, with all that belongs to them, in batches that block nobody."""
    instant = _instant(before, older_than)
    statuses = [FlowStatus(ended.value) for ended in status or Ended]

    async def work(store: Store) -> int:
        flows = store.flow_instances
        if dry_run:
            return await flows.purge(instant, statuses=statuses, limit=MAXIMUM_LIMIT, dry_run=True, force=force)
        total = 0
        with Console(stderr=True).status("purging") as shown:
            while removed := await flows.purge(instant, statuses=statuses, limit=batch_size, force=force):
                total += removed
                shown.update(f"purging: {total} flows removed")
        return total

    total = with_store(url, schema, partition_count, work)
    if as_json:
        print_json({"flows": total, "before": instant, "dry_run": dry_run})
    elif dry_run:
        more = " or more" if total == MAXIMUM_LIMIT else ""
        typer.echo(f"{total}{more} flows would be removed")
    else:
        typer.echo(f"{total} flows removed")


def purge_events(
    url: Url,
    before: Before = None,
    older_than: OlderThan = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAXIMUM_LIMIT, help="How many events go in one transaction.")
    ] = 1000,
    force: Force = False,
    schema: Schema = None,
    partition_count: PartitionCount = None,
    as_json: AsJson = False,
) -> None:
    """Remove history that was recorded before an instant and that every consumer of the feed has handled."""
    instant = _instant(before, older_than)

    async def work(store: Store) -> int:
        total = 0
        with Console(stderr=True).status("purging") as shown:
            while removed := await store.feeds.purge_events(instant, limit=batch_size, force=force):
                total += removed
                shown.update(f"purging: {total} events removed")
        return total

    total = with_store(url, schema, partition_count, work)
    if as_json:
        print_json({"events": total, "before": instant})
    else:
        typer.echo(f"{total} events removed")


def export(
    flow_instance_id: Annotated[UUID, typer.Argument(help="The flow; its children go with it.")],
    url: Url,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write to this file instead of the standard output."),
    ] = None,
    schema: Schema = None,
    partition_count: PartitionCount = None,
) -> None:
    """Write a flow with all that belongs to it as a JSON document."""

    async def work(store: Store) -> Any:
        return await store.flow_instances.export(flow_instance_id)

    document = with_store(url, schema, partition_count, work)
    if output is None:
        print_json(document)
    else:
        output.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def import_(
    file: Annotated[str, typer.Argument(help="What `export` wrote; - reads the standard input.")],
    url: Url,
    schema: Schema = None,
    partition_count: PartitionCount = None,
    as_json: AsJson = False,
) -> None:
    """Store an exported flow, all of it or nothing; ids, versions and times are kept."""
    document = _document(file)

    async def work(store: Store) -> UUID:
        return (await store.flow_instances.import_(document)).flow_instance_id

    flow_instance_id = with_store(url, schema, partition_count, work)
    if as_json:
        print_json({"flow_instance_id": flow_instance_id})
    else:
        typer.echo(f"imported {flow_instance_id}")


def _document(file: str) -> Any:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        stop(f"cannot read {file}: {error.strerror}", MISUSED)
    except ValueError:  # neither JSON nor UTF-8; what is in it is nobody's business
        stop(f"{file} holds no JSON document", MISUSED)


def _instant(before: str | None, older_than: str | None) -> datetime:
    if (before is None) == (older_than is None):
        raise typer.BadParameter("give exactly one of --before and --older-than")
    if older_than is not None:
        return datetime.now(UTC) - _age(older_than)
    try:
        instant = datetime.fromisoformat(before or "")
    except ValueError:
        raise typer.BadParameter("--before must be an instant, as 2026-01-31T00:00:00+00:00") from None
    if instant.tzinfo is None:
        raise typer.BadParameter("--before needs an offset from UTC, as 2026-01-31T00:00:00+00:00")
    return instant


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise typer.BadParameter("--older-than must be a number with one of the units s, m, h, d, w, as 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
