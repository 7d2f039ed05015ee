"""Horizontal bars with a name before and a figure behind them, for the generated pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from scripts.drawing import ACCENT, FAINT, LINE, Drawing

__all__ = ["ROW", "draw_bars"]

ROW = 30
_LEAST = 2.0


def _one_digit(value: float) -> str:
    return f"{value:.1f}"


def draw_bars(
    drawing: Drawing,
    values: Mapping[str, float],
    *,
    top: float,
    left: float,
    width: float,
    highlighted: Collection[str],
    text: Callable[[float], str] = _one_digit,
    logarithmic: bool = False,
) -> None:
    """Draws a bar for each value below `top`, the longest one `width` long; names end at `left`.

    On a logarithmic scale the bars begin a little below the smallest value.
    """
    most, origin = max(values.values()), min(values.values()) / 2
    for number, (name, value) in enumerate(values.items()):
        part = math.log(value / origin) / math.log(most / origin) if logarithmic else value / most
        length = max(_LEAST, part * width)
        y = top + number * ROW
        drawing.text(left - 12, y + 15, name, anchor="end")
        drawing.box(left, y, length, 20, fill=ACCENT if name in highlighted else LINE, radius=2)
        drawing.text(left + length + 8, y + 15, text(value), colour=FAINT)
