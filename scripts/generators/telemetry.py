"""The page of metrics and spans, from the tables that the code emits from."""

from __future__ import annotations

from cascade_state.telemetry import METRICS, SPANS

HEAD = """\
# Metrics and traces

With `pip install "cascade-state[otel]"` these are emitted through OpenTelemetry's global providers, which your
application sets; without it nothing is. No attribute carries a payload; of an error its type is told.

| metric | instrument | unit | attributes | what it measures |
|---|---|---|---|---|
"""

SPAN_HEAD = """
| span | what it lasts, and its attributes |
|---|---|
"""


def generate() -> dict[str, str]:
    """Return the page."""
    rows = "".join(
        f"| `{name}` | {metric.instrument} | {metric.unit} | {', '.join(metric.attributes)} | {metric.description} |\n"
        for name, metric in METRICS.items()
    )
    spans = "".join(f"| `{name}` | {what} |\n" for name, what in SPANS.items())
    return {"docs/reference/telemetry.md": HEAD + rows + SPAN_HEAD + spans}
