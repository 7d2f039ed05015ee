"""Two results files side by side: what got slower, what got faster.

Rates of two runs are hardly comparable; their ratios to the floors of the same run are. A ratio counts as changed when
it moved by more than the rounds of the two runs scatter. Growth is a ratio within one run, too: of the largest store
to the smallest.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.registry import OURS

__all__ = ["compare"]

_NOISE = 0.1  # part of a ratio that says nothing even when the rounds agree
_BUSY_NOISE = 0.5  # and more than this is not forgiven, however much they scatter
_GROWTH_NOISE = 0.25  # of a factor of growth, whose rounds are not kept


def compare(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, bool]:
    """Returns a table of what changed, and whether anything got slower."""
    earlier = {_key(result): result for result in before["results"]}
    lines: list[str] = []
    slower = False
    for result in after["results"]:
        old = earlier.pop(_key(result), None)
        if old is None:
            lines.append(f"| {_title(result)} | – | – | new |")
            continue
        for name in result["ratios"]:
            if name not in old["ratios"]:
                continue
            was, now = old["ratios"][name], result["ratios"][name]
            change = now / was
            allowed = min(_BUSY_NOISE, _NOISE + _scatter(old, name) + _scatter(result, name))
            if change < 1 - allowed:
                slower = True
                verdict = "SLOWER"
            elif change > 1 + allowed:
                verdict = "faster"
            else:
                continue
            lines.append(f"| {_title(result)}, × {name} | {was:.2f} | {now:.2f} | {verdict} by {abs(change - 1):.0%} |")
    lines += [f"| {_title(result)} | – | – | gone |" for result in earlier.values()]
    grown, grows_more = _growth(before.get("growth", []), after.get("growth", []))
    lines += grown
    if not lines:
        return "Nothing changed by more than the rounds scatter.", False
    return "\n".join(["| operation | before | after | |", "|---|---|---|---|", *lines]), slower or grows_more


def _growth(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """Returns the lines of what grows otherwise than before, and whether anything grows more."""
    earlier = {one["name"]: one for one in before}
    lines: list[str] = []
    grows_more = False
    for one in after:
        old = earlier.pop(one["name"], None)
        title = f"growth: {one['name']}"
        if old is None:
            lines.append(f"| {title} | – | – | new |")
        elif set(old["sizes"]) != set(one["sizes"]):
            lines.append(f"| {title} | {_span(old)} | {_span(one)} | other sizes, not compared |")
        else:
            change = one["factor"] / old["factor"]
            if abs(change - 1) > _GROWTH_NOISE:
                grows_more = grows_more or change > 1
                verdict = "GROWS MORE" if change > 1 else "grows less"
                lines.append(
                    f"| {title} | {old['factor']:.2f} | {one['factor']:.2f} | {verdict} by {abs(change - 1):.0%} |"
                )
    lines += [f"| growth: {name} | – | – | gone |" for name in earlier]
    return lines, grows_more


def _span(one: dict[str, Any]) -> str:
    sizes = sorted(int(size) for size in one["sizes"])
    return f"{sizes[0]:,} to {sizes[-1]:,}"


def _key(result: dict[str, Any]) -> tuple[str, str, int]:
    return result["group"], result["name"], result["tasks"]


def _title(result: dict[str, Any]) -> str:
    return f"{result['name']}, {result['tasks']} task{'s' if result['tasks'] > 1 else ''}"


def _scatter(result: dict[str, Any], name: str) -> float:
    """Returns the relative spread of the rounds' ratios: the middle half of them."""
    ours = result["contenders"][OURS]["per_second_of_rounds"]
    others = result["contenders"][name]["per_second_of_rounds"]
    ratios: list[float] = sorted(mine / other for mine, other in zip(ours, others, strict=True))
    quarter = len(ratios) // 4
    middle = ratios[quarter : len(ratios) - quarter]
    return (middle[-1] - middle[0]) / statistics.median(ratios)
