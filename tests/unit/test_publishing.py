from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cascade_state import DeadLetter, InvalidArgument
from cascade_state.model.advance import Limits
from cascade_state.model.publishing import PlannedPublication, plan_publication, plan_republication

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LIMITS = Limits(max_document_bytes=100)


def publish(key: Any = "k", payload: Any = None, **options: Any) -> PlannedPublication:
    defaults: dict[str, Any] = {"event_id": None, "mode": "first", "expires_at": None, "limits": LIMITS}
    return plan_publication(key, payload, **{**defaults, **options})


def test_events_of_one_publisher_are_in_order_within_one_instant() -> None:
    ordinals = [publish().ordinal for _ in range(1_000)]
    assert ordinals == sorted(set(ordinals))


def test_an_event_without_an_id_gets_one_of_its_own() -> None:
    assert len({publish().event_id for _ in range(100)}) == 100
    assert publish(event_id="e").event_id == "e"


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"key": ""}, "correlation_key"),
        ({"payload": float("nan")}, "payload"),
        ({"payload": "x" * 100}, "payload"),
        ({"mode": "second"}, "mode"),
        ({"mode": None}, "mode"),
        ({"event_id": ""}, "event_id"),
        ({"expires_at": datetime(2030, 1, 1)}, "expires_at"),  # noqa: DTZ001
    ],
)
def test_an_unusable_argument_is_named(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        publish(**arguments)
    assert caught.value.argument == argument


def letter(**fields: Any) -> DeadLetter:
    known = {"correlation_key": "k", "event_id": "e", "payload": {"a": 1}, "published_at": NOW, "reason": "expired"}
    return DeadLetter(**{**known, **fields})


def test_a_dead_letter_is_published_under_its_id_and_is_kept_for_whoever_waits() -> None:
    planned = plan_republication(letter(), LIMITS)
    assert (planned.correlation_key, planned.event_id, planned.payload) == ("k", "e", '{"a":1}')
    assert planned.replaces
    assert planned.mode == "fifo"


@pytest.mark.parametrize("value", [letter(event_id=None), "no letter", None])
def test_what_holds_no_event_cannot_be_published_again(value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan_republication(value, LIMITS)
    assert caught.value.argument == "dead_letter"
