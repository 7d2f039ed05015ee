"""Counters of this process, and their text for Prometheus.

Source: Prometheus documentation, "Exposition formats".
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Figures", "Metric", "exposition"]

# Seconds: a warm pool answers in the first, a copy takes one of the middle ones, an exhausted pool the last.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric with its samples: suffix of the name, labels, value."""

    name: str
    kind: str
    meaning: str
    samples: Iterable[tuple[str, Mapping[str, str], float]]


@dataclass(slots=True)
class Figures:
    """What happened since the process started."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    waits: list[int] = field(default_factory=lambda: [0] * (len(_BUCKETS) + 1))
    waited: float = 0.0
    waiting: int = 0

    def count_request(self, operation: str, method: str, status: int) -> None:
        """Counts an answered request."""
        self.requests[operation, method, status] += 1

    def count_wait(self, seconds: float) -> None:
        """Counts a test database that was handed out after so long."""
        self.waits[bisect_left(_BUCKETS, seconds)] += 1
        self.waited += seconds

    def metrics(self) -> list[Metric]:
        """Returns what was counted."""
        return [
            Metric(
                name="requests_total",
                kind="counter",
                meaning="Answered requests.",
                samples=[
                    ("", {"operation": operation, "method": method, "status": str(status)}, count)
                    for (operation, method, status), count in sorted(self.requests.items())
                ],
            ),
            Metric(
                name="waiting",
                kind="gauge",
                meaning="Requests that wait for a test database now.",
                samples=[("", {}, self.waiting)],
            ),
            Metric(
                name="wait_seconds",
                kind="histogram",
                meaning="How long requests waited for the test database that they got.",
                samples=list(self._histogram()),
            ),
        ]

    def _histogram(self) -> Iterable[tuple[str, Mapping[str, str], float]]:
        total = 0
        for bound, count in zip((*map(str, _BUCKETS), "+Inf"), self.waits, strict=True):
            total += count
            yield "_bucket", {"le": bound}, total
        yield "_sum", {}, self.waited
        yield "_count", {}, total


def exposition(metrics: Iterable[Metric]) -> str:
    """Returns the metrics in Prometheus's text format, with the prefix of all our names."""
    lines: list[str] = []
    for metric in metrics:
        name = f"cascade_state_testdb_{metric.name}"
        lines += [f"# HELP {name} {metric.meaning}", f"# TYPE {name} {metric.kind}"]
        lines += [f"{name}{suffix}{_labels(labels)} {value:g}" for suffix, labels, value in metric.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
