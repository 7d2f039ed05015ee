"""The examples are those of the PostgreSQL manual, 8.14.3, and what the manual says about numbers and nesting."""

from __future__ import annotations

from typing import Any

import pytest

from cascade_state.memory.containment import contains


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        ({"a": 1, "b": 2}, {}),
        ({"a": 1, "b": 2}, {"b": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 2}}),
        ({"a": [1, 2, 3]}, {"a": [3, 1]}),
        ({"a": [1, 2, 3]}, {"a": [1, 1]}),
        ({"a": [1, 2, [1, 3]]}, {"a": [[3]]}),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": -0.0}, {"a": 0}),
        ({"a": None}, {"a": None}),
        ({"a": True}, {"a": True}),
        ({"a": []}, {"a": []}),
        ({"a": [1]}, {"a": []}),
        ({"a": "x"}, {"a": "x"}),
    ],
)
def test_contained(whole: Any, part: Any) -> None:
    assert contains(whole, part)


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        ({}, {"a": None}),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": "1"}),
        ({"a": 1}, {"a": True}),
        ({"a": True}, {"a": 1}),
        ({"a": 0}, {"a": False}),
        ({"a": None}, {"a": False}),
        ({"a": ["foo"]}, {"a": "foo"}),  # only at the top may an array contain a bare scalar
        ({"a": "foo"}, {"a": ["foo"]}),
        ({"a": [1, 2, [1, 3]]}, {"a": [3]}),
        ({"a": {"b": {"c": 1}}}, {"a": {"c": 1}}),
        ({"a": {}}, {"a": []}),
        ({"a": []}, {"a": {}}),
        ({"a": 2**53 + 1}, {"a": float(2**53)}),
    ],
)
def test_not_contained(whole: Any, part: Any) -> None:
    assert not contains(whole, part)
