"""Every value that cannot be stored is refused by name, before anything is sent (C-10)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from cascade_state.abc import Store
from cascade_state.errors import FlowInstanceNotFound, InvalidArgument
from cascade_state.model.flow_definitions import StepDefinition
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.places import PLACES
from cascade_state.testing.contracts.refusals import (
    BAD_DURATIONS,
    BAD_INSTANTS,
    BAD_KEYS,
    CURSORS,
    DOCUMENTS,
    DURATIONS,
    IDS,
    INSTANTS,
    KEYS,
    LIMITS,
    OPTIONAL_KEYS,
    OTHERS,
    Use,
)
from cascade_state.testing.contracts.refused_kinds import OF_ANOTHER_KIND
from cascade_state.testing.contracts.rules import rule

__all__ = ["RefusedValuesContract"]


class RefusedValuesContract(StoreContract):
    """Refused means: `InvalidArgument` with the argument's name, nothing stored, the transaction unharmed."""

    async def _refused(self, store: Store, use: Use, value: Any, argument: str) -> InvalidArgument:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            with pytest.raises(InvalidArgument) as caught:
                await use(uow, flow.flow_instance_id, value)
            # What reached the server and failed there would have aborted the transaction.
            await uow.component_states.put(flow.flow_instance_id, "probe", 1)
        with pytest.raises(InvalidArgument):
            await use(store, flow.flow_instance_id, value)
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        assert len(await store.flow_instances.history(flow.flow_instance_id)) == 2
        states = await store.component_states.list_for_instance(flow.flow_instance_id)
        assert [state.step_id for state in states] == ["probe"]
        assert await store.timers.list_for_instance(flow.flow_instance_id) == []
        assert caught.value.argument == argument
        assert caught.value.reason
        return caught.value

    @rule("C-10")
    @pytest.mark.parametrize("place", sorted(PLACES))
    async def test_what_json_cannot_express_is_refused_with_its_path(self, store: Store, place: str) -> None:
        where = PLACES[place]
        for label, (document, path) in DOCUMENTS.items():
            with pytest.raises(InvalidArgument) as caught:
                await where.write(store, document)
            assert (caught.value.argument, caught.value.path) == (where.argument, where.prefix + path), label

    @rule("C-10")
    @pytest.mark.parametrize("place", sorted(PLACES))
    async def test_a_document_that_is_nested_too_deep_is_refused(self, store: Store, place: str) -> None:
        where = PLACES[place]
        document: Any = {}
        for _ in range(100_000):
            document = {"a": document}
        with pytest.raises(InvalidArgument) as caught:
            await where.write(store, document)
        assert caught.value.argument == where.argument
        _unravel(document)

    @rule("C-10")
    @pytest.mark.parametrize("place", [name for name in sorted(PLACES) if PLACES[name].objects_only])
    async def test_a_document_that_must_be_an_object_is_refused_otherwise(self, store: Store, place: str) -> None:
        for document in ([1], "text", 7, True):
            with pytest.raises(InvalidArgument) as caught:
                await PLACES[place].write(store, document)
            assert caught.value.argument == PLACES[place].argument

    @rule("C-10")
    @pytest.mark.parametrize("name", sorted(KEYS))
    async def test_what_is_no_key_is_refused(self, store: Store, name: str) -> None:
        argument, use = KEYS[name]
        for label, value in BAD_KEYS.items():
            if label == "None" and name in OPTIONAL_KEYS:
                continue
            await self._refused(store, use, value, argument)

    @rule("C-10")
    @pytest.mark.parametrize("name", sorted(INSTANTS))
    async def test_what_is_no_instant_is_refused(self, store: Store, name: str) -> None:
        argument, use = INSTANTS[name]
        for value in BAD_INSTANTS.values():
            await self._refused(store, use, value, argument)

    @rule("C-10")
    @pytest.mark.parametrize("name", sorted(DURATIONS))
    async def test_what_is_no_duration_is_refused(self, store: Store, name: str) -> None:
        argument, use = DURATIONS[name]
        for value in BAD_DURATIONS.values():
            await self._refused(store, use, value, argument)

    @rule("C-10")
    @pytest.mark.parametrize("name", sorted(IDS))
    async def test_what_is_no_id_is_refused(self, store: Store, name: str) -> None:
        argument, use = IDS[name]
        for value in (str(UUID(int=1)), 7, b"0" * 16):
            await self._refused(store, use, value, argument)

    @rule("C-10")
    @pytest.mark.parametrize("name", sorted(LIMITS))
    async def test_a_limit_out_of_range_is_refused(self, store: Store, name: str) -> None:
        for value in (0, -1, 10_001, 2**63, True, 1.0, "10", None):
            await self._refused(store, LIMITS[name], value, "limit")

    @rule("C-10", "C-26")
    @pytest.mark.parametrize("name", sorted(CURSORS))
    async def test_what_is_no_cursor_is_refused(self, store: Store, name: str) -> None:
        for value in ("", "x", "''; --", "bnVsbA", "W10", "é", "\x00", "A" * 100_000, 7, b"W10"):
            await self._refused(store, CURSORS[name], value, "cursor")

    @rule("C-10")
    @pytest.mark.parametrize("name", sorted(OTHERS))
    async def test_a_wrong_value_is_refused(self, store: Store, name: str) -> None:
        argument, use, value = OTHERS[name]
        await self._refused(store, use, value, argument)

    @rule("C-10")
    @pytest.mark.parametrize("name", sorted(OF_ANOTHER_KIND))
    async def test_an_argument_of_another_kind_is_refused(self, store: Store, name: str) -> None:
        argument, use, value = OF_ANOTHER_KIND[name]
        await self._refused(store, use, value, argument)

    @rule("C-10")
    async def test_an_unusable_item_refuses_the_whole_of_add_many(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        fine = factories.running_flow(definition)
        with pytest.raises(InvalidArgument) as caught:
            await store.flow_instances.add_many(
                [fine, replace(factories.running_flow(definition), business_key="\x00")]
            )
        assert caught.value.argument == "business_key"
        assert await store.flow_instances.count() == 0
        with pytest.raises(FlowInstanceNotFound):
            await store.flow_instances.get(fine.flow_instance_id)

    @rule("C-10")
    @pytest.mark.parametrize("value", ["a\x00b", "\ud800", 7])
    async def test_texts_of_a_definition_are_checked(self, store: Store, value: Any) -> None:
        definition = factories.flow_definition()
        step = StepDefinition(step_id="charge", component_type="http")
        for wrong in (
            replace(definition, flow_id=value),
            replace(definition, name=value),
            replace(definition, description=value),
            replace(definition, steps=(replace(step, step_id=value),)),
            replace(definition, steps=(replace(step, component_type=value),)),
        ):
            with pytest.raises(InvalidArgument):
                await store.flow_definitions.deploy(wrong)
        assert await store.flow_definitions.list_latest() == []


def _unravel(document: Any) -> None:
    """Takes a deep document apart level by level: freeing it at once would recurse as deep as it is nested."""
    while document:
        document = document.pop("a")
