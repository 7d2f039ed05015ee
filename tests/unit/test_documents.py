from __future__ import annotations

import json
import math
from collections import OrderedDict
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_state.errors import InvalidArgument
from cascade_state.model import documents

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT)
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner), st.dictionaries(TEXT, inner)), max_leaves=30)


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types, and with the same sign of zero."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


@given(DOCUMENTS)
def test_what_is_loaded_is_what_was_dumped(value: Any) -> None:
    assert same(documents.load(documents.dump(value, "x")), value)


@given(DOCUMENTS)
def test_the_quick_way_and_the_careful_way_agree(value: Any) -> None:
    assert documents.dump(value, "x") == json.dumps(
        documents.normalize(value, "x"), ensure_ascii=False, separators=(",", ":")
    )


@given(st.dictionaries(TEXT, DOCUMENTS, max_size=3))
def test_search_attributes_keep_their_types(value: dict[str, Any]) -> None:
    numbers: list[str] = []
    text = documents.dump_search_attributes(value, "x")
    assert same(documents.load(text), value)
    json.loads(text, parse_float=numbers.append)
    assert not any("e+" in number for number in numbers)  # jsonb would make an integer of it


@given(DOCUMENTS)
def test_normalizing_gives_an_equal_copy_that_shares_nothing_mutable(value: Any) -> None:
    copy = documents.normalize(value, "x")
    assert same(copy, value)
    if isinstance(value, (dict, list)):
        assert copy is not value


@given(st.dictionaries(TEXT, SCALARS, min_size=2))
def test_the_canonical_form_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert documents.dump_canonical(value, "x") == documents.dump_canonical(backwards, "x")


class Color(StrEnum):
    RED = "red"

    def __str__(self) -> str:
        return "not what it is"


class Number(int):
    def __repr__(self) -> str:
        return "not what it is"


class Fraction(float):
    def __repr__(self) -> str:
        return "not what it is"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1, (2,)), "[1,[2]]"),
        (OrderedDict(a=1), '{"a":1}'),
        (MappingProxyType({"a": MappingProxyType({"b": ()})}), '{"a":{"b":[]}}'),
        (Color.RED, '"red"'),
        ({Color.RED: Number(3)}, '{"red":3}'),
        ([Fraction(1.5)], "[1.5]"),
        (-0.0, "-0.0"),
        (1e308, "1e+308"),
        (10**400, "1" + "0" * 400),
        ("é\u202e😀\u2028", '"é\u202e😀\u2028"'),
    ],
)
def test_unusual_values_are_stored_as_plain_ones(value: Any, text: str) -> None:
    dumped = documents.dump(value, "x")
    assert dumped == text
    plain = documents.load(dumped)
    assert type(plain) in (list, dict, str, int, float)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (float("nan"), "$"),
        ([1, {"a": [float("inf")]}], "$[1].a[0]"),
        ({"a b": {"c": "\x00"}}, "$['a b'].c"),
        ({"a": {"\x00": 1}}, "$.a"),
        ({"a": {1: 2}}, "$.a"),
        ({"a": {"\ud800": 1}}, "$.a"),
        ({"a": ["\udfff"]}, "$.a[0]"),
        ({"a": Decimal(1)}, "$.a"),
        ([{1, 2}], "$[0]"),
        ([b"x"], "$[0]"),
        ({"a": object()}, "$.a"),
        ({"é": float("nan")}, "$['\\xe9']"),
    ],
)
def test_what_json_cannot_express_is_refused_with_its_path(value: Any, path: str) -> None:
    for dump in (documents.dump, documents.dump_canonical, documents.normalize):
        with pytest.raises(InvalidArgument) as caught:
            dump(value, "payload")
        assert (caught.value.argument, caught.value.path) == ("payload", path)


def test_depth_is_limited_and_a_circle_is_only_very_deep() -> None:
    assert documents.load(documents.dump(nested(documents.MAXIMUM_DEPTH), "x")) == nested(documents.MAXIMUM_DEPTH)
    for value in (nested(documents.MAXIMUM_DEPTH + 1), circular()):
        with pytest.raises(InvalidArgument, match="nested deeper"):
            documents.dump(value, "x")


@pytest.mark.parametrize("character", ["a", "é", "😀"])
def test_size_is_counted_in_bytes_of_utf8(character: str) -> None:
    size = len(character.encode())
    assert documents.dump(character * 10, "x", maximum_bytes=10 * size + 2)
    with pytest.raises(InvalidArgument, match=f"is {10 * size + 2} bytes of JSON; at most {10 * size + 1}"):
        documents.dump(character * 10, "x", maximum_bytes=10 * size + 1)


def test_an_integer_that_python_does_not_print_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="cannot be encoded"):
        documents.dump(10**5_000, "x")


def test_search_attributes_are_an_object() -> None:
    with pytest.raises(InvalidArgument, match="must be a JSON object"):
        documents.dump_search_attributes([1], "search_attributes")
    assert documents.dump_search_attributes({"a": [1e16, {"b": 1e300}]}, "x").endswith(".0}]}")
