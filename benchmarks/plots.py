"""Pictures of a results document: latencies, throughput by concurrency, growth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.registry import BARE, OURS
from scripts.drawing import ACCENT, FAINT, FILL, INK, LINE, Drawing

__all__ = ["growth_picture", "latency_picture", "throughput_picture"]

_COLOURS = {OURS: ACCENT, BARE: "#0f766e", "ORM": "#b45309"}
_WIDTH = 960
_LEFT, _RIGHT = 250, 40


class _Logarithmic:
    """A logarithmic axis from one coordinate to another."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)) * 3) / 3
        self._high = math.ceil(math.log10(max(values)) * 3) / 3
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        part = (math.log10(value) - self._low) / max(self._high - self._low, 1e-9)
        return self._begin + part * (self._end - self._begin)

    def marks(self) -> list[float]:
        """Round values on the axis."""
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        found = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
        return [value for value in found if self._low <= math.log10(value) <= self._high]


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _legend(drawing: Drawing, names: Sequence[str], y: float) -> None:
    x = float(_LEFT)
    for name in names:
        colour = _COLOURS.get(name, FAINT)
        drawing.box(x, y - 10, 12, 12, fill=colour, stroke=colour, radius=2)
        drawing.text(x + 18, y, name, size=12)
        x += 30 + 8 * len(name)


def _contenders(results: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in _COLOURS if any(name in result["contenders"] for result in results)]


def latency_picture(results: Sequence[dict[str, Any]], title: str) -> str:
    """Returns a row for each result: from the 5th to the 95th percentile, with the median, for each contender."""
    names = _contenders(results)
    figures = [result["contenders"][name] for result in results for name in names if name in result["contenders"]]
    scale = _Logarithmic([value for one in figures for value in one["quantiles_ms"]], _LEFT, _WIDTH - _RIGHT)
    row = 18 + 14 * len(names)
    drawing = Drawing(_WIDTH, 90 + row * len(results), title)
    drawing.text(20, 30, title, size=16, weight="bold")
    _legend(drawing, names, 54)
    bottom = 70 + row * len(results)
    for mark in scale.marks():
        drawing.line([(scale(mark), 66), (scale(mark), bottom)], colour=FILL)
        drawing.text(scale(mark), bottom + 14, f"{_text(mark)} ms", size=11, colour=FAINT, anchor="middle")
    for place, result in enumerate(results):
        top = 76 + row * place
        tasks = f"{result['tasks']} task" + "s" * (result["tasks"] > 1)
        drawing.text(20, top + 12, result["name"], size=12)
        drawing.text(20, top + 27, tasks, size=11, colour=FAINT)
        for line, name in enumerate(names):
            if name in result["contenders"]:
                _spread(drawing, scale, result["contenders"][name], top + 14 * line, _COLOURS[name])
    return drawing.svg()


def _spread(drawing: Drawing, scale: _Logarithmic, figures: dict[str, Any], y: float, colour: str) -> None:
    quantiles = figures["quantiles_ms"]
    drawing.line([(scale(quantiles[0]), y + 5), (scale(quantiles[-1]), y + 5)], colour=colour)
    low, high = scale(quantiles[4]), scale(quantiles[14])
    drawing.box(low, y + 1, max(high - low, 1), 8, fill=colour, stroke=colour, radius=2)
    middle = scale(figures["p50_ms"])
    drawing.line([(middle, y - 2), (middle, y + 12)], colour=INK)


def throughput_picture(results: Sequence[dict[str, Any]], title: str) -> str:
    """Returns a panel for each operation: operations a second by the number of tasks, a line for each contender."""
    operations = list(dict.fromkeys(result["name"] for result in results))
    names = _contenders(results)
    columns = 3
    width, height = (_WIDTH - 60) / columns, 210.0
    rows = math.ceil(len(operations) / columns)
    drawing = Drawing(_WIDTH, round(80 + height * rows), title)
    drawing.text(20, 30, title, size=16, weight="bold")
    _legend(drawing, names, 54)
    for place, operation in enumerate(operations):
        left = 30 + width * (place % columns)
        top = 74 + height * (place // columns)
        _panel(drawing, [one for one in results if one["name"] == operation], (left, top, width, height))
    return drawing.svg()


def _panel(drawing: Drawing, results: Sequence[dict[str, Any]], place: tuple[float, float, float, float]) -> None:
    left, top, width, height = place
    by_tasks = sorted(results, key=lambda one: int(one["tasks"]))
    highest = max(figures["per_second"] for one in by_tasks for figures in one["contenders"].values())
    bottom, inner = top + height - 44, height - 80
    drawing.text(left + 8, top + 14, results[0]["name"], size=12, weight="bold")
    drawing.line([(left + 8, bottom), (left + width - 16, bottom)], colour=LINE)
    drawing.text(left + width - 16, top + 30, f"{highest:,.0f} a second", size=10, colour=FAINT, anchor="end")
    drawing.line([(left + 8, bottom - inner), (left + width - 16, bottom - inner)], colour=LINE, dashed=True)
    step = (width - 60) / max(len(by_tasks) - 1, 1)
    xs = [left + 28 + step * number for number in range(len(by_tasks))]
    for x, one in zip(xs, by_tasks, strict=True):
        drawing.text(
            x, bottom + 16, f"{one['tasks']} tasks" if one["tasks"] > 1 else "1 task", size=10, anchor="middle"
        )
    for name, colour in _COLOURS.items():
        points = [
            (x, bottom - inner * one["contenders"][name]["per_second"] / highest)
            for x, one in zip(xs, by_tasks, strict=True)
            if name in one["contenders"]
        ]
        if points:
            drawing.line(points, colour=colour)
            for x, y in points:
                drawing.box(x - 3, y - 3, 6, 6, fill=colour, stroke=colour, radius=3)


def growth_picture(results: Sequence[dict[str, Any]], title: str) -> str:
    """Returns the median of each operation by the size of the store, both logarithmic."""
    sizes = sorted(int(size) for size in results[0]["sizes"])
    medians = [one["sizes"][str(size)]["p50_ms"] for one in results for size in sizes]
    bottom = 80 + 24 * len(results)
    drawing = Drawing(_WIDTH, bottom + 40, title)
    across = _Logarithmic(sizes, 60, 560)
    up = _Logarithmic(medians, bottom - 10, 60)
    drawing.text(20, 30, title, size=16, weight="bold")
    for mark in up.marks():
        drawing.line([(60, up(mark)), (560, up(mark))], colour=FILL)
        drawing.text(54, up(mark) + 4, f"{_text(mark)} ms", size=10, colour=FAINT, anchor="end")
    for size in sizes:
        drawing.text(across(size), bottom + 14, f"{size:,}", size=11, colour=FAINT, anchor="middle")
    drawing.text(310, bottom + 30, "flows and timers in the store", size=11, colour=FAINT, anchor="middle")
    ends = sorted(results, key=lambda one: -float(one["sizes"][str(sizes[-1])]["p50_ms"]))
    for place, one in enumerate(ends):
        colour = "#b45309" if one["grows"] else ACCENT
        points = [(across(size), up(one["sizes"][str(size)]["p50_ms"])) for size in sizes]
        drawing.line(points, colour=colour)
        label = 66 + (bottom - 76) * (place + 0.5) / len(ends)
        drawing.line([points[-1], (600, label)], colour=LINE, dashed=True)
        drawing.text(606, label + 4, f"{one['name']}: × {one['factor']:.2f}", size=12)
    return drawing.svg()
