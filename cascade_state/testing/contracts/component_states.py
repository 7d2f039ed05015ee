"""Component states: JSON per (flow instance, step), with a version and an expiry of its own."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cascade_state.abc import Store
from cascade_state.errors import ComponentStateNotFound, FlowInstanceNotFound, InvalidArgument, VersionConflict
from cascade_state.ids import new_flow_instance_id
from cascade_state.model.component_states import ComponentState
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["ComponentStatesContract"]


class ComponentStatesContract(StoreContract):
    """put, get, find, remove and list."""

    @rule("C-20")
    async def test_put_returns_the_state_at_its_version(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store)
        first = await store.component_states.put(flow.flow_instance_id, "charge", {"attempts": 1})
        assert (first.version, first.updated_at, first.expires_at) == (1, clock.now(), None)
        clock.advance(LEASE)
        second = await store.component_states.put(flow.flow_instance_id, "charge", {"attempts": 2})
        assert (second.version, second.updated_at, second.state) == (2, clock.now(), {"attempts": 2})
        assert await other_store.component_states.get(flow.flow_instance_id, "charge") == second
        assert await other_store.flow_instances.get(flow.flow_instance_id) == flow

    async def test_what_is_not_there_is_not_found(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        assert await store.component_states.find(flow.flow_instance_id, "charge") is None
        with pytest.raises(ComponentStateNotFound) as caught:
            await store.component_states.get(flow.flow_instance_id, "charge")
        assert str(flow.flow_instance_id) in str(caught.value.key)
        assert "charge" in str(caught.value.key)
        assert await store.component_states.find(new_flow_instance_id(), "charge") is None
        assert await store.component_states.list_for_instance(new_flow_instance_id()) == []

    async def test_put_for_an_unknown_flow_is_refused(self, store: Store) -> None:
        unknown = new_flow_instance_id()
        for expected_version in (None, 0):
            with pytest.raises(FlowInstanceNotFound) as caught:
                await store.component_states.put(unknown, "charge", {}, expected_version=expected_version)
            assert caught.value.key == unknown
        assert await store.component_states.find(unknown, "charge") is None

    async def test_put_for_a_flow_that_has_ended_is_allowed(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        ended = await store.advance(flow.complete())
        await store.component_states.put(ended.flow_instance_id, "charge", {"kept": True})
        assert (await store.component_states.get(ended.flow_instance_id, "charge")).state == {"kept": True}

    async def test_an_expected_version_guards_the_write(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store)
        states, key = store.component_states, (flow.flow_instance_id, "charge")
        with pytest.raises(VersionConflict) as caught:
            await states.put(*key, "early", expected_version=1)
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 0)
        first = await states.put(*key, "first", expected_version=0)
        assert first.version == 1
        with pytest.raises(VersionConflict) as caught:
            await other_store.component_states.put(*key, "again", expected_version=0)
        assert (caught.value.expected_version, caught.value.actual_version) == (0, 1)
        second = await other_store.component_states.put(*key, "second", expected_version=1)
        with pytest.raises(VersionConflict) as caught:
            await states.put(*key, "stale", expected_version=1)
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
        assert await states.get(*key) == second

    @pytest.mark.parametrize("expected_version", [0, 1])
    async def test_of_two_concurrent_guarded_writes_one_succeeds(
        self, store: Store, other_store: Store, expected_version: int
    ) -> None:
        flow = await factories.add_flow(store)
        key = (flow.flow_instance_id, "charge")
        if expected_version:
            await store.component_states.put(*key, "there")
        async with store.begin() as uow:
            mine = await uow.component_states.put(*key, "mine", expected_version=expected_version)
            theirs = self.started(other_store.component_states.put(*key, "theirs", expected_version=expected_version))
            await self.blocked(theirs)
        with pytest.raises(VersionConflict) as caught:
            await self.finished(theirs)
        assert caught.value.actual_version == expected_version + 1
        assert await other_store.component_states.get(*key) == mine

    async def test_a_guarded_write_succeeds_after_the_other_one_rolled_back(
        self, store: Store, other_store: Store
    ) -> None:
        flow = await factories.add_flow(store)
        key = (flow.flow_instance_id, "charge")
        async with store.begin() as uow:
            await uow.component_states.put(*key, "mine", expected_version=0)
            theirs = self.started(other_store.component_states.put(*key, "theirs", expected_version=0))
            await self.blocked(theirs)
            await uow.rollback()
        assert (await self.finished(theirs)).version == 1
        assert (await store.component_states.get(*key)).state == "theirs"

    async def test_two_concurrent_unguarded_writes_both_count(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store)
        key = (flow.flow_instance_id, "charge")
        async with store.begin() as uow:
            await uow.component_states.put(*key, "mine")
            theirs = self.started(other_store.component_states.put(*key, "theirs"))
            await self.settled(theirs)
        assert (await self.finished(theirs)).version == 2
        assert (await store.component_states.get(*key)).state == "theirs"

    async def test_an_expired_state_is_not_found(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        states, key = store.component_states, (flow.flow_instance_id, "charge")
        await states.put(flow.flow_instance_id, "other", "stays")
        put = await states.put(*key, "short", expires_at=clock.now() + LEASE)
        clock.advance(LEASE - timedelta(microseconds=1))
        assert await states.get(*key) == put
        clock.advance(timedelta(microseconds=1))
        assert await states.find(*key) is None
        with pytest.raises(ComponentStateNotFound):
            await states.get(*key)
        assert [state.step_id for state in await states.list_for_instance(flow.flow_instance_id)] == ["other"]

    async def test_an_expired_state_counts_as_none_for_the_next_write(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        states, key = store.component_states, (flow.flow_instance_id, "charge")
        put = await states.put(*key, "short", expires_at=clock.now() + LEASE)
        clock.advance(LEASE)
        with pytest.raises(VersionConflict) as caught:
            await states.put(*key, "stale", expected_version=put.version)
        assert caught.value.actual_version == 0
        fresh = await states.put(*key, "fresh", expected_version=0)
        assert (fresh.version, fresh.expires_at) == (1, None)
        assert await states.get(*key) == fresh

    async def test_an_unguarded_write_over_an_expired_state_starts_anew(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        states, key = store.component_states, (flow.flow_instance_id, "charge")
        for _ in range(3):
            await states.put(*key, "short", expires_at=clock.now() + LEASE)
        clock.advance(LEASE)
        assert (await states.put(*key, "fresh")).version == 1

    async def test_a_write_replaces_the_expiry_too(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        states, key = store.component_states, (flow.flow_instance_id, "charge")
        await states.put(*key, "short", expires_at=clock.now() + LEASE)
        await states.put(*key, "long")
        clock.advance(LEASE)
        assert (await states.get(*key)).state == "long"

    @rule("C-20")
    async def test_put_states_of_an_advance_overwrites_whatever_is_there(
        self, store: Store, clock: FrozenClock
    ) -> None:
        flow = await factories.add_flow(store)
        states, key = store.component_states, (flow.flow_instance_id, "charge")
        await states.put(*key, "short", expires_at=clock.now() + LEASE)
        flow = await store.advance(flow, put_states={"charge": "from advance", "ship": None})
        state = await states.get(*key)
        assert (state.state, state.version, state.expires_at) == ("from advance", 2, None)
        assert (await states.get(flow.flow_instance_id, "ship")).state is None
        await store.advance(flow, remove_states=["charge", "never there"])
        assert [state.step_id for state in await states.list_for_instance(flow.flow_instance_id)] == ["ship"]

    async def test_remove_says_whether_there_was_one(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        states, key = store.component_states, (flow.flow_instance_id, "charge")
        await states.put(*key, "x")
        assert await states.remove(*key) is True
        assert await states.remove(*key) is False
        assert await states.find(*key) is None
        assert await states.remove(new_flow_instance_id(), "charge") is False
        assert (await states.put(*key, "y", expected_version=0)).version == 1

    @rule("C-26")
    async def test_the_list_is_ordered_by_step_id_and_continues_by_cursor(self, store: Store) -> None:
        flow, other = await factories.add_flow(store), await factories.add_flow(store)
        steps = ["Z", "a", "b", "é", "step-10", "step-2", "💣", "\uffff", "_"]
        for step_id in steps:
            await store.component_states.put(flow.flow_instance_id, step_id, step_id)
        await store.component_states.put(other.flow_instance_id, "a", "another flow's")
        whole = await store.component_states.list_for_instance(flow.flow_instance_id)
        assert [state.step_id for state in whole] == sorted(steps)
        assert whole.next_cursor is None
        listed: list[ComponentState] = []
        cursor: str | None = None
        while True:
            page = await store.component_states.list_for_instance(flow.flow_instance_id, limit=2, cursor=cursor)
            listed.extend(page)
            cursor = page.next_cursor
            if cursor is None:
                break
            assert len(page) == 2
        assert listed == whole
        first = await store.component_states.list_for_instance(flow.flow_instance_id, limit=1)
        with pytest.raises(InvalidArgument):
            await store.component_states.list_for_instance(other.flow_instance_id, cursor=first.next_cursor)
