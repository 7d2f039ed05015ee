from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_state import FlowInstanceFilter, FlowStatus, InvalidArgument
from cascade_state.model.filters import check_statuses

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_equal_filters_have_equal_reprs_however_they_were_written() -> None:
    one = FlowInstanceFilter(
        statuses=["RUNNING", FlowStatus.FAILED],  # type: ignore[list-item]
        search_attributes={"a": 1, "b": {"c": (1,), "d": 2}},
        created_from=NOW,
        business_key_prefix="",
    ).checked()
    other = FlowInstanceFilter(
        statuses={FlowStatus.FAILED, FlowStatus.RUNNING},
        search_attributes={"b": {"d": 2, "c": [1]}, "a": 1},
        created_from=NOW.astimezone(timezone(timedelta(hours=5))),
    ).checked()
    assert repr(one) == repr(other)
    assert one == other


@given(st.lists(st.sampled_from(FlowStatus)))
def test_statuses_come_once_and_in_one_order(statuses: list[FlowStatus]) -> None:
    checked = check_statuses(statuses)
    assert set(checked) == set(statuses)
    assert list(checked) == [status for status in FlowStatus if status in statuses]


def test_checking_again_changes_nothing() -> None:
    checked = FlowInstanceFilter(search_attributes={"b": 1e300, "a": []}, statuses=["FAILED"]).checked()  # type: ignore[list-item]
    assert checked.checked() == checked
    assert repr(checked.checked()) == repr(checked)


def test_the_filter_is_a_copy() -> None:
    wanted: dict[str, Any] = {"a": [1]}
    checked = FlowInstanceFilter(search_attributes=wanted).checked()
    wanted["a"].append(2)
    assert checked.search_attributes == {"a": [1]}


def test_no_search_attributes_are_no_condition() -> None:
    assert FlowInstanceFilter(search_attributes={}).checked() == FlowInstanceFilter()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flow_id", ""),
        ("flow_id", "\x00"),
        ("flow_version", 0),
        ("flow_version", "1"),
        ("statuses", ["GONE"]),
        ("statuses", 5),
        ("parent_id", str(UUID(int=1))),
        ("business_key_prefix", "x" * 513),
        ("search_attributes", [1]),
        ("search_attributes", {"a": float("nan")}),
        ("created_from", datetime(2030, 1, 1)),  # noqa: DTZ001
        ("created_to", "2030"),
        ("updated_from", 1),
        ("updated_to", datetime(2030, 1, 1)),  # noqa: DTZ001
        ("completed_from", 1),
        ("completed_to", 1),
    ],
)
def test_an_unusable_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        FlowInstanceFilter(**{field: value}).checked()
    assert caught.value.argument == field
