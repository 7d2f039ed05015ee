"""The options of `open_store`: what is out of range is refused by name, before anything connects."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cascade_state import InvalidArgument, open_store


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("application_name", ""),
        ("clock", "now"),
        ("coalesce", "no"),
        ("hints", 0),
        ("max_attempts", 0),
        ("max_document_bytes", 0),
        ("partition_count", 8),
        ("partition_count", 100),
        ("partition_count", 8192),
        ("partition_count", "256"),
        ("pool_size", 0),
        ("pool_timeout_seconds", -1),
        ("pool_timeout_seconds", 0),
        ("pool_timeout_seconds", math.inf),
        ("pool_timeout_seconds", math.nan),
        ("pool_timeout_seconds", "30"),
        ("pool_timeout_seconds", True),
        ("pooler", "odyssey"),
        ("schema", "s" * 64),
        ("schema", ""),
    ],
)
@pytest.mark.parametrize("url", ["memory://", "postgresql://localhost/flows"])
def test_an_option_out_of_range_is_refused_by_name(url: str, option: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        open_store(url, **{option: value})
    assert caught.value.argument == option
