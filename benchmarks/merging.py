"""Figures of a run of its own put among those of another: what takes a disk or a night need not be taken each time."""

from __future__ import annotations

from typing import Any

__all__ = ["merged"]


def merged(figures: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures with the newer ones in the place of those of the same name; new names come last.

    Raises:
        ValueError: They were not measured on the same machine with the same versions.
    """
    different = [name for name, value in newer["machine"].items() if figures["machine"].get(name) != value]
    if different:
        raise ValueError(f"measured elsewhere: {', '.join(different)} differ")
    return {
        **figures,
        "results": _replaced(figures["results"], newer["results"], ("group", "name", "tasks")),
        "growth": _replaced(figures["growth"], newer["growth"], ("name",)),
        "bloat": newer["bloat"] or figures["bloat"],
    }


def _replaced(ones: list[dict[str, Any]], newer: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    by_key = {tuple(one[name] for name in names): one for one in (*ones, *newer)}
    return list(by_key.values())
