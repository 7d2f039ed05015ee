"""Every documented metric and span is emitted, with its documented attributes; without the extra, nothing is."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cascade_state import Delivery, StoreUnavailable, Timer, UnitOfWork, open_store, telemetry
from cascade_state.coordination import Backoff, GiveUp, Worker
from cascade_state.telemetry import METRICS, SPANS
from cascade_state.testing import factories

_READER = InMemoryMetricReader()
_EXPORTER = InMemorySpanExporter()
_ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module", autouse=True)
def _providers() -> None:
    """OpenTelemetry's providers are global and can be set once in a process."""
    metrics.set_meter_provider(MeterProvider([_READER]))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_EXPORTER))
    trace.set_tracer_provider(provider)


def _points() -> Iterator[tuple[str, dict[str, Any], Any]]:
    data = _READER.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    yield metric.name, dict(point.attributes or {}), point


async def _work() -> None:
    """A worker's life with all that is measured in it."""
    async with open_store("memory://") as store:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.correlations.publish("parcel-77", {"secret": "payload-77"})
        steps = ("done", "fails", "given up", "lost")
        for step in steps:
            await store.timers.schedule(flow.flow_instance_id, step, after=timedelta(0))
        handled: set[str] = set()

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            handled.add(item.step_id)
            if item.step_id == "fails" and item.attempts == 1:
                raise ValueError("payload-77")
            if item.step_id == "given up":
                raise GiveUp("enough")
            if item.step_id == "lost":
                await store.timers.cancel(item.timer_id)

        async def on_delivery(item: Delivery, uow: UnitOfWork) -> None:
            handled.add("delivery")

        backoff = Backoff(initial=timedelta(milliseconds=1), jitter=0)
        poll = timedelta(milliseconds=20)
        worker = Worker(store, on_timer=on_timer, on_delivery=on_delivery, backoff=backoff, poll_interval=poll)
        claims = store.timers.claim_due
        failures = 0

        async def failing(*arguments: Any, **options: Any) -> Any:
            nonlocal failures
            failures += 1
            if failures == 1:
                raise StoreUnavailable(reason="for the test")
            return await claims(*arguments, **options)

        store.timers.claim_due = failing  # type: ignore[method-assign]
        running = asyncio.create_task(worker.run())

        async def until_done(*wanted: str) -> None:
            while True:
                if handled >= set(wanted) and not worker.in_hand and not (await store.statistics()).timers_pending:
                    return
                await asyncio.sleep(0.01)

        async with asyncio.timeout(20):
            await until_done(*steps, "delivery")
            await asyncio.sleep(0.1)  # some polls
            await store.timers.schedule(flow.flow_instance_id, "later", after=timedelta(milliseconds=10))
            await until_done("later")
            await worker.stop()
            await running


async def test_every_documented_metric_is_emitted_with_its_attributes() -> None:
    await _work()
    seen: dict[str, list[tuple[dict[str, Any], Any]]] = {}
    for name, attributes, point in _points():
        seen.setdefault(name, []).append((attributes, point))
    ours = {name for name in METRICS if name.startswith("cascade_state.worker.")}
    assert ours <= set(seen)
    for name in ours:
        for attributes, _ in seen[name]:
            assert set(attributes) == set(METRICS[name].attributes), name
    outcomes = {attributes["outcome"] for attributes, _ in seen["cascade_state.worker.handled"]}
    assert outcomes >= {"done", "retried", "given_up", "lost"}
    assert {attributes["reason"] for attributes, _ in seen["cascade_state.worker.wakes"]} >= {"due", "hint", "poll"}
    for _, point in seen["cascade_state.worker.in_hand"]:
        assert point.value == 0
    assert sum(point.count for _, point in seen["cascade_state.worker.lateness"]) >= 6


async def test_a_span_for_each_call_of_a_handler_and_no_payload_in_it() -> None:
    _EXPORTER.clear()
    await _work()
    spans = _EXPORTER.get_finished_spans()
    assert {span.name for span in spans} == set(SPANS) & {"cascade_state.handle"}
    for span in spans:
        assert span.attributes is not None
        assert {"kind", "outcome", "flow_instance_id", "step_id", "attempts"} <= set(span.attributes)
        assert "payload-77" not in span.to_json()


def test_an_error_is_told_by_its_type() -> None:
    _EXPORTER.clear()
    with pytest.raises(ValueError, match="secret"), telemetry.span("cascade_state.handle", kind="timer"):
        raise ValueError("secret")
    (span,) = _EXPORTER.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ValueError"
    assert "secret" not in span.to_json()


def test_the_documentation_lists_every_metric_and_span() -> None:
    page = (_ROOT / "docs" / "reference" / "telemetry.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(cascade_state\.[a-z_.]+)`", page)) == {*METRICS, *SPANS}


def test_without_the_extra_nothing_happens() -> None:
    code = (
        "import sys\nsys.modules['opentelemetry'] = None\n"
        "from cascade_state import telemetry\n"
        "telemetry.add('cascade_state.worker.claimed', kind='timer')\n"
        "telemetry.record('cascade_state.worker.lateness', 1.0, kind='timer')\n"
        "with telemetry.span('cascade_state.handle', kind='timer') as attributes:\n"
        "    attributes['outcome'] = 'done'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
