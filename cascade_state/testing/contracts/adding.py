"""New flows: their ids and business keys, one by one or many at once (C-25)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    AlreadyExists,
    FlowDefinitionNotFound,
    FlowInstanceNotFound,
    NotFound,
)
from cascade_state.ids import new_flow_instance_id
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["AddingContract"]

_NOW = timedelta(0)


class AddingContract(StoreContract):
    """add, add_many, and what a new flow needs."""

    # C-25

    @rule("C-25")
    async def test_a_business_key_is_taken_once_per_flow_id(self, store: Store, other_store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        another = await factories.deploy_flow_definition(store)
        first = await factories.add_flow(store, definition, business_key="order-1")
        for on in (store, other_store):
            for call in (on.flow_instances.add, on.flow_instances.save, on.advance):
                given = factories.running_flow(definition, business_key="order-1").suspend_for_event(
                    "ship", "parcel-77"
                )
                with pytest.raises(AlreadyExists) as caught:
                    await call(given)
                assert (caught.value.entity, caught.value.key) == ("business key", "order-1")
                assert caught.value.existing_id == first.flow_instance_id
                assert await on.flow_instances.find(given.flow_instance_id) is None
                assert await on.correlations.list_waiting("parcel-77") == []
        await factories.add_flow(store, another, business_key="order-1")
        await factories.add_flow(store, definition, business_key="order-2")
        for _ in range(2):
            await factories.add_flow(store, definition)
        assert await store.flow_instances.count() == 5

    @rule("C-25")
    async def test_a_business_key_stays_taken_by_a_flow_that_has_ended_and_is_freed_by_its_removal(
        self, store: Store
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        first = await store.advance((await factories.add_flow(store, definition, business_key="order-1")).complete())
        with pytest.raises(AlreadyExists):
            await factories.add_flow(store, definition, business_key="order-1")
        newer = await factories.deploy_flow_definition(store, definition.flow_id, name="two")
        with pytest.raises(AlreadyExists):
            await factories.add_flow(store, newer, business_key="order-1")
        await store.flow_instances.remove(first.flow_instance_id)
        again = await factories.add_flow(store, definition, business_key="order-1")
        assert await store.flow_instances.find_by_business_key(definition.flow_id, "order-1") == again

    @rule("C-25")
    async def test_an_id_is_taken_once(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        given = factories.running_flow(definition, business_key="order-1")
        first = await store.flow_instances.add(given)
        for again in (given, replace(given, business_key=None), replace(given, business_key="order-2")):
            with pytest.raises(AlreadyExists) as caught:
                await store.flow_instances.add(again)
            assert caught.value.existing_id == first.flow_instance_id
        assert await store.flow_instances.get(given.flow_instance_id) == first
        assert await store.flow_instances.find_by_business_key(definition.flow_id, "order-2") is None

    @rule("C-25")
    @pytest.mark.parametrize("commits", [True, False])
    async def test_of_two_concurrent_adds_of_one_business_key_one_succeeds(
        self, store: Store, other_store: Store, commits: bool
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        async with store.begin() as uow:
            mine = await factories.add_flow(uow, definition, business_key="order-1")
            theirs = self.started(factories.add_flow(other_store, definition, business_key="order-1"))
            await self.blocked(theirs)
            if not commits:
                await uow.rollback()
        if commits:
            with pytest.raises(AlreadyExists) as caught:
                await self.finished(theirs)
            assert caught.value.existing_id == mine.flow_instance_id
        else:
            stored = await self.finished(theirs)
            assert await store.flow_instances.find_by_business_key(definition.flow_id, "order-1") == stored
        assert await store.flow_instances.count() == 1

    @rule("C-25")
    async def test_add_many_reports_each_item_and_stores_the_others(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        taken = await factories.add_flow(store, definition, business_key="taken")
        first = factories.running_flow(definition, business_key="order-1").suspend_for_event("ship", "parcel-77")
        unknown = replace(definition, flow_id="nowhere")
        items = [
            first,
            factories.running_flow(definition, business_key="taken"),
            factories.running_flow(definition, business_key="order-1"),
            replace(factories.running_flow(definition), flow_instance_id=first.flow_instance_id),
            factories.running_flow(unknown),
            factories.running_flow(definition).suspend_for_timer("charge", after=LEASE),
        ]
        results = await store.flow_instances.add_many(items)
        assert [type(result.error) for result in results] == [
            type(None),
            AlreadyExists,
            AlreadyExists,
            AlreadyExists,
            FlowDefinitionNotFound,
            type(None),
        ]
        assert all((result.instance is None) is (result.error is not None) for result in results)
        errors = [result.error for result in results[1:4]]
        holders = [error.existing_id for error in errors if isinstance(error, AlreadyExists)]
        assert holders == [taken.flow_instance_id, first.flow_instance_id, first.flow_instance_id]
        stored = [result.instance for result in results if result.instance is not None]
        assert [item.flow_instance_id for item in stored] == [items[0].flow_instance_id, items[5].flow_instance_id]
        for item in stored:
            assert await store.flow_instances.get(item.flow_instance_id) == item
            assert len(await store.flow_instances.history(item.flow_instance_id)) == 3
        assert len(await store.correlations.list_waiting("parcel-77")) == 1
        assert len(await store.timers.list_for_instance(items[5].flow_instance_id)) == 1
        assert await store.flow_instances.count() == 3

    @rule("C-25")
    async def test_add_many_keeps_the_order_of_more_items_than_travel_at_once(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        items = [factories.running_flow(definition, business_key=f"order-{number}") for number in range(1100)]
        items[1050] = factories.running_flow(definition, business_key="order-3")
        results = await store.flow_instances.add_many(items)
        assert [number for number, result in enumerate(results) if result.error is not None] == [1050]
        error = results[1050].error
        assert isinstance(error, AlreadyExists)
        assert error.existing_id == items[3].flow_instance_id
        for item, result in zip(items, results, strict=True):
            assert result.instance is None or result.instance.flow_instance_id == item.flow_instance_id
        assert await store.flow_instances.count() == 1099
        assert await store.flow_instances.add_many([]) == []

    @rule("C-25")
    async def test_add_many_is_part_of_its_unit_of_work(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        await factories.add_flow(store, definition, business_key="taken")
        items = [factories.running_flow(definition, business_key=key) for key in ("taken", "free")]
        async with store.begin() as uow:
            results = await uow.flow_instances.add_many(items)
            assert [result.error is None for result in results] == [False, True]
            assert await uow.flow_instances.count() == 2
            await uow.rollback()
        assert await store.flow_instances.count() == 1

    # unknown definitions and flows

    async def test_a_new_flow_needs_its_definition(self, store: Store) -> None:
        definition = factories.flow_definition(version=1)
        for call in (store.flow_instances.add, store.flow_instances.save, store.advance):
            given = factories.running_flow(definition)
            with pytest.raises(FlowDefinitionNotFound) as caught:
                await call(given)
            assert caught.value.key == f"{definition.flow_id} version 1"
            assert await store.flow_instances.find(given.flow_instance_id) is None

    async def test_an_unknown_flow_is_not_found(self, store: Store) -> None:
        unknown = new_flow_instance_id()
        assert await store.flow_instances.find(unknown) is None
        assert await store.flow_instances.find_by_business_key("nowhere", "order-1") is None
        assert await store.flow_instances.history(unknown) == []
        assert await store.flow_instances.remove(unknown) is False
        for call in (store.flow_instances.get, store.flow_instances.export):
            with pytest.raises(NotFound) as caught:
                await call(unknown)
            assert isinstance(caught.value, FlowInstanceNotFound)
            assert caught.value.key == unknown

    async def test_a_caller_may_choose_the_id(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        for chosen in (new_flow_instance_id(), factories.flow_instance().flow_instance_id):
            given = factories.flow_instance(definition, flow_instance_id=chosen).start()
            flow = await store.advance(given)
            assert (flow.flow_instance_id, flow.root_id) == (chosen, chosen)
            assert (await store.flow_instances.get(chosen)) == flow
