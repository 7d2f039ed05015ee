"""Figures of a run of its own take the place of those of the same name."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.merging import merged


def _document(*growing: str, bloat: Any = None, **rates: int) -> dict[str, Any]:
    return {
        "machine": {"cores": 2, "postgresql": "18.4"},
        "results": [{"group": "g", "name": name, "tasks": 1, "rate": rate} for name, rate in rates.items()],
        "growth": [{"name": name, "sizes": sizes.split("+")} for name, sizes in (one.split(":") for one in growing)],
        "bloat": bloat,
    }


def test_newer_figures_take_the_place_of_those_of_the_same_name() -> None:
    figures = _document("get:1+2", "find:1+2", bloat={"cycles": 9}, get=10, put=20)
    together = merged(figures, _document("find:1+2+3", "page:1+2+3", put=21, add=30))
    assert together == _document("get:1+2", "find:1+2+3", "page:1+2+3", bloat={"cycles": 9}, get=10, put=21, add=30)
    assert merged(figures, _document(bloat={"cycles": 10}))["bloat"] == {"cycles": 10}


def test_figures_of_another_machine_are_refused() -> None:
    elsewhere = _document(get=10)
    elsewhere["machine"] = {"cores": 64, "postgresql": "18.4"}
    with pytest.raises(ValueError, match=r"^measured elsewhere: cores differ$"):
        merged(_document(get=20), elsewhere)
