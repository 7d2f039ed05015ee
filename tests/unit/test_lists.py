from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_state.abc.repository import check_limit, cut, decode_position
from cascade_state.errors import InvalidArgument
from cascade_state.model.lists import CursorList, decode_cursor, encode_cursor

KEYS = st.lists(st.one_of(st.integers(), st.text(st.characters(exclude_categories=["Cs"]))))


@given(st.text(), KEYS)
def test_a_cursor_gives_its_key_back(subject: str, key: list[Any]) -> None:
    cursor = encode_cursor(subject, key)
    assert decode_cursor(cursor, subject, tuple(map(type, key))) == key
    assert cursor.isascii()
    assert not set(cursor) & set("=+/")


@given(st.text(), st.text(), KEYS)
def test_a_cursor_belongs_to_its_subject(subject: str, other: str, key: list[Any]) -> None:
    if subject == other:
        return
    with pytest.raises(InvalidArgument, match="belongs to another list"):
        decode_cursor(encode_cursor(subject, key), other, tuple(map(type, key)))


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "====", encoded({}), encoded([]), encoded(5), encoded("abc"), encoded(["no fingerprint"]), 7, b"x"],
)
def test_what_is_no_cursor_is_refused(cursor: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_cursor(cursor, "subject", (int,))
    assert caught.value.argument == "cursor"


@given(st.text())
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        decode_cursor(text, "subject", (int,))


@pytest.mark.parametrize("key", [[1], [1, 2, 3], ["a", 2], [1, "b"]])
def test_a_key_of_another_shape_is_refused(key: list[Any]) -> None:
    with pytest.raises(InvalidArgument, match="not a cursor of this list"):
        decode_cursor(encode_cursor("s", key), "s", (int, int))


def test_no_cursor_is_the_beginning() -> None:
    assert decode_cursor(None, "s", (int,)) is None
    assert decode_position(None, "s", int) is None


def test_a_position_is_typed() -> None:
    instant, identity = datetime(2030, 1, 1, 0, 0, 0, 7, tzinfo=UTC), UUID(int=5)
    cursor = encode_cursor("s", (instant.isoformat(), str(identity), 3, "x"))
    assert decode_position(cursor, "s", datetime, UUID, int, str) == (instant, identity, 3, "x")
    with pytest.raises(InvalidArgument):
        decode_position(encode_cursor("s", ("no instant",)), "s", datetime)
    with pytest.raises(InvalidArgument):
        decode_position(encode_cursor("s", ("no uuid",)), "s", UUID)


@given(st.lists(st.integers(), unique=True), st.integers(1, 5))
def test_a_list_that_is_cut_continues_behind_its_last_item(numbers: list[int], limit: int) -> None:
    numbers.sort()
    gathered: list[int] = []
    cursor: str | None = None
    while True:
        after = decode_position(cursor, "s", int)
        rows = [number for number in numbers if after is None or number > after[0]][: limit + 1]
        page = cut(rows, limit, "s", lambda number: (number,))
        gathered += page
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page) == limit
    assert gathered == numbers


def test_a_cursor_list_is_a_list() -> None:
    assert CursorList([1, 2]) == [1, 2]
    assert CursorList([1]).next_cursor is None


@pytest.mark.parametrize("limit", [0, -1, 10_001, True, "5", 2.0, None])
def test_a_limit_has_its_bounds(limit: Any) -> None:
    with pytest.raises(InvalidArgument):
        check_limit(limit)
