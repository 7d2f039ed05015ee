from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_state import Condition, FlowDefinition, InvalidArgument, InvalidDefinition, StepDefinition, Trigger
from cascade_state.model import documents

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NAMES = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=8)
OBJECTS = st.dictionaries(NAMES, st.one_of(st.integers(), NAMES), max_size=3)


@st.composite
def definitions(draw: st.DrawFn) -> FlowDefinition:
    ids = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    steps = tuple(
        StepDefinition(
            step_id=step_id,
            component_type=draw(NAMES),
            input_mapping=draw(OBJECTS),
            config=draw(OBJECTS),
            run_after=tuple(draw(st.lists(st.sampled_from(ids[:place]), unique=True)) if place else ()),
            condition=draw(st.one_of(st.none(), st.builds(Condition, expression=NAMES, language=NAMES))),
        )
        for place, step_id in enumerate(ids)
    )
    return FlowDefinition(
        flow_id=draw(NAMES),
        name=draw(NAMES),
        description=draw(st.one_of(st.none(), NAMES)),
        trigger=draw(st.one_of(st.none(), st.builds(Trigger, trigger_type=NAMES, config=OBJECTS))),
        steps=steps,
        document=draw(OBJECTS),
    )


@settings(max_examples=100)
@given(definitions())
def test_a_definition_survives_its_content(definition: FlowDefinition) -> None:
    definition.validate()
    text = documents.dump(definition.content(), "definition")
    again = FlowDefinition.from_content(documents.load(text))
    assert again == definition
    assert again.digest == definition.digest


@settings(max_examples=100)
@given(definitions(), definitions())
def test_the_digest_is_that_of_the_content(one: FlowDefinition, other: FlowDefinition) -> None:
    assert (one.digest == other.digest) is (one.content() == other.content())
    assert one.deployed(3, NOW).digest == one.digest


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    one = FlowDefinition(flow_id="f", document={"a": 1, "b": {"c": 1, "d": 2}})
    other = FlowDefinition(flow_id="f", document={"b": {"d": 2, "c": 1}, "a": 1})
    assert one.digest == other.digest


def test_the_digest_is_stable() -> None:
    # Stored digests are compared with those of later versions of the library.
    assert FlowDefinition(flow_id="f", document={"a": 1}).digest == (
        "00338810988a1c13feb14d7a421f5216313b90c58aa1b328850789259d2b2f90"
    )


def step(step_id: str, *run_after: str, component_type: str = "x") -> StepDefinition:
    return StepDefinition(step_id=step_id, component_type=component_type, run_after=run_after)


@pytest.mark.parametrize(
    ("steps", "step_id", "reason"),
    [
        ((step("a"), step("a")), "a", "used twice"),
        ((step(""),), "", "is empty"),
        ((step("a", component_type=""),), "a", "component type is empty"),
        ((step("a", "b"),), "a", "'b', which is no step"),
        ((step("a", "a"),), "a", "cycle: a -> a"),
        ((), None, "neither steps nor a document"),
    ],
)
def test_a_contradiction_names_its_step(steps: tuple[StepDefinition, ...], step_id: str | None, reason: str) -> None:
    with pytest.raises(InvalidDefinition, match=reason) as caught:
        FlowDefinition(flow_id="f", steps=steps).validate()
    assert (caught.value.flow_id, caught.value.step_id) == ("f", step_id)


def test_a_cycle_is_told_with_its_path() -> None:
    steps = (step("start"), step("a", "start", "c"), step("b", "a"), step("c", "b"), step("end", "c"))
    with pytest.raises(InvalidDefinition) as caught:
        FlowDefinition(flow_id="f", steps=steps).validate()
    path = caught.value.reason.removeprefix("is part of a cycle: ").split(" -> ")
    assert path[0] == path[-1] == caught.value.step_id
    assert set(path) == {"a", "b", "c"}
    run_after = {item.step_id: item.run_after for item in steps}
    assert all(before in run_after[after] for before, after in pairwise(path))


def test_an_engine_may_bring_its_own_document_instead_of_steps() -> None:
    FlowDefinition(flow_id="f", document={"dsl": "any"}).validate()


@pytest.mark.parametrize(
    "fields",
    [
        {"flow_id": "x" * 513},
        {"flow_id": "\x00"},
        {"name": None},
        {"name": "\ud800"},
        {"description": "\x00"},
        {"steps": (step("s" * 513),)},
        {"steps": (step("a", component_type="\x00"),)},
    ],
)
def test_text_that_cannot_be_stored_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        FlowDefinition(**{"flow_id": "f", "document": {"a": 1}, **fields}).validate()


def test_an_empty_flow_id_is_refused() -> None:
    with pytest.raises(InvalidDefinition, match="flow id is empty"):
        FlowDefinition(flow_id="", document={"a": 1}).validate()
