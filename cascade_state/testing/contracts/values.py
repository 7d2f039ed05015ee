"""Values in and out: what is read equals what was written, and is nobody else's (C-10, C-11)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cascade_state.abc import Store
from cascade_state.errors import InvalidArgument
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, OpenStore, StoreContract
from cascade_state.testing.contracts.places import PLACES
from cascade_state.testing.contracts.rules import rule

__all__ = ["ValuesContract"]

# Examples share one store: each writes under ids of its own. One test function runs in a class for each back end.
_EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
)
_DOCUMENTS = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4), max_leaves=12
)
_INSTANTS = st.datetimes(
    min_value=datetime(1900, 1, 1),  # noqa: DTZ001 - Hypothesis wants naive bounds
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001 - as above
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)

_EXACT_DOCUMENTS: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "negative zero": -0.0,
    "empty text": "",
    "empty array": [],
    "empty object": {},
    "empty key": {"": {"": []}},
    "nulls inside": {"a": None, "b": [None, {"c": None}]},
    "64 bits and more": [2**31, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**100, -(10**100)],
    "2**53 and around": [2**53 - 1, 2**53, 2**53 + 1, float(2**53)],
    "floats": [0.0, 1.0, 1e16, 1e22, 1e308, 1.7976931348623157e308, 5e-324, 2.2250738585072014e-308, -1e-7],
    "integers are no floats": [1, 1.0, 100, 1e2],
    "booleans are no integers": [True, 1, False, 0],
    "text that looks like JSON": ['{"a": 1}', "null", "[]", '"', "\\", "\\u0000", "\\\\u0000"],
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f\u2028\u2029\ufeff",
    "non-ASCII": {"größe": "日本語", "💣": "👩‍👩‍👧‍👦", "\U0010ffff": "\u202eabc"},
    "not normalized": ["é", "e\u0301", "ﬁ", "Å", "\u212b"],
    "keys in no order": {"z": 1, "a": 2, "M": 3, "10": 4, "9": 5},
    "keys that differ little": {"a": 1, "A": 2, "a ": 3, " a": 4},
    "deep": json.loads("[" * 150 + "]" * 150),
}


class Colour(str, Enum):  # noqa: UP042 - callers have both kinds
    """What callers put into documents instead of plain text."""

    RED = "red"


class Number(IntEnum):
    """What callers put into documents instead of plain numbers."""

    SEVEN = 7


def exact(document: Any) -> str:
    """Returns a form in which documents are equal only if they are the same in every type, and in the sign of zero."""
    return json.dumps(document, sort_keys=True)


def _scribble(document: Any) -> None:
    """Changes everything that can be changed in a document."""
    if isinstance(document, dict):
        for value in list(document.values()):
            _scribble(value)
        document["scribbled"] = True
    elif isinstance(document, list):
        for value in document:
            _scribble(value)
        document.append("scribbled")


class ValuesContract(StoreContract):
    """Documents, texts and instants survive unchanged."""

    # C-10: documents

    @rule("C-10")
    @pytest.mark.parametrize("place", sorted(PLACES))
    async def test_exact_documents_are_read_as_written(self, store: Store, other_store: Store, place: str) -> None:
        where = PLACES[place]
        for label, document in _EXACT_DOCUMENTS.items():
            written = {"in": document} if where.objects_only else document
            if place == "create.search_attributes" and label == "negative zero":
                continue  # attributes are compared as numbers, and the two zeros are one number
            returned, read = await where.write(store, written)
            assert exact(await read(other_store)) == exact(written), label
            assert returned is None or exact(returned) == exact(written), label

    @rule("C-10")
    @pytest.mark.parametrize(
        "place", ["complete_step.outputs", "component_states.put.state", "correlations.publish.payload"]
    )
    @_EXAMPLES
    @given(document=_DOCUMENTS)
    async def test_any_document_is_read_as_written(
        self, store: Store, other_store: Store, place: str, document: Any
    ) -> None:
        _, read = await PLACES[place].write(store, document)
        assert exact(await read(other_store)) == exact(document)

    @rule("C-10")
    @_EXAMPLES
    @given(document=st.dictionaries(_TEXT, _DOCUMENTS, max_size=4))
    async def test_any_search_attributes_are_read_as_written_and_found(
        self, store: Store, other_store: Store, document: dict[str, Any]
    ) -> None:
        _, read = await PLACES["create.search_attributes"].write(store, document)
        found = await read(other_store)
        assert exact(found).replace("-0.0", "0.0") == exact(document).replace("-0.0", "0.0")
        chosen = FlowInstanceFilter(search_attributes=document)
        assert any([item.search_attributes == found async for item in other_store.flow_instances.iterate(chosen)])

    @rule("C-10")
    async def test_documents_are_stored_as_plain_json(self, store: Store) -> None:
        document = {
            "tuple": (1, (2, 3)),
            "mapping": MappingProxyType({"a": 1}),
            "enumerations": [Colour.RED, Number.SEVEN],
            Colour.RED: 1,
        }
        expected = {"tuple": [1, [2, 3]], "mapping": {"a": 1}, "enumerations": ["red", 7], "red": 1}
        flow = await factories.add_flow(store)
        put = await store.component_states.put(flow.flow_instance_id, "charge", document)
        got = await store.component_states.get(flow.flow_instance_id, "charge")
        assert exact(put.state) == exact(got.state) == exact(expected)

    @rule("C-10")
    async def test_a_document_of_the_largest_size_is_stored_and_one_byte_more_is_refused(
        self, store: Store, open_store_again: OpenStore
    ) -> None:
        async with open_store_again(max_document_bytes=1000) as narrow:
            for place, where in PLACES.items():
                wrapped = {"x": ""} if where.objects_only else ""
                room = 1000 - len(json.dumps(wrapped, separators=(",", ":")))
                if where.argument == "definition":
                    continue  # the whole definition counts there: see below
                text = "é" * (room // 2) + "x" * (room % 2)
                _, read = await where.write(narrow, {"x": text} if where.objects_only else text)
                assert await read(store) == ({"x": text} if where.objects_only else text), place
                with pytest.raises(InvalidArgument) as caught:
                    await where.write(narrow, {"x": text + "x"} if where.objects_only else text + "x")
                assert caught.value.argument == where.argument, place
            with pytest.raises(InvalidArgument) as caught:
                await narrow.flow_definitions.deploy(factories.flow_definition(document={"x": "x" * 1000}))
            assert caught.value.argument == "definition"

    @rule("C-10")
    async def test_the_default_size_is_a_mebibyte(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        text = "x" * (1024 * 1024 - 2)
        await store.component_states.put(flow.flow_instance_id, "charge", text)
        assert (await store.component_states.get(flow.flow_instance_id, "charge")).state == text
        with pytest.raises(InvalidArgument):
            await store.component_states.put(flow.flow_instance_id, "charge", text + "x")

    # C-10: whole values

    @rule("C-10")
    async def test_a_flow_is_read_as_it_was_returned(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(
            store, business_key="order-1", search_attributes={"region": "eu"}, waits_for=factories.unique("key")
        )
        child_definition = await factories.deploy_flow_definition(store)
        child = await store.advance(flow.child(child_definition, trigger_data=[1, None]).start())
        waiting = await store.advance(
            flow.suspend_for_timer("charge", after=LEASE).resume("charge").fail_step("charge", {"code": 7})
        )
        ended = await store.advance(child.complete_step("charge", {"receipt": "r-1"}).fail("no stock"))
        for value in (waiting, ended):
            found = await other_store.flow_instances.get(value.flow_instance_id)
            assert found == value
            assert (found.lease, bool(found.changes)) == (None, False)
        assert (ended.root_id, ended.parent_id) == (flow.flow_instance_id, flow.flow_instance_id)

    # C-10: instants

    @rule("C-10")
    @_EXAMPLES
    @given(instant=_INSTANTS)
    @example(instant=datetime(2030, 1, 1, 0, 0, 0, 1, tzinfo=UTC))
    @example(instant=datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))
    @example(instant=datetime(2030, 3, 31, 2, 30, tzinfo=timezone(timedelta(hours=-11, minutes=-30))))
    @example(instant=datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))
    @example(instant=datetime(2, 1, 1, tzinfo=UTC))
    async def test_instants_keep_their_microseconds_and_are_read_in_utc(
        self, store: Store, other_store: Store, instant: datetime
    ) -> None:
        flow = await factories.add_flow(store)
        timer = await store.timers.schedule(flow.flow_instance_id, "charge", due_at=instant)
        state = await store.component_states.put(flow.flow_instance_id, "charge", 1, expires_at=instant)
        found = await other_store.timers.get(timer.timer_id)
        assert timer.due_at == found.due_at == instant
        assert timer.due_at.tzinfo is UTC
        assert found.due_at.tzinfo is UTC
        assert state.expires_at == instant
        moved = await store.timers.reschedule(timer.timer_id, instant + (LEASE if instant.year < 3000 else -LEASE))
        assert (await other_store.timers.get(timer.timer_id)).due_at == moved.due_at

    @rule("C-10")
    async def test_the_times_of_a_flow_are_the_clocks(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        clock.set(datetime(2031, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC))
        flow = await factories.add_flow(store, waits_for="parcel-77", expires_at=clock.now() + LEASE)
        created_at = clock.now()
        clock.advance(timedelta(microseconds=1))
        ended = await store.advance(flow.resume().complete_step("ship").complete())
        found = await other_store.flow_instances.get(flow.flow_instance_id)
        assert found == ended
        assert found.created_at == created_at
        assert found.updated_at == found.completed_at == clock.now()
        assert found.step_results["ship"].completed_at == clock.now()
        for instant in (found.created_at, found.updated_at, found.completed_at):
            assert instant is not None
            assert instant.tzinfo is UTC
        recorded = [event.recorded_at for event in await other_store.flow_instances.history(flow.flow_instance_id)]
        assert recorded == [created_at] * 3 + [clock.now()] * 3

    # C-11

    @rule("C-11")
    @pytest.mark.parametrize("place", sorted(PLACES))
    async def test_changing_a_value_never_changes_the_store(self, store: Store, other_store: Store, place: str) -> None:
        passed: dict[str, Any] = {"list": [1, {"deep": []}], "object": {"a": {"b": [None]}}}
        before = deepcopy(passed)
        returned, read = await PLACES[place].write(store, passed)
        _scribble(passed)
        assert await read(store) == before
        _scribble(returned)
        assert await read(store) == before
        for on in (store, other_store):
            _scribble(await read(on))
            assert await read(store) == before
            assert await read(other_store) == before

    @rule("C-11")
    async def test_changing_a_value_before_the_commit_does_not_change_what_is_committed(self, store: Store) -> None:
        outputs: dict[str, Any] = {"receipts": ["r-1"]}
        state: dict[str, Any] = {"attempts": [1]}
        async with store.begin() as uow:
            flow = await factories.add_flow(uow)
            changed = flow.complete_step("charge", outputs)
            _scribble(outputs)
            stored = await uow.advance(changed, put_states={"charge": state})
            _scribble(state)
            _scribble(stored.step_results["charge"].outputs)
            read = await uow.flow_instances.get(flow.flow_instance_id)
            _scribble(read.step_results["charge"].outputs)
            assert (await uow.component_states.get(flow.flow_instance_id, "charge")).state == {"attempts": [1]}
        found = await store.flow_instances.get(flow.flow_instance_id)
        assert found.step_output("charge", "receipts") == ["r-1"]
        assert (await store.component_states.get(flow.flow_instance_id, "charge")).state == {"attempts": [1]}

    @rule("C-11")
    async def test_changing_the_mappings_of_a_flow_never_changes_the_store(self, store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")
        flow = await store.advance(flow.suspend_for_timer("charge", after=LEASE))
        before = deepcopy(flow)
        for on in (flow, await store.flow_instances.get(flow.flow_instance_id)):
            for mapping in (on.step_results, on.waits, on.pending_timers):
                _clear(mapping)
        assert await store.flow_instances.get(flow.flow_instance_id) == before


def _clear(mapping: Mapping[str, Any]) -> None:
    if isinstance(mapping, dict):
        mapping.clear()
