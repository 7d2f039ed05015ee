"""`statistics`."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import typer

from cascade_state.abc import Store
from cascade_state.cli.options import AsJson, PartitionCount, Schema, Url
from cascade_state.cli.printing import print_json, print_table
from cascade_state.cli.running import with_store
from cascade_state.model.flow_status import FlowStatus

__all__ = ["show"]


Exact = Annotated[bool, typer.Option("--exact", help="Count also what would be estimated, however long it takes.")]


def show(
    url: Url,
    schema: Schema = None,
    partition_count: PartitionCount = None,
    exact: Exact = False,
    as_json: AsJson = False,
) -> None:
    """Show how many flows, timers, deliveries and dead letters there are; ~ marks an estimate."""

    async def work(store: Store) -> dict[str, Any]:
        found = await store.statistics(exact=exact)
        return {item.name: getattr(found, item.name) for item in fields(found)}

    figures = with_store(url, schema, partition_count, work)
    by_status = figures["instances_by_status"]
    figures["instances_by_status"] = {status.value: by_status.get(status, 0) for status in FlowStatus}
    estimated = figures.pop("estimated")
    if as_json:
        print_json({**figures, "estimated": sorted(estimated)})
        return
    counts = figures.pop("instances_by_status")
    for name in estimated:
        group, _, status = name.rpartition(".")
        shown = counts if group else figures
        shown[status] = f"~{shown[status]}"
    print_table("Flow instances", counts.items())
    lags, failures = figures.pop("consumer_lags"), figures.pop("consumer_failures")
    print_table("Work", ((name.replace("_", " "), value) for name, value in figures.items()))
    if lags:
        print_table("Lag of consumers", lags.items())
    if failures:
        print_table("Failures", failures.items())
