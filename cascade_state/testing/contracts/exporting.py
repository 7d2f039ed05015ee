"""Export and import: a flow with all that belongs to it, from one store into another."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from cascade_state.abc import Store
from cascade_state.errors import AlreadyExists, InvalidArgument
from cascade_state.model.events import NewEvent
from cascade_state.model.export import EXPORT_FORMAT_VERSION
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import TimerStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["ExportingContract"]


class ExportingContract(StoreContract):
    """The store is emptied of the flow between export and import, so that one store serves as both."""

    async def _family(self, store: Store, clock: FrozenClock) -> list[FlowInstance]:
        """Returns a root, its child and its grandchild, stored with everything that a flow can have."""
        definition = await factories.deploy_flow_definition(store)
        root = factories.flow_instance(
            definition, trigger_data={"n": [1, 2.5]}, business_key="order-1", search_attributes={"region": "eu"}
        ).start()
        root = await store.advance(root.complete_step("charge", {"receipt": "r-1"}).fail_step("pack", {"code": 7}))
        clock.advance(LEASE)
        root = root.suspend_for_event("ship", "parcel-77", expires_at=clock.now() + 10 * LEASE)
        root = root.suspend_for_event("sign", "box-1").suspend_for_timer("remind", after=LEASE)
        root = await store.advance(root, put_states={"charge": {"a": 1}, "ship": None}, events=[NewEvent("noted", [1])])
        await store.component_states.put(root.flow_instance_id, "short", 1, expires_at=clock.now() + LEASE)
        await store.timers.schedule(
            root.flow_instance_id, "audit", due_at=clock.now(), payload={"p": 1}, max_attempts=7
        )
        await store.timers.claim_due("worker-1", lease_duration=LEASE)
        await store.correlations.publish("box-1", {"signed": True}, event_id="evt-1")
        child = await store.advance(root.child(definition, business_key="order-1-a").start())
        grandchild = await store.advance(child.child(definition).start().cancel("no need"))
        return [root, child, grandchild]

    async def _seen(self, store: Store, flows: list[FlowInstance]) -> list[Any]:
        """Returns everything that a store shows of some flows, leases and positions left out."""
        seen: list[Any] = []
        for flow in flows:
            identity = flow.flow_instance_id
            timers = await store.timers.list_for_instance(identity)
            history = await store.flow_instances.history(identity)
            seen.append(
                [
                    await store.flow_instances.find(identity),
                    await store.component_states.list_for_instance(identity),
                    [replace(timer, lease=None, status=TimerStatus.PENDING) for timer in timers],
                    [replace(event, position="") for event in history],
                ]
            )
        seen.append(await store.correlations.list_waiting("parcel-77"))
        async with store.begin() as uow:
            claimed = await uow.correlations.claim_delivered("worker-1", lease_duration=LEASE)
            await uow.rollback()
        seen.append([replace(delivery, lease=None) for delivery in claimed])
        return seen

    async def _remove(self, store: Store, flows: list[FlowInstance]) -> None:
        for flow in flows:
            assert await store.flow_instances.remove(flow.flow_instance_id)

    @rule("C-10")
    async def test_an_imported_flow_equals_the_exported_one(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        flows = await self._family(store, clock)
        before = await self._seen(store, flows)
        document = json.loads(json.dumps(await other_store.flow_instances.export(flows[0].flow_instance_id)))
        assert document["format_version"] == EXPORT_FORMAT_VERSION
        await self._remove(store, flows)
        clock.advance(LEASE / 2)
        imported = await other_store.flow_instances.import_(document)
        assert imported == flows[0]
        assert await self._seen(store, flows) == before
        assert await store.flow_instances.find_by_business_key(flows[0].flow_id, "order-1") == flows[0]
        assert await store.flow_instances.find_by_correlation("parcel-77") == [flows[0]]

    async def test_an_imported_flow_goes_on(self, store: Store, clock: FrozenClock) -> None:
        flows = await self._family(store, clock)
        document = await store.flow_instances.export(flows[0].flow_instance_id)
        await self._remove(store, flows)
        flow = await store.flow_instances.import_(document)
        (timer,) = await store.timers.claim_due("worker-2", lease_duration=LEASE)
        assert (timer.step_id, timer.attempts, timer.max_attempts) == ("audit", 2, 7)
        (delivery,) = await store.correlations.claim_delivered("worker-2", lease_duration=LEASE)
        assert (delivery.event_id, delivery.payload) == ("evt-1", {"signed": True})
        assert len(await store.correlations.publish("parcel-77", {})) == 1
        flow = await store.advance(flow.resume("sign").complete_step("sign"), completes=[delivery, timer])
        history = await store.flow_instances.history(flow.flow_instance_id)
        assert [event.sequence for event in history] == list(range(1, len(history) + 1))
        state = await store.component_states.put(flow.flow_instance_id, "charge", {}, expected_version=1)
        assert state.version == 2
        assert (await store.advance(flow.fail("enough"))).is_terminal

    async def test_the_definition_comes_along(self, store: Store, clock: FrozenClock) -> None:
        flows = await self._family(store, clock)
        definition = await store.flow_definitions.get(flows[0].flow_id)
        document = await store.flow_instances.export(flows[0].flow_instance_id)
        renamed = json.loads(json.dumps(document).replace(definition.flow_id, factories.unique("imported")))
        await self._remove(store, flows)
        flow = await store.flow_instances.import_(renamed)
        assert flow.flow_id != definition.flow_id
        deployed = await store.flow_definitions.get(flow.flow_id)
        assert (deployed.version, deployed.steps) == (1, definition.steps)
        assert deployed.deployed_at == definition.deployed_at

    async def test_a_child_is_exported_with_its_own_descendants_only(self, store: Store, clock: FrozenClock) -> None:
        root, child, grandchild = await self._family(store, clock)
        document = await store.flow_instances.export(child.flow_instance_id)
        exported = [flow["instance"]["flow_instance_id"] for flow in document["flows"]]
        assert exported == [str(child.flow_instance_id), str(grandchild.flow_instance_id)]
        await self._remove(store, [child, grandchild])
        assert await store.flow_instances.import_(document) == child
        assert await store.flow_instances.get(root.flow_instance_id) == root
        assert await store.flow_instances.get(grandchild.flow_instance_id) == grandchild

    async def test_what_is_there_already_refuses_the_whole_import(self, store: Store, clock: FrozenClock) -> None:
        flows = await self._family(store, clock)
        document = await store.flow_instances.export(flows[0].flow_instance_id)
        with pytest.raises(AlreadyExists) as caught:
            await store.flow_instances.import_(document)
        assert caught.value.existing_id == flows[0].flow_instance_id
        await self._remove(store, flows[:2])
        with pytest.raises(AlreadyExists) as caught:
            await store.flow_instances.import_(document)
        assert caught.value.existing_id == flows[2].flow_instance_id
        await self._remove(store, flows[2:])
        definition = await store.flow_definitions.get(flows[0].flow_id)
        taker = await factories.add_flow(store, definition, business_key="order-1-a")
        with pytest.raises(AlreadyExists) as caught:
            await store.flow_instances.import_(document)
        assert (caught.value.entity, caught.value.existing_id) == ("business key", taker.flow_instance_id)
        assert await store.flow_instances.count() == 1
        assert await store.correlations.list_waiting("parcel-77") == []

    async def test_another_definition_under_the_same_version_refuses_the_import(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flows = await self._family(store, clock)
        document = deepcopy(dict(await store.flow_instances.export(flows[0].flow_instance_id)))
        await self._remove(store, flows)
        document["definitions"][0]["content"]["name"] = "Something else"
        with pytest.raises(AlreadyExists):
            await store.flow_instances.import_(document)
        assert await store.flow_instances.count() == 0

    async def test_an_import_is_part_of_its_unit_of_work(self, store: Store, clock: FrozenClock) -> None:
        flows = await self._family(store, clock)
        document = await store.flow_instances.export(flows[0].flow_instance_id)
        await self._remove(store, flows)
        async with store.begin() as uow:
            assert await uow.flow_instances.import_(document) == flows[0]
            await uow.rollback()
        assert await store.flow_instances.count() == 0

    @rule("C-10")
    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("format_version",), 2),
            (("format_version",), None),
            (("flows",), []),
            (("flows",), {}),
            (("definitions",), None),
            (("flows", 0, "instance", "flow_instance_id"), "not an id"),
            (("flows", 0, "instance", "status"), "SLEEPING"),
            (("flows", 0, "instance", "created_at"), "2030-01-01T00:00:00"),
            (("flows", 0, "instance", "created_at"), "yesterday"),
            (("flows", 0, "instance", "business_key"), 7),
            (("flows", 0, "instance", "version"), "1"),
            (("flows", 0, "instance", "unknown"), 1),
            (("flows", 0, "results"), "none"),
            (("flows", 0, "results", 0, "status"), "DONE"),
            (("flows", 0, "timers", 0, "timer_id"), 7),
            (("flows", 0, "timers", 0, "flow_instance_id"), "01a20dcf-796b-75b2-bf42-44801d9b8491"),
            (("flows", 0, "states", 0), 7),
            (("flows", 0, "history", 0, "sequence"), "first"),
            (("definitions", 0, "content", "steps"), 7),
            (("definitions", 0, "version"), 0),
        ],
    )
    async def test_a_document_that_is_no_export_is_refused(
        self, store: Store, clock: FrozenClock, path: tuple[str | int, ...], value: Any
    ) -> None:
        flows = await self._family(store, clock)
        document: Any = deepcopy(dict(await store.flow_instances.export(flows[0].flow_instance_id)))
        await self._remove(store, flows)
        place = document
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
        with pytest.raises(InvalidArgument) as caught:
            await store.flow_instances.import_(document)
        assert caught.value.argument == "document"
        assert await store.flow_instances.count() == 0
