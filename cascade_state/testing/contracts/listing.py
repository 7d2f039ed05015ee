"""Lists of flows and of their history: a total order, opaque cursors, no silent cut (C-26)."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from cascade_state.abc import Store
from cascade_state.errors import InvalidArgument, SerializationError
from cascade_state.model.events import FlowEvent, NewEvent
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["ListingContract"]

_SECOND = timedelta(seconds=1)


def _ids(flows: Any) -> list[UUID]:
    return [flow.flow_instance_id for flow in flows]


class ListingContract(StoreContract):
    """list_page, iterate, count, find_by_correlation and history."""

    async def _pages(self, store: Store, chosen: FlowInstanceFilter | None, limit: int) -> list[FlowInstance]:
        listed: list[FlowInstance] = []
        cursor: str | None = None
        while True:
            page = await store.flow_instances.list_page(chosen, limit=limit, cursor=cursor)
            listed.extend(page.items)
            cursor = page.next_cursor
            if cursor is None:
                return listed
            assert len(page.items) + len(page.undecodable) == limit

    @rule("C-26")
    async def test_flows_are_ordered_by_creation_then_id(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        later = clock.now() + _SECOND
        clock.set(later)
        second = [await factories.add_flow(store, definition) for _ in range(6)]
        clock.set(later - _SECOND)
        first = [await factories.add_flow(store, definition) for _ in range(6)]
        clock.set(later + _SECOND)
        third = [await factories.add_flow(store, definition) for _ in range(2)]
        expected = [
            flow for group in (first, second, third) for flow in sorted(group, key=lambda item: item.flow_instance_id)
        ]
        page = await store.flow_instances.list_page()
        assert list(page.items) == expected
        assert (page.next_cursor, page.undecodable) == (None, ())
        for limit in (1, 2, 4, 5, 13, 14, 15):
            assert await self._pages(store, None, limit) == expected, limit
            iterated = [flow async for flow in store.flow_instances.iterate(page_size=limit)]
            assert iterated == expected
        async with store.begin(read_only=True) as uow:
            assert [flow async for flow in uow.flow_instances.iterate(page_size=3)] == expected

    @rule("C-26")
    async def test_a_list_is_never_cut_silently(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        items = [factories.running_flow(definition) for _ in range(250)]
        await store.flow_instances.add_many(items)
        page = await store.flow_instances.list_page()
        assert len(page.items) == 100  # the default limit, and a cursor that says so
        assert page.next_cursor is not None
        assert await store.flow_instances.count() == 250
        assert set(_ids(await self._pages(store, None, 100))) == set(_ids(items))
        assert len([flow async for flow in store.flow_instances.iterate()]) == 250

    @rule("C-26")
    async def test_a_cursor_goes_on_behind_its_row_whatever_happens_meanwhile(
        self, store: Store, clock: FrozenClock
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        flows = []
        for _ in range(6):
            clock.advance(_SECOND)
            flows.append(await factories.add_flow(store, definition))
        page = await store.flow_instances.list_page(limit=3)
        assert list(page.items) == flows[:3]
        await store.flow_instances.remove(flows[2].flow_instance_id)  # the row that the cursor stands behind
        await store.flow_instances.remove(flows[4].flow_instance_id)
        changed = await store.advance(flows[3].complete_step("charge"))
        clock.advance(_SECOND)
        new = await factories.add_flow(store, definition)
        rest = await store.flow_instances.list_page(limit=3, cursor=page.next_cursor)
        assert list(rest.items) == [changed, flows[5], new]
        assert rest.next_cursor is None

    @rule("C-26")
    async def test_a_cursor_is_opaque_and_bound_to_its_filter(self, store: Store, other_store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        flows = [await factories.add_flow(store, definition, waits_for="parcel-77") for _ in range(3)]
        chosen = FlowInstanceFilter(flow_id=definition.flow_id)
        page = await store.flow_instances.list_page(chosen, limit=1)
        assert page.next_cursor is not None
        assert str(flows[0].flow_instance_id) not in page.next_cursor
        same = FlowInstanceFilter(flow_id=definition.flow_id)
        assert len((await other_store.flow_instances.list_page(same, cursor=page.next_cursor)).items) == 2
        for other in (None, FlowInstanceFilter(), FlowInstanceFilter(flow_id="another")):
            with pytest.raises(InvalidArgument) as caught:
                await store.flow_instances.list_page(other, cursor=page.next_cursor)
            assert caught.value.argument == "cursor"
        found = await store.flow_instances.find_by_correlation("parcel-77", limit=1)
        for wrong in (page.next_cursor, found.next_cursor):
            with pytest.raises(InvalidArgument):
                await store.flow_instances.find_by_correlation("parcel-78", cursor=wrong)
        with pytest.raises(InvalidArgument):
            await store.flow_instances.list_page(chosen, cursor=found.next_cursor)

    @rule("C-26")
    async def test_the_order_of_a_filters_parts_does_not_matter_to_its_cursor(self, store: Store) -> None:
        for _ in range(2):
            await factories.add_flow(store, search_attributes={"a": 1, "b": 2})
        one = FlowInstanceFilter(statuses=[FlowStatus.RUNNING, FlowStatus.FAILED], search_attributes={"a": 1, "b": 2})
        same = FlowInstanceFilter(statuses=(FlowStatus.FAILED, FlowStatus.RUNNING), search_attributes={"a": 1, "b": 2})
        page = await store.flow_instances.list_page(one, limit=1)
        assert len((await store.flow_instances.list_page(same, cursor=page.next_cursor)).items) == 1

    # filters

    @rule("C-26")
    async def test_filters_choose_by_definition_status_parent_and_key(self, store: Store, clock: FrozenClock) -> None:
        one = await factories.deploy_flow_definition(store, name="one")
        two = await factories.deploy_flow_definition(store, one.flow_id, name="two")
        another = await factories.deploy_flow_definition(store)
        new = await store.advance(factories.flow_instance(one, business_key="order-1"))
        running = await factories.add_flow(store, two, business_key="order-10")
        waiting = await factories.add_flow(store, another, business_key="invoice-1", waits_for="parcel-77")
        asleep = await store.advance(factories.running_flow(another).suspend_for_timer("ship", after=LEASE))
        child = await store.advance(running.child(another, business_key="Order-1").start())
        grandchild = await store.advance(child.child(another).start())
        ended = await store.advance(grandchild.fail("boom"))
        expectations: list[tuple[FlowInstanceFilter, list[FlowInstance]]] = [
            (FlowInstanceFilter(), [new, running, waiting, asleep, child, ended]),
            (FlowInstanceFilter(flow_id=one.flow_id), [new, running]),
            (FlowInstanceFilter(flow_id=one.flow_id, flow_version=2), [running]),
            (FlowInstanceFilter(flow_version=1), [new, waiting, asleep, child, ended]),
            (FlowInstanceFilter(flow_id="nowhere"), []),
            (FlowInstanceFilter(statuses=[FlowStatus.INITIALIZING]), [new]),
            (FlowInstanceFilter(statuses=[FlowStatus.WAITING_FOR_EVENT]), [waiting]),
            (FlowInstanceFilter(statuses=[FlowStatus.WAITING_FOR_TIMER, FlowStatus.FAILED]), [asleep, ended]),
            (FlowInstanceFilter(statuses=["RUNNING"]), [running, child]),  # type: ignore[list-item]
            (FlowInstanceFilter(statuses=[]), []),
            (FlowInstanceFilter(parent_id=running.flow_instance_id), [child]),
            (FlowInstanceFilter(parent_id=child.flow_instance_id), [ended]),
            (FlowInstanceFilter(parent_id=new.flow_instance_id), []),
            (FlowInstanceFilter(business_key_prefix="order-1"), [new, running]),
            (FlowInstanceFilter(business_key_prefix="order-10"), [running]),
            (FlowInstanceFilter(business_key_prefix="Order"), [child]),
            (FlowInstanceFilter(business_key_prefix=""), [new, running, waiting, asleep, child, ended]),
            (FlowInstanceFilter(flow_id=another.flow_id, statuses=[FlowStatus.RUNNING]), [child]),
        ]
        for chosen, expected in expectations:
            page = await store.flow_instances.list_page(chosen)
            assert set(_ids(page.items)) == set(_ids(expected)), chosen
            assert {flow.version for flow in page.items} == {flow.version for flow in expected}, chosen
            assert await store.flow_instances.count(chosen) == len(expected), chosen
            assert [flow async for flow in store.flow_instances.iterate(chosen, page_size=1)] == list(page.items), (
                chosen
            )

    @rule("C-26")
    @pytest.mark.parametrize("what", ["created", "updated", "completed"])
    async def test_ranges_are_from_inclusive_to_exclusive(self, store: Store, clock: FrozenClock, what: str) -> None:
        definition = await factories.deploy_flow_definition(store)
        start = clock.now()
        flows = []
        for number in range(4):
            clock.set(start + number * _SECOND if what == "created" else start)
            flow = await factories.add_flow(store, definition)
            if what != "created":
                clock.set(start + number * _SECOND)
                flow = await store.advance(flow.complete() if what == "completed" else flow.complete_step("charge"))
            flows.append(flow)
        await store.advance(factories.running_flow(definition)) if what == "completed" else None
        moments = [start + number * _SECOND for number in range(4)]
        for first in range(4):
            for last in range(4):
                chosen = FlowInstanceFilter(**{f"{what}_from": moments[first], f"{what}_to": moments[last]})  # type: ignore[arg-type]
                found = (await store.flow_instances.list_page(chosen)).items
                assert set(_ids(found)) == set(_ids(flows[first:last])), chosen
                assert await store.flow_instances.count(chosen) == max(last - first, 0)
        open_ended = FlowInstanceFilter(**{f"{what}_from": moments[2]})  # type: ignore[arg-type]
        assert set(_ids((await store.flow_instances.list_page(open_ended)).items)) == set(_ids(flows[2:]))

    @rule("C-26")
    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ({}, "abcdefg"),
            ({"region": "eu"}, "ab"),
            ({"region": "eu", "tier": 1}, "a"),
            ({"tier": 1.0}, "a"),
            ({"tier": "1"}, "b"),
            ({"tags": ["x"]}, "cd"),
            ({"tags": ["y", "x"]}, "c"),
            ({"tags": []}, "cd"),
            ({"tags": "x"}, ""),
            ({"nested": {"a": {"b": 1}}}, "e"),
            ({"nested": {"a": {}}}, "e"),
            ({"nested": {}}, "e"),
            ({"none": None}, "f"),
            ({"yes": True}, "g"),
            ({"yes": 1}, ""),
            ({"items": [{"id": 2}]}, "g"),
            ({"items": [{"id": 2}, {"id": 1}]}, "g"),
            ({"items": [{"id": 3}]}, ""),
            ({"big": 10**30}, "f"),
            ({"missing": None}, ""),
        ],
    )
    async def test_search_attributes_are_found_by_containment(
        self, store: Store, wanted: dict[str, Any], found: str
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        attributes: dict[str, dict[str, Any]] = {
            "a": {"region": "eu", "tier": 1},
            "b": {"region": "eu", "tier": "1"},
            "c": {"tags": ["x", "y"]},
            "d": {"tags": ["x"], "region": "us"},
            "e": {"nested": {"a": {"b": 1, "c": 2}}},
            "f": {"none": None, "big": 10**30},
            "g": {"yes": True, "items": [{"id": 1, "n": "one"}, {"id": 2, "n": "two"}]},
        }
        for name, given in attributes.items():
            await factories.add_flow(store, definition, business_key=name, search_attributes=given)
        chosen = FlowInstanceFilter(search_attributes=wanted)
        page = await store.flow_instances.list_page(chosen)
        assert sorted(flow.business_key or "" for flow in page.items) == list(found)
        assert await store.flow_instances.count(chosen) == len(found)

    # what cannot be decoded

    @rule("C-26")
    async def test_a_flow_that_cannot_be_decoded_is_reported(
        self, store: Store, clock: FrozenClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        flows = []
        for _ in range(4):
            clock.advance(_SECOND)
            flows.append(await factories.add_flow(store, definition))
        broken = flows[1].flow_instance_id
        await self.observer.make_undecodable(store, broken)
        for call in (store.flow_instances.get, store.flow_instances.find):
            with pytest.raises(SerializationError) as caught:
                await call(broken)
            assert (caught.value.entity, caught.value.key) == ("flow instance", broken)
        page = await store.flow_instances.list_page()
        assert _ids(page.items) == _ids([flows[0], *flows[2:]])
        assert [(error.entity, error.key) for error in page.undecodable] == [("flow instance", broken)]
        first = await store.flow_instances.list_page(limit=2)
        assert (_ids(first.items), len(first.undecodable)) == (_ids(flows[:1]), 1)
        rest = await store.flow_instances.list_page(limit=2, cursor=first.next_cursor)
        assert (_ids(rest.items), rest.next_cursor) == (_ids(flows[2:]), None)
        alone = await store.flow_instances.list_page(
            limit=1, cursor=(await store.flow_instances.list_page(limit=1)).next_cursor
        )
        assert (alone.items, len(alone.undecodable)) == ((), 1)
        assert alone.next_cursor is not None
        with caplog.at_level(logging.WARNING, logger="cascade_state"):
            iterated = [flow async for flow in store.flow_instances.iterate(page_size=1)]
        assert _ids(iterated) == _ids(page.items)
        assert str(broken) in caplog.text
        assert await store.flow_instances.count() == 4

    # by correlation

    @rule("C-26", "C-31")
    async def test_flows_are_found_by_what_they_wait_for(self, store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        flows = []
        for _ in range(5):
            clock.advance(_SECOND)
            flows.append(await factories.add_flow(store, definition, waits_for="parcel-77"))
        await factories.add_flow(store, definition, waits_for="parcel-78")
        both = await store.advance(flows[4].suspend_for_event("charge", "parcel-77"))
        expected = [*flows[:4], both]
        assert await store.flow_instances.find_by_correlation("parcel-77") == expected
        first = await store.flow_instances.find_by_correlation("parcel-77", limit=3)
        second = await store.flow_instances.find_by_correlation("parcel-77", limit=3, cursor=first.next_cursor)
        assert [*first, *second] == expected
        assert second.next_cursor is None
        assert await store.flow_instances.find_by_correlation("nothing") == []
        await store.correlations.publish("parcel-77", {})
        assert await store.flow_instances.find_by_correlation("parcel-77") == expected  # delivered, not yet resumed
        await store.advance(flows[0].resume())
        assert await store.flow_instances.find_by_correlation("parcel-77") == expected[1:]

    # history

    @rule("C-26")
    async def test_history_is_in_order_and_continues_by_cursor(self, store: Store, other_store: Store) -> None:
        flow, other = await factories.add_flow(store), await factories.add_flow(store)
        for number in range(10):
            flow = await store.advance(flow, events=[NewEvent("noted", {"number": number}), NewEvent("again")])
        whole = await other_store.flow_instances.history(flow.flow_instance_id)
        assert [event.sequence for event in whole] == list(range(1, 23))
        assert {event.flow_instance_id for event in whole} == {flow.flow_instance_id}
        assert [event.payload["number"] for event in whole if event.event_type == "noted"] == list(range(10))
        assert len(await store.flow_instances.history(other.flow_instance_id)) == 2
        listed: list[FlowEvent] = []
        cursor: str | None = None
        while len(listed) < 22:
            page = await store.flow_instances.history(flow.flow_instance_id, limit=7, cursor=cursor)
            listed.extend(page)
            cursor = page.next_cursor
            assert (cursor is None) is (len(listed) == 22)
        assert listed == whole
        first = await store.flow_instances.history(flow.flow_instance_id, limit=1)
        with pytest.raises(InvalidArgument):
            await store.flow_instances.history(other.flow_instance_id, cursor=first.next_cursor)

    @rule("C-26")
    async def test_history_tells_each_transition(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        flow = await store.advance(
            flow.complete_step("charge").fail_step("pack", "x").suspend_for_timer("ship", after=LEASE)
        )
        flow = await store.advance(flow.suspend_for_event("ship", "parcel-77").resume())
        await store.advance(flow.complete())
        cancelled = await store.advance((await factories.add_flow(store)).cancel("no stock"))
        failed = await store.advance((await factories.add_flow(store)).fail("boom"))
        assert [event.event_type for event in await store.flow_instances.history(flow.flow_instance_id)] == [
            "flow_instance.created",
            "flow_instance.started",
            "step.completed",
            "step.failed",
            "flow_instance.suspended_for_timer",
            "flow_instance.suspended_for_event",
            "flow_instance.resumed",
            "flow_instance.completed",
        ]
        for ended, last in ((cancelled, "flow_instance.cancelled"), (failed, "flow_instance.failed")):
            assert (await store.flow_instances.history(ended.flow_instance_id))[-1].event_type == last
