"""Cancellation at every await: nothing half stored, nothing left open, the store usable (C-02)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID

import pytest
import pytest_asyncio

from cascade_state.abc import Store
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import ScheduleTimer
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import LEASE, OpenStore, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = ["CancellationContract"]

Operation: TypeAlias = Callable[[Store, FlowInstance], Coroutine[Any, Any, Any]]


async def _advance(store: Store, flow: FlowInstance) -> None:
    timers = [ScheduleTimer("charge", after=LEASE)]
    await store.advance(flow.complete_step("charge"), put_states={"charge": 1}, schedule=timers)


async def _advance_with_wait(store: Store, flow: FlowInstance) -> None:
    waiting = flow.complete_step("charge").suspend_for_event("ship", f"parcel {flow.flow_instance_id}")
    await store.advance(waiting, put_states={"charge": 1}, schedule=[ScheduleTimer("charge", after=LEASE)])


async def _several_in_a_unit_of_work(store: Store, flow: FlowInstance) -> None:
    async with store.begin() as uow:
        await uow.component_states.put(flow.flow_instance_id, "charge", 1)
        await uow.timers.schedule(flow.flow_instance_id, "charge", after=LEASE)
        await uow.advance(flow.complete_step("charge"))


async def _with_savepoint(store: Store, flow: FlowInstance) -> None:
    async with store.begin() as uow:
        await uow.component_states.put(flow.flow_instance_id, "charge", 1)
        async with uow.savepoint():
            await uow.timers.schedule(flow.flow_instance_id, "charge", after=LEASE)
        await uow.advance(flow.complete_step("charge"))


async def _by_run(store: Store, flow: FlowInstance) -> None:
    async def write(uow: Any) -> None:
        timers = [ScheduleTimer("charge", after=LEASE)]
        await uow.advance(flow.complete_step("charge"), put_states={"charge": 1}, schedule=timers)

    await store.run(write)


_OPERATIONS: dict[str, Operation] = {
    "advance": _advance,
    "advance with a wait": _advance_with_wait,
    "unit of work": _several_in_a_unit_of_work,
    "unit of work with a savepoint": _with_savepoint,
    "run": _by_run,
}

Single: TypeAlias = Callable[[Store, UUID], Awaitable[object]]

_SINGLE_CALLS: dict[str, Single] = {
    "put": lambda store, flow: store.component_states.put(flow, "charge", {"attempts": 1}),
    "schedule": lambda store, flow: store.timers.schedule(flow, "charge", after=LEASE),
    "publish": lambda store, flow: store.correlations.publish("parcel-77", {}, event_id=factories.unique("event")),
    "deploy": lambda store, flow: store.flow_definitions.deploy(factories.flow_definition()),
    "claim": lambda store, flow: store.flow_instances.claim("worker-1", lease_duration=LEASE),
    "claim_due": lambda store, flow: store.timers.claim_due("worker-1", lease_duration=LEASE),
    "claim_delivered": lambda store, flow: store.correlations.claim_delivered("worker-1", lease_duration=LEASE),
    "get": lambda store, flow: store.flow_instances.get(flow),
    "list_page": lambda store, flow: store.flow_instances.list_page(),
    "purge": lambda store, flow: store.flow_instances.purge(store.options.clock.now()),  # type: ignore[union-attr]
    "export": lambda store, flow: store.flow_instances.export(flow),
    "statistics": lambda store, flow: store.statistics(),
}


class CancellationContract(StoreContract):
    """Whoever is cancelled leaves nothing behind."""

    @pytest_asyncio.fixture
    async def narrow_store(self, store: Store, open_store_again: OpenStore) -> AsyncIterator[Store]:
        """A store with one connection: one that is not given back is missed by the next call."""
        async with open_store_again(pool_size=1, pool_timeout_seconds=5.0) as opened:
            yield opened

    @rule("C-02")
    @pytest.mark.parametrize("name", sorted(_OPERATIONS))
    async def test_cancelled_at_any_await_all_is_stored_or_nothing(
        self, store: Store, narrow_store: Store, name: str
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        flows: list[FlowInstance] = []

        async def operate() -> None:
            await _OPERATIONS[name](narrow_store, flows[-1])

        async def check(completed: bool) -> None:
            flow = flows[-1]
            stored = await self.finished(narrow_store.flow_instances.get(flow.flow_instance_id))
            states = await store.component_states.list_for_instance(flow.flow_instance_id)
            timers = await store.timers.list_for_instance(flow.flow_instance_id)
            waits = await store.flow_instances.find_by_correlation(f"parcel {flow.flow_instance_id}")
            is_stored = stored.version == 2
            assert is_stored or not completed
            assert (len(states), len(timers)) == ((1, 1) if is_stored else (0, 0))
            assert bool(waits) == bool(stored.waits)
            assert stored.completed_steps == ({"charge"} if is_stored else frozenset())
            assert await self.observer.open_transactions() == []
            if not is_stored:  # neither is the row held by anybody
                await self.finished(store.advance(stored.complete_step("charge")))
            flows.append(await factories.add_flow(store, definition))

        flows.append(await factories.add_flow(store, definition))
        await self.cancelled_at_every_await(operate, check)

    @rule("C-02")
    @pytest.mark.parametrize("name", sorted(_SINGLE_CALLS))
    async def test_a_call_cancelled_at_any_await_leaves_the_store_usable(
        self, store: Store, narrow_store: Store, name: str
    ) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")

        async def operate() -> None:
            await _SINGLE_CALLS[name](narrow_store, flow.flow_instance_id)

        async def check(completed: bool) -> None:
            assert await self.observer.open_transactions() == []
            assert await self.finished(narrow_store.flow_instances.get(flow.flow_instance_id)) == flow
            async with asyncio.timeout(20), narrow_store.begin() as uow:
                await uow.component_states.put(flow.flow_instance_id, "probe", completed)

        await self.cancelled_at_every_await(operate, check)

    @rule("C-02")
    async def test_a_publication_cancelled_at_any_await_is_delivered_once_or_not_at_all(
        self, store: Store, narrow_store: Store
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        keys: list[str] = []

        async def operate() -> None:
            await narrow_store.correlations.publish(keys[-1], {}, event_id="evt-1")

        async def renew() -> None:
            keys.append(factories.unique("key"))
            await factories.add_flow(store, definition, waits_for=keys[-1])

        async def check(completed: bool) -> None:
            made = await self.finished(narrow_store.correlations.publish(keys[-1], {}, event_id="evt-1"))
            assert not (completed and made)
            claimed = await store.correlations.claim_delivered("worker-1", lease_duration=LEASE)
            assert [delivery.correlation_key for delivery in claimed] == [keys[-1]]
            await renew()

        await renew()
        await self.cancelled_at_every_await(operate, check)

    @rule("C-02", "C-42")
    async def test_a_claim_cancelled_at_any_await_in_a_unit_of_work_leaves_no_trace(
        self, store: Store, narrow_store: Store
    ) -> None:
        flow = await factories.add_flow(store)
        timer = await store.timers.schedule(flow.flow_instance_id, "charge", after=timedelta(0))

        async def operate() -> None:
            async with narrow_store.begin() as uow:
                (claimed,) = await uow.timers.claim_due("worker-1", lease_duration=LEASE)
                assert claimed.attempts == 1
                await uow.rollback()

        async def check(completed: bool) -> None:
            assert await store.timers.get(timer.timer_id) == timer

        await self.cancelled_at_every_await(operate, check)

    @rule("C-02")
    async def test_cancelled_while_waiting_for_another_transaction(self, store: Store, narrow_store: Store) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            mine = await uow.advance(flow.complete_step("charge"))
            waiting = self.started(_several_in_a_unit_of_work(narrow_store, flow))
            await self.blocked(waiting)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await self.finished(waiting)
        assert await store.flow_instances.get(flow.flow_instance_id) == mine
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []
        assert await self.observer.open_transactions() == []
        later = await self.finished(narrow_store.advance(mine.complete_step("ship")))
        assert later.version == 3

    @rule("C-02")
    async def test_a_single_call_cancelled_while_waiting_for_another_transaction(
        self, store: Store, narrow_store: Store
    ) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            mine = await uow.advance(flow.complete_step("charge"))
            waiting = self.started(narrow_store.advance(flow.complete_step("ship")))
            await self.blocked(waiting)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await self.finished(waiting)
        assert await store.flow_instances.get(flow.flow_instance_id) == mine
        later = await self.finished(narrow_store.advance(mine.complete_step("ship")))
        assert later.version == 3

    @rule("C-02")
    async def test_cancelling_one_of_several_concurrent_calls_spares_the_others(
        self, store: Store, other_store: Store
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        flows = [await factories.add_flow(store, definition) for _ in range(8)]
        async with other_store.begin() as uow:
            held = await uow.advance(flows[0].complete_step("charge"))
            tasks = [self.started(store.advance(flow.complete_step("ship"))) for flow in flows]
            await self.settled(*tasks)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await self.finished(tasks[0])
        for flow, task in zip(flows[1:], tasks[1:], strict=True):
            assert (await self.finished(task)).flow_instance_id == flow.flow_instance_id
        assert await store.flow_instances.get(flows[0].flow_instance_id) == held
        for flow in flows[1:]:
            assert (await store.flow_instances.get(flow.flow_instance_id)).completed_steps == {"ship"}
