"""What a feed consumer tells OpenTelemetry: every metric that is documented, with its attributes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from cascade_state import FeedConsumer, FlowEvent, Store, UnitOfWork, telemetry
from cascade_state.testing import factories
from cascade_state.testing.contracts.feed_consumers import running, until
from tests.coordination.feed_effects import QUICK


class Instrument:
    """Keeps what it is told, in the place of an instrument of the SDK."""

    def __init__(self) -> None:
        self.told: list[tuple[float, dict[str, Any]]] = []

    def add(self, value: float, attributes: dict[str, Any]) -> None:
        self.told.append((value, attributes))

    record = add


async def test_every_metric_of_the_feed_is_emitted(memory_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    instruments: dict[str, Instrument] = defaultdict(Instrument)
    monkeypatch.setattr(telemetry, "_instrument", lambda name: instruments[name])
    is_broken = True

    async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
        if is_broken:
            raise RuntimeError("not yet")

    async def has_failed() -> bool:
        return bool(await memory_store.feeds.list_failing())

    async def is_caught_up() -> bool:
        return not (await memory_store.feeds.lag("invoices")).events

    await factories.add_flow(memory_store)
    async with running(FeedConsumer(memory_store, name="invoices", handler=handle, handle_signals=False, **QUICK)):
        await until(has_failed)
        is_broken = False
        await until(is_caught_up)
    documented = {name: metric for name, metric in telemetry.METRICS.items() if ".feed." in name}
    emitted = {name: instrument for name, instrument in instruments.items() if ".feed." in name}
    assert emitted.keys() == documented.keys()
    for name, instrument in emitted.items():
        for _, attributes in instrument.told:
            assert set(attributes) == set(documented[name].attributes), name
    assert sum(value for value, _ in emitted["cascade_state.feed.events"].told) == 2
    outcomes = {attributes["outcome"] for _, attributes in emitted["cascade_state.feed.batches"].told}
    assert outcomes == {"failed", "done"}
