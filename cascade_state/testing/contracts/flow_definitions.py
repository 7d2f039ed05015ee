"""Flow definitions: versioned, immutable, hidden rather than lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    FlowDefinitionInUse,
    FlowDefinitionNotFound,
    InvalidArgument,
    InvalidDefinition,
)
from cascade_state.model.flow_definitions import Condition, FlowDefinition, StepDefinition, Trigger
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["FlowDefinitionsContract"]


def _steps(*chains: tuple[str, tuple[str, ...]]) -> tuple[StepDefinition, ...]:
    return tuple(factories.step_definition(step_id, run_after=after) for step_id, after in chains)


class FlowDefinitionsContract(StoreContract):
    """deploy, get, list and undeploy."""

    # deploy

    @rule("C-10")
    async def test_a_definition_is_read_as_deployed(self, store: Store, other_store: Store, clock: FrozenClock) -> None:
        given = FlowDefinition(
            flow_id=factories.unique("flow"),
            name="Order fulfilment",
            description="From payment to door",
            trigger=Trigger(trigger_type="webhook", config={"path": "/orders"}),
            steps=(
                StepDefinition(
                    step_id="charge", component_type="http", input_mapping={"to": "$.card"}, config={"n": [1]}
                ),
                StepDefinition(
                    step_id="ship",
                    component_type="carrier",
                    run_after=("charge",),
                    condition=Condition(expression="paid", language="jmespath"),
                ),
            ),
            document={"dsl": {"steps": [1, 2.5, None]}},
        )
        deployed = await store.flow_definitions.deploy(given)
        assert deployed == given.deployed(1, clock.now())
        assert deployed.digest == given.digest
        for on in (store, other_store):
            assert await on.flow_definitions.get(given.flow_id) == deployed
            assert await on.flow_definitions.get(given.flow_id, 1) == deployed
            assert await on.flow_definitions.find(given.flow_id) == deployed

    @rule("C-10")
    async def test_a_definition_made_of_lists_is_read_as_deployed(self, store: Store) -> None:
        steps: Any = [factories.step_definition("charge"), factories.step_definition("ship", run_after=["charge"])]
        deployed = await store.flow_definitions.deploy(FlowDefinition(flow_id=factories.unique("flow"), steps=steps))
        assert (deployed.steps, deployed.steps[1].run_after) == (tuple(steps), ("charge",))
        assert await store.flow_definitions.get(deployed.flow_id) == deployed

    async def test_a_definition_may_be_a_document_alone(self, store: Store) -> None:
        given = factories.flow_definition(steps=(), document={"dsl": "x"})
        await store.flow_definitions.deploy(given)
        found = await store.flow_definitions.get(given.flow_id)
        assert (found.steps, found.document) == ((), {"dsl": "x"})

    async def test_deploying_the_same_content_again_is_a_no_op(self, store: Store, clock: FrozenClock) -> None:
        given = factories.flow_definition()
        first = await store.flow_definitions.deploy(given)
        clock.advance(LEASE)
        assert await store.flow_definitions.deploy(given) == first
        assert await store.flow_definitions.deploy(first) == first
        assert await store.flow_definitions.list_versions(given.flow_id) == [first]

    async def test_other_content_is_the_next_version(self, store: Store, clock: FrozenClock) -> None:
        first = await factories.deploy_flow_definition(store, name="one")
        clock.advance(LEASE)
        second = await factories.deploy_flow_definition(store, first.flow_id, name="two")
        assert (second.version, second.name, second.deployed_at) == (2, "two", clock.now())
        assert await store.flow_definitions.get(first.flow_id) == second
        assert await store.flow_definitions.get(first.flow_id, 1) == first
        assert await store.flow_definitions.list_versions(first.flow_id) == [first, second]

    async def test_only_the_latest_version_is_compared(self, store: Store) -> None:
        flow_id = factories.unique("flow")
        versions = [(await factories.deploy_flow_definition(store, flow_id, name=name)).version for name in "ABA"]
        assert versions == [1, 2, 3]

    async def test_the_order_of_keys_makes_no_new_version_but_types_do(self, store: Store) -> None:
        given = factories.flow_definition(document={"a": 1, "b": {"c": 2, "d": 3}})
        await store.flow_definitions.deploy(given)
        same = replace(given, document={"b": {"d": 3, "c": 2}, "a": 1})
        assert (await store.flow_definitions.deploy(same)).version == 1
        assert (await store.flow_definitions.deploy(replace(given, document={**given.document, "a": 1.0}))).version == 2
        assert (
            await store.flow_definitions.deploy(replace(given, document={**given.document, "a": True}))
        ).version == 3

    async def test_two_concurrent_deployments_of_the_same_content_are_one_version(
        self, store: Store, other_store: Store
    ) -> None:
        given = factories.flow_definition()
        async with store.begin() as uow:
            first = await uow.flow_definitions.deploy(given)
            other = self.started(other_store.flow_definitions.deploy(given))
            await self.blocked(other)
        assert await self.finished(other) == first

    async def test_two_concurrent_deployments_of_different_content_are_two_versions(
        self, store: Store, other_store: Store
    ) -> None:
        flow_id = factories.unique("flow")
        async with store.begin() as uow:
            first = await factories.deploy_flow_definition(uow, flow_id, name="one")
            other = self.started(factories.deploy_flow_definition(other_store, flow_id, name="two"))
            await self.blocked(other)
        assert (first.version, (await self.finished(other)).version) == (1, 2)
        assert [item.name for item in await store.flow_definitions.list_versions(flow_id)] == ["one", "two"]

    async def test_a_deployment_takes_the_version_of_one_that_rolled_back(
        self, store: Store, other_store: Store
    ) -> None:
        flow_id = factories.unique("flow")
        async with store.begin() as uow:
            await factories.deploy_flow_definition(uow, flow_id, name="one")
            other = self.started(factories.deploy_flow_definition(other_store, flow_id, name="two"))
            await self.blocked(other)
            await uow.rollback()
        assert (await self.finished(other)).version == 1

    async def test_many_concurrent_deployments_leave_no_gap_and_no_double(
        self, store: Store, other_store: Store
    ) -> None:
        flow_id = factories.unique("flow")
        deployments = [
            factories.deploy_flow_definition(on, flow_id, name=str(number))
            for number in range(5)
            for on in (store, other_store)
        ]
        deployed = await self.finished(asyncio.gather(*deployments))
        versions = await store.flow_definitions.list_versions(flow_id)
        assert [item.version for item in versions] == list(range(1, len(versions) + 1))
        assert {(item.version, item.name) for item in deployed} == {(item.version, item.name) for item in versions}

    # what is refused

    @pytest.mark.parametrize(
        ("definition", "step_id"),
        [
            (factories.flow_definition(""), None),
            (factories.flow_definition(steps=()), None),
            (factories.flow_definition(steps=("a", "a")), "a"),
            (factories.flow_definition(steps=("a", "")), ""),
            (FlowDefinition(flow_id="f", steps=_steps(("a", ("nowhere",)))), "a"),
            (FlowDefinition(flow_id="f", steps=(StepDefinition(step_id="a", component_type=""),)), "a"),
            (FlowDefinition(flow_id="f", steps=_steps(("a", ("a",)))), "a"),
        ],
    )
    async def test_a_definition_that_contradicts_itself_is_refused(
        self, store: Store, definition: FlowDefinition, step_id: str | None
    ) -> None:
        with pytest.raises(InvalidDefinition) as caught:
            await store.flow_definitions.deploy(definition)
        assert (caught.value.flow_id, caught.value.step_id) == (definition.flow_id, step_id)
        assert await store.flow_definitions.list_latest() == []

    async def test_a_cycle_is_refused_with_its_path(self, store: Store) -> None:
        steps = _steps(("start", ()), ("a", ("c", "start")), ("b", ("a",)), ("c", ("b",)))
        with pytest.raises(InvalidDefinition) as caught:
            await store.flow_definitions.deploy(FlowDefinition(flow_id="f", steps=steps))
        assert caught.value.step_id in {"a", "b", "c"}
        assert all(step in caught.value.reason for step in "abc")
        assert "start" not in caught.value.reason

    # get and find

    async def test_what_is_not_deployed_is_not_found(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        assert await store.flow_definitions.find("nowhere") is None
        assert await store.flow_definitions.find(definition.flow_id, 2) is None
        assert await store.flow_definitions.list_versions("nowhere") == []
        with pytest.raises(FlowDefinitionNotFound) as caught:
            await store.flow_definitions.get("nowhere")
        assert caught.value.key == "nowhere"
        with pytest.raises(FlowDefinitionNotFound) as caught:
            await store.flow_definitions.get(definition.flow_id, 2)
        assert caught.value.key == f"{definition.flow_id} version 2"

    # lists

    @rule("C-26")
    async def test_list_latest_is_ordered_by_flow_id_and_continues_by_cursor(self, store: Store) -> None:
        flow_ids = ["Z", "a", "b", "é", "flow-10", "flow-2", "💣", "\uffff", "_", "A b"]
        for flow_id in flow_ids:
            await factories.deploy_flow_definition(store, flow_id, name="old")
        latest = {flow_id: await factories.deploy_flow_definition(store, flow_id, name="new") for flow_id in flow_ids}
        expected = [latest[flow_id] for flow_id in sorted(flow_ids)]
        whole = await store.flow_definitions.list_latest()
        assert (whole, whole.next_cursor) == (expected, None)
        listed: list[FlowDefinition] = []
        cursor: str | None = None
        while len(listed) < len(expected):
            page = await store.flow_definitions.list_latest(limit=3, cursor=cursor)
            listed.extend(page)
            cursor = page.next_cursor
            assert (cursor is None) is (len(listed) == len(expected))
        assert listed == expected

    @rule("C-26")
    async def test_list_versions_is_ordered_by_version_and_continues_by_cursor(self, store: Store) -> None:
        flow_id = factories.unique("flow")
        deployed = [await factories.deploy_flow_definition(store, flow_id, name=str(number)) for number in range(12)]
        first = await store.flow_definitions.list_versions(flow_id, limit=11)
        second = await store.flow_definitions.list_versions(flow_id, limit=11, cursor=first.next_cursor)
        assert [*first, *second] == deployed
        assert second.next_cursor is None
        with pytest.raises(InvalidArgument):
            await store.flow_definitions.list_versions("another", cursor=first.next_cursor)
        with pytest.raises(InvalidArgument):
            await store.flow_definitions.list_latest(cursor=first.next_cursor)

    # undeploy

    async def test_undeploy_hides_a_version_from_latest_from_lists_and_from_new_flows(self, store: Store) -> None:
        first = await factories.deploy_flow_definition(store, name="one")
        second = await factories.deploy_flow_definition(store, first.flow_id, name="two")
        assert await store.flow_definitions.undeploy(first.flow_id, 2) == 1
        assert await store.flow_definitions.get(first.flow_id) == first
        assert await store.flow_definitions.list_versions(first.flow_id) == [first]
        assert first in await store.flow_definitions.list_latest()
        assert await store.flow_definitions.get(first.flow_id, 2) == second  # who knows the number still finds it
        for call in (store.flow_instances.add, store.advance):
            with pytest.raises(FlowDefinitionNotFound) as caught:
                await call(factories.running_flow(second))
            assert caught.value.key == f"{first.flow_id} version 2"
        results = await store.flow_instances.add_many([factories.running_flow(second), factories.running_flow(first)])
        assert isinstance(results[0].error, FlowDefinitionNotFound)
        assert results[1].error is None

    async def test_undeploy_without_a_version_hides_all(self, store: Store) -> None:
        flow_id = factories.unique("flow")
        for name in "ABC":
            await factories.deploy_flow_definition(store, flow_id, name=name)
        assert await store.flow_definitions.undeploy(flow_id, 1) == 1
        assert await store.flow_definitions.undeploy(flow_id) == 2
        assert await store.flow_definitions.find(flow_id) is None
        assert await store.flow_definitions.list_versions(flow_id) == []
        assert await store.flow_definitions.list_latest() == []

    async def test_what_is_not_deployed_cannot_be_undeployed(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        with pytest.raises(FlowDefinitionNotFound):
            await store.flow_definitions.undeploy("nowhere")
        with pytest.raises(FlowDefinitionNotFound):
            await store.flow_definitions.undeploy(definition.flow_id, 2)
        await store.flow_definitions.undeploy(definition.flow_id)
        for version in (None, 1):
            with pytest.raises(FlowDefinitionNotFound):
                await store.flow_definitions.undeploy(definition.flow_id, version)

    async def test_versions_are_never_used_again(self, store: Store) -> None:
        first = await factories.deploy_flow_definition(store, name="one")
        await store.flow_definitions.undeploy(first.flow_id)
        again = await factories.deploy_flow_definition(store, first.flow_id, name="one")
        assert again.version == 2
        assert await store.flow_definitions.list_versions(first.flow_id) == [again]

    async def test_a_definition_in_use_is_not_undeployed(self, store: Store) -> None:
        first = await factories.deploy_flow_definition(store, name="one")
        second = await factories.deploy_flow_definition(store, first.flow_id, name="two")
        running = [await factories.add_flow(store, first) for _ in range(2)]
        ended = await factories.add_flow(store, first)
        await store.advance(ended.complete())
        for version in (None, 1):
            with pytest.raises(FlowDefinitionInUse) as caught:
                await store.flow_definitions.undeploy(first.flow_id, version)
            assert (caught.value.flow_id, caught.value.instance_count) == (first.flow_id, 2)
        assert await store.flow_definitions.list_versions(first.flow_id) == [first, second]
        assert await store.flow_definitions.undeploy(first.flow_id, 2) == 1
        for flow in running:
            await store.advance(flow.cancel())
        assert await store.flow_definitions.undeploy(first.flow_id, 1) == 1
        assert (await store.flow_instances.get(ended.flow_instance_id)).is_terminal

    async def test_force_removes_the_flows_too(self, store: Store) -> None:
        first = await factories.deploy_flow_definition(store, name="one")
        second = await factories.deploy_flow_definition(store, first.flow_id, name="two")
        running = await factories.add_flow(store, first, waits_for="parcel-77")
        timer = await store.timers.schedule(running.flow_instance_id, "charge", after=LEASE)
        ended = await store.advance((await factories.add_flow(store, first)).complete())
        kept = await factories.add_flow(store, second)
        assert await store.flow_definitions.undeploy(first.flow_id, 1, force=True) == 1
        assert await store.flow_instances.find(running.flow_instance_id) is None
        assert await store.flow_instances.find(ended.flow_instance_id) is None
        assert await store.timers.find(timer.timer_id) is None
        assert await store.correlations.list_waiting("parcel-77") == []
        assert await store.flow_instances.get(kept.flow_instance_id) == kept
        assert await store.flow_definitions.list_versions(first.flow_id) == [second]

    async def test_a_flow_that_is_being_added_keeps_its_definition(self, store: Store, other_store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        async with store.begin() as uow:
            flow = await factories.add_flow(uow, definition)
            undeploying = self.started(other_store.flow_definitions.undeploy(definition.flow_id))
            await self.blocked(undeploying)
        with pytest.raises(FlowDefinitionInUse):
            await self.finished(undeploying)
        assert await store.flow_instances.get(flow.flow_instance_id) == flow

    async def test_a_definition_that_is_being_undeployed_gets_no_new_flow(
        self, store: Store, other_store: Store
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        async with store.begin() as uow:
            await uow.flow_definitions.undeploy(definition.flow_id)
            adding = self.started(factories.add_flow(other_store, definition))
            await self.blocked(adding)
        with pytest.raises(FlowDefinitionNotFound):
            await self.finished(adding)
        assert await store.flow_instances.count() == 0

    # C-27

    @rule("C-27")
    async def test_a_flow_stays_on_its_version(self, store: Store) -> None:
        first = await factories.deploy_flow_definition(store, name="one")
        flow = await factories.add_flow(store, first)
        second = await factories.deploy_flow_definition(store, first.flow_id, name="two")
        assert await store.flow_instances.get(flow.flow_instance_id) == flow
        flow = await store.advance(flow.complete_step("charge"))
        assert (flow.flow_version, (await store.flow_instances.get(flow.flow_instance_id)).flow_version) == (1, 1)
        assert [step.step_id for step in flow.ready_steps(first)] == ["ship"]
        with pytest.raises(InvalidArgument):
            flow.ready_steps(second)
        newer = await factories.add_flow(store, second)
        assert newer.flow_version == 2

    @rule("C-27")
    async def test_a_flow_goes_on_after_its_definition_is_hidden(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        flow = await store.advance((await factories.add_flow(store, definition)).complete())
        await store.flow_definitions.undeploy(definition.flow_id)
        noted = await store.flow_instances.save(flow)
        assert noted.version == flow.version + 1
        assert await store.flow_definitions.get(flow.flow_id, flow.flow_version) == definition
