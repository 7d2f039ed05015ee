"""Hostile text is data in every text argument (C-12)."""

from __future__ import annotations

from itertools import combinations

import pytest

from cascade_state.abc import Store
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.rules import rule
from cascade_state.testing.contracts.texts import HOSTILE_TEXTS, TEXT_USES, text_arguments

__all__ = ["HostileTextsContract"]


class HostileTextsContract(StoreContract):
    """Quotes, SQL, control characters and strange scripts are stored and found like any other text."""

    async def test_every_text_argument_of_the_public_face_is_used(self) -> None:
        used = set[str]().union(*(arguments for _, arguments in TEXT_USES.values()))
        assert used == set(text_arguments())

    @rule("C-12")
    @pytest.mark.parametrize("argument", sorted(TEXT_USES))
    async def test_hostile_text_is_stored_and_found_as_data(
        self, store: Store, other_store: Store, argument: str
    ) -> None:
        use, _ = TEXT_USES[argument]
        for text in HOSTILE_TEXTS.values():
            await use(store, other_store, text)

    @rule("C-12")
    async def test_texts_that_look_alike_are_different_keys(self, store: Store) -> None:
        texts = [
            "é",
            "e\u0301",
            "E\u0301",
            "ss",
            "ß",
            "SS",
            "a",
            "A",
            "a ",
            " a",
            "a\u200b",
            "\u0430",
        ]  # the last is Cyrillic
        definition = await factories.deploy_flow_definition(store)
        flows = {text: await factories.add_flow(store, definition, business_key=text) for text in texts}
        for text, flow in flows.items():
            assert await store.flow_instances.find_by_business_key(definition.flow_id, text) == flow
        for one, another in combinations(texts, 2):
            assert flows[one].flow_instance_id != flows[another].flow_instance_id

    @rule("C-12")
    @pytest.mark.parametrize("wildcard", ["%", "_", "\\", "*", "?", ".", "[a-z]", "a%", "a_c", "a\\", "A"])
    async def test_a_prefix_is_no_pattern(self, store: Store, wildcard: str) -> None:
        definition = await factories.deploy_flow_definition(store)
        await factories.add_flow(store, definition, business_key="abc")
        await factories.add_flow(store, definition, business_key="a-b")
        flow = await factories.add_flow(store, definition, business_key=wildcard + "tail")
        chosen = FlowInstanceFilter(business_key_prefix=wildcard)
        assert (await store.flow_instances.list_page(chosen)).items == (flow,)
