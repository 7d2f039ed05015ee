"""OpenTelemetry metrics and spans, when `opentelemetry-api` is installed (the extra `otel`); nothing when not.

The application decides where they go by setting OpenTelemetry's global providers, as for any library. Nothing here
carries a payload: attributes are ids, names and counts, and of an error its type. `METRICS` is what there is; the
documentation lists it, and a test sees each one emitted. Anybody may import this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

__all__ = ["METRICS", "SPANS", "Metric", "add", "record", "span"]

_NAME = "cascade_state"

Attribute: TypeAlias = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument. A "counter" only grows, an "up_down" goes both ways, a "histogram" gathers measurements."""

    instrument: Literal["counter", "up_down", "histogram"]
    unit: str
    attributes: tuple[str, ...]
    description: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "cascade_state.worker.claimed": Metric("counter", "{item}", ("kind",), "what a worker claimed"),
        "cascade_state.worker.handled": Metric(
            "counter",
            "{item}",
            ("kind", "outcome"),
            "what became of it: done, retried, given_up, lost, released or failed",
        ),
        "cascade_state.worker.in_hand": Metric("up_down", "{item}", ("kind",), "what a worker holds now"),
        "cascade_state.worker.handler.duration": Metric(
            "histogram", "s", ("kind", "outcome"), "from the start of a handler to the end of its commit"
        ),
        "cascade_state.worker.lateness": Metric(
            "histogram",
            "s",
            ("kind",),
            "from when a timer was due, or a delivery made, to the start of its handler (a delivery: the first time)",
        ),
        "cascade_state.worker.wakes": Metric(
            "counter", "{wake}", ("kind", "reason"), "why a loop looked for work: due, hint or poll"
        ),
        "cascade_state.worker.leases.lost": Metric(
            "counter", "{lease}", ("kind",), "leases that a renewal or a commit found lost"
        ),
        "cascade_state.feed.events": Metric(
            "counter", "{event}", ("consumer",), "events whose batch a feed consumer committed"
        ),
        "cascade_state.feed.batches": Metric(
            "counter",
            "{batch}",
            ("consumer", "outcome"),
            "what became of a batch: full or done, nothing (somebody else has it), lost or failed",
        ),
        "cascade_state.feed.batch.duration": Metric(
            "histogram", "s", ("consumer", "outcome"), "from the start of a batch to the end of its commit"
        ),
        "cascade_state.worker.store_errors": Metric(
            "counter", "{error}", ("kind",), "errors of the store that a loop got over"
        ),
    }
)

# Name -> what it lasts.
SPANS: Mapping[str, str] = MappingProxyType(
    {
        "cascade_state.handle": "one call of a handler with its transaction; `kind`, `outcome`, `flow_instance_id`, "
        "`step_id`, `attempts`",
        "cascade_state.feed.batch": "one batch of a feed consumer with its transaction; `consumer`, `partition_id`, "
        "`outcome`, `events`",
    }
)


def add(name: str, amount: int = 1, **attributes: Attribute) -> None:
    """Adds to a counter."""
    instrument = _instrument(name)
    if instrument is not None:
        instrument.add(amount, attributes)


def record(name: str, value: float, **attributes: Attribute) -> None:
    """Records a measurement."""
    instrument = _instrument(name)
    if instrument is not None:
        instrument.record(value, attributes)


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[dict[str, Attribute]]:
    """Opens a span; what is put into the dictionary that it gives becomes attributes of it."""
    tracer = _tracer()
    late: dict[str, Attribute] = {}
    if tracer is None:
        yield late
        return
    with tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield late
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            current.set_attributes(late)


@cache
def _instrument(name: str) -> Any:
    try:
        from opentelemetry import metrics
    except ImportError:
        return None
    metric = METRICS[name]
    meter = metrics.get_meter(_NAME)
    create = {
        "counter": meter.create_counter,
        "up_down": meter.create_up_down_counter,
        "histogram": meter.create_histogram,
    }[metric.instrument]
    return create(name, unit=metric.unit, description=metric.description)


@cache
def _tracer() -> Any:
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer(_NAME)
