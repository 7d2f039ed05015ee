from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_state.errors import InvalidArgument
from cascade_state.model.arguments import (
    MAXIMUM_DURATION,
    MAXIMUM_KEY_BYTES,
    check_count,
    check_duration,
    check_instant,
    check_key,
    check_optional_instant,
    check_optional_key,
    check_text,
    check_uuid,
)


@given(st.text())
def test_a_key_is_kept_exactly_or_refused(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = -1
    if 0 < size <= MAXIMUM_KEY_BYTES and "\x00" not in text:
        assert check_key(text, "key") == text
    else:
        with pytest.raises(InvalidArgument) as caught:
            check_key(text, "key")
        assert caught.value.argument == "key"


@pytest.mark.parametrize(
    ("text", "fits"), [("a" * 512, True), ("a" * 513, False), ("😀" * 128, True), ("😀" * 128 + "a", False)]
)
def test_the_length_of_a_key_is_counted_in_bytes(text: str, fits: bool) -> None:
    if fits:
        assert check_key(text, "key") == text
    else:
        with pytest.raises(InvalidArgument, match="512 bytes"):
            check_key(text, "key")


class Key(StrEnum):
    A = "a"


def test_a_subclass_of_str_is_stored_as_a_plain_one() -> None:
    assert type(check_key(Key.A, "key")) is str


@pytest.mark.parametrize("value", [None, 1, b"a", ["a"], Key])
def test_other_types_are_no_text(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be a str"):
        check_text(value, "text")


def test_none_is_an_optional_key_and_instant() -> None:
    assert check_optional_key(None, "x") is None
    assert check_optional_instant(None, "x") is None
    with pytest.raises(InvalidArgument):
        check_optional_key("", "x")


@given(st.datetimes(timezones=st.timezones()))
def test_an_instant_is_the_same_one_in_utc(value: datetime) -> None:
    if value.year in (1, 9999):  # one that the driver takes for an infinity, or that UTC cannot express
        with pytest.raises(InvalidArgument):
            check_instant(value, "due_at")
        return
    expected = value.astimezone(UTC)
    checked = check_instant(value, "due_at")
    assert checked == expected
    assert checked.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        datetime(2030, 1, 1),  # noqa: DTZ001
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        1_700_000_000,
        "2030-01-01T00:00:00Z",
        None,
    ],
)
def test_what_is_no_instant_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        check_instant(value, "due_at")


@pytest.mark.parametrize(
    "value", [timedelta(0), timedelta(microseconds=-1), MAXIMUM_DURATION + timedelta.resolution, 5]
)
def test_a_duration_is_positive_and_at_most_a_century(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        check_duration(value, "after")


def test_zero_is_a_duration_where_it_makes_sense() -> None:
    assert check_duration(timedelta(0), "after", allow_zero=True) == timedelta(0)
    assert check_duration(MAXIMUM_DURATION, "after") == MAXIMUM_DURATION
    with pytest.raises(InvalidArgument, match="must not be negative"):
        check_duration(timedelta(-1), "after", allow_zero=True)


@pytest.mark.parametrize("value", [0, 11, True, 1.0, "1", None])
def test_a_count_is_an_int_in_its_range(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        check_count(value, "limit", maximum=10)


def test_a_uuid_is_a_uuid() -> None:
    assert check_uuid(UUID(int=1), "x") == UUID(int=1)
    with pytest.raises(InvalidArgument):
        check_uuid(str(UUID(int=1)), "x")
