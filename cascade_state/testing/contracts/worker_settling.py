"""Worker: the effect and the acknowledgement commit together, whoever of handler and worker acknowledges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.errors import InvalidArgument, LeaseLost, UnitOfWorkFinished
from cascade_state.model.correlations import Delivery
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.timers import Timer
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE
from cascade_state.testing.contracts.claiming import claim_timers
from cascade_state.testing.contracts.rules import rule
from cascade_state.testing.contracts.working import Workers

__all__ = ["WorkerSettlingContract"]

_NOW = timedelta(0)
_HOUR = timedelta(hours=1)


class WorkerSettlingContract(Workers):
    """The effect and the acknowledgement commit together, whoever of handler and worker acknowledges."""

    _SETTLING: dict[str, Callable[[Timer, UnitOfWork], Awaitable[object]]] = {  # noqa: RUF012 - never changed
        "nothing": lambda item, uow: asyncio.sleep(0),
        "complete": lambda item, uow: uow.timers.complete([item]),
        "cancel": lambda item, uow: uow.timers.cancel(item.timer_id),
        "remove": lambda item, uow: uow.flow_instances.remove(item.flow_instance_id),
        "give up": lambda item, uow: uow.timers.give_up(item, reason="enough"),
    }

    @rule("Workers", "C-44")
    @pytest.mark.parametrize("way", sorted(_SETTLING))
    async def test_a_handler_may_settle_its_item_in_any_way(self, store: Store, way: str) -> None:
        timer = await self.timer(store)
        calls = 0

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            nonlocal calls
            calls += 1
            await uow.flow_instances.remove(item.flow_instance_id) if way == "remove" else None
            if way != "remove":
                await uow.component_states.put(item.flow_instance_id, "ship", calls)
                await self._SETTLING[way](item, uow)

        async with self.running(store, on_timer=on_timer) as worker:
            await self.until(lambda: calls and worker.in_hand == 0)
            await asyncio.sleep(0.1)  # it does not come back
        assert calls == 1
        if way != "remove":
            assert (await store.component_states.get(timer.flow_instance_id, "ship")).state == 1
        assert await claim_timers(store) == []

    @rule("Workers", "C-24")
    async def test_ending_the_flow_settles_its_timer_and_its_delivery(self, store: Store) -> None:
        timer = await self.timer(store)
        flow = await self.delivery(store)
        calls: list[object] = []

        async def end(item: Timer | Delivery, uow: UnitOfWork) -> None:
            calls.append(item)
            await uow.advance((await uow.flow_instances.get(item.flow_instance_id)).cancel("enough"))

        async with self.running(store, on_timer=end, on_delivery=end) as worker:
            await self.until(lambda: len(calls) == 2 and worker.in_hand == 0)
        for flow_instance_id in (timer.flow_instance_id, flow.flow_instance_id):
            assert (await store.flow_instances.get(flow_instance_id)).status is FlowStatus.CANCELLED
        assert len(calls) == 2

    @rule("Workers", "C-24")
    async def test_resuming_the_flow_settles_what_it_waited_for(self, store: Store) -> None:
        timer = await self.waiting_timer(store)
        flow = await self.delivery(store)
        settled: list[bool] = []

        async def resume(item: Timer | Delivery, uow: UnitOfWork) -> None:
            found = await uow.flow_instances.get(item.flow_instance_id)
            await uow.advance(found.resume().complete_step(item.step_id))
            settled.append(uow.has_settled(item))

        async with self.running(store, on_timer=resume, on_delivery=resume) as worker:
            await self.until(lambda: len(settled) == 2 and worker.in_hand == 0)
        assert settled == [True, True]
        for flow_instance_id in (timer.flow_instance_id, flow.flow_instance_id):
            found = await store.flow_instances.get(flow_instance_id)
            assert (found.status, len(found.completed_steps)) == (FlowStatus.RUNNING, 1)
        assert await claim_timers(store) == []

    @rule("Workers", "C-24")
    async def test_what_was_settled_before_may_be_removed_once_more(self, store: Store) -> None:
        timer = await self.waiting_timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            await uow.timers.complete([item])
            found = await uow.flow_instances.get(item.flow_instance_id)
            await uow.advance(found.resume().complete_step(item.step_id))

        async with self.running(store, on_timer=on_timer):
            await self.until(lambda: self.is_gone(store, timer))
        assert len((await store.flow_instances.get(timer.flow_instance_id)).completed_steps) == 1

    @rule("Workers", "C-23", "C-50")
    async def test_resuming_a_flow_by_a_timer_that_was_taken_stores_nothing(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        timer = await self.waiting_timer(store)
        taken: list[Timer] = []
        is_done = False

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            nonlocal is_done
            clock.advance(LEASE)
            taken.extend(await claim_timers(other_store, "worker-2"))
            found = await uow.flow_instances.get(item.flow_instance_id)
            await uow.advance(found.resume().complete_step(item.step_id))
            assert not uow.has_settled(item)
            is_done = True

        async with self.running(store, on_timer=on_timer, lease_duration=LEASE, concurrency=1) as worker:
            await self.until(lambda: is_done and worker.in_hand == 0)
        assert (await store.flow_instances.get(timer.flow_instance_id)).status is FlowStatus.WAITING_FOR_TIMER
        assert (await store.timers.get(timer.timer_id)).lease == taken[0].lease

    @rule("Workers", "C-43")
    async def test_a_timer_that_is_moved_by_its_handler_comes_again(self, store: Store, clock: FrozenClock) -> None:
        timer = await self.timer(store)
        calls = 0

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                await uow.timers.reschedule(item.timer_id, clock.now() + _HOUR)

        async with self.running(store, on_timer=on_timer) as worker:
            await self.until(lambda: calls == 1 and worker.in_hand == 0)
            assert (await store.timers.get(timer.timer_id)).due_at == clock.now() + _HOUR
            clock.advance(_HOUR)
            await self.until(lambda: self.is_gone(store, timer))
        assert calls == 2

    @rule("Workers", "C-23", "C-43")
    async def test_what_was_taken_away_meanwhile_is_undone(self, store: Store, other_store: Store) -> None:
        timer = await self.timer(store)
        calls: list[Timer] = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            await uow.component_states.put(item.flow_instance_id, "ship", "stale")
            assert await other_store.timers.cancel(item.timer_id)
            calls.append(item)

        async with self.running(store, on_timer=on_timer) as worker:
            await self.until(lambda: calls and worker.in_hand == 0)
        assert await store.component_states.find(timer.flow_instance_id, "ship") is None
        assert len(calls) == 1

    @rule("Workers", "C-50")
    async def test_a_handler_whose_lease_expired_and_was_taken_stores_nothing(
        self, store: Store, other_store: Store, clock: FrozenClock
    ) -> None:
        timer = await self.timer(store)
        taken: list[Timer] = []
        outcome: list[str] = []

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            clock.advance(LEASE)
            taken.extend(await claim_timers(other_store, "worker-2"))
            await uow.component_states.put(item.flow_instance_id, "ship", "stale")
            with pytest.raises(LeaseLost):
                await uow.advance(
                    (await uow.flow_instances.get(item.flow_instance_id)).complete_step("ship"), completes=[item]
                )
            outcome.append("refused")  # and it goes on, as if nothing had happened

        # One place: the worker itself must not be the one that takes it.
        async with self.running(store, on_timer=on_timer, lease_duration=LEASE, concurrency=1) as worker:
            await self.until(lambda: outcome and worker.in_hand == 0)
        assert outcome == ["refused"]
        assert await store.component_states.find(timer.flow_instance_id, "ship") is None
        assert (await store.flow_instances.get(timer.flow_instance_id)).completed_steps == set()
        assert (await store.timers.get(timer.timer_id)).lease == taken[0].lease

    @rule("Workers", "C-04")
    async def test_an_acknowledgement_that_a_savepoint_undid_is_made_up_for(self, store: Store) -> None:
        timer = await self.timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            with pytest.raises(RuntimeError):
                async with uow.savepoint():
                    found = await uow.flow_instances.get(item.flow_instance_id)
                    await uow.advance(found.complete_step("charge"), completes=[item])
                    assert uow.has_settled(item)
                    raise RuntimeError("undo this")
            assert not uow.has_settled(item)
            await uow.component_states.put(item.flow_instance_id, "ship", "kept")

        async with self.running(store, on_timer=on_timer):
            await self.until(lambda: self.is_gone(store, timer))
        assert (await store.component_states.get(timer.flow_instance_id, "ship")).state == "kept"

    @rule("Workers", "C-03")
    async def test_a_handler_that_rolls_back_has_not_handled_its_item(self, store: Store, clock: FrozenClock) -> None:
        timer = await self.timer(store)

        async def on_timer(item: Timer, uow: UnitOfWork) -> None:
            if item.attempts == 1:
                found = await uow.flow_instances.get(item.flow_instance_id)
                await uow.advance(found.complete_step("charge"), completes=[item])
                await uow.rollback()
                with pytest.raises(UnitOfWorkFinished):
                    uow.has_settled(item)

        async with self.running(store, on_timer=on_timer):
            await self.until(lambda: self.is_gone(store, timer), ticking=clock)
        assert (await store.flow_instances.get(timer.flow_instance_id)).completed_steps == set()

    @rule("Workers")
    async def test_a_unit_of_work_knows_what_it_settled(self, store: Store, clock: FrozenClock) -> None:
        await self.timer(store)
        await self.timer(store)
        one, two = await claim_timers(store)
        orphan = await self.orphan(store, clock)
        async with store.begin() as uow:
            assert not uow.has_settled(one)
            assert not uow.has_settled(orphan)
            found = await uow.flow_instances.get(one.flow_instance_id)
            await uow.advance(found.complete_step("charge"), completes=[one])
            assert uow.has_settled(one)
            assert not uow.has_settled(two)
            await uow.advance((await uow.flow_instances.get(two.flow_instance_id)).fail("x"))
            await uow.advance(orphan.complete())
            assert uow.has_settled(two)
            assert uow.has_settled(orphan)

    @rule("Workers", "C-24")
    async def test_what_is_in_hand_was_claimed(self, store: Store) -> None:
        timer = await self.waiting_timer(store)
        async with store.begin() as uow:
            with pytest.raises(LeaseLost):
                uow.take_in_hand(timer)
            with pytest.raises(InvalidArgument, match="item"):
                uow.take_in_hand(timer.timer_id)  # type: ignore[arg-type]
            (claimed,) = await claim_timers(store)
            uow.take_in_hand(claimed)
            found = await uow.flow_instances.get(timer.flow_instance_id)
            await uow.advance(found.resume().complete_step(timer.step_id))
            assert uow.has_settled(claimed)

    @rule("Workers")
    async def test_a_unit_of_work_can_be_told_how_long_it_may_be_idle(self, store: Store) -> None:
        async with store.begin() as uow:
            await uow.limit_idle(_HOUR)
            await uow.limit_idle(timedelta(days=36_500))
            with pytest.raises(InvalidArgument):
                await uow.limit_idle(_NOW)

    @rule("Workers", "C-02")
    async def test_a_unit_of_work_may_begin_with_a_limit_on_idleness(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        async with store.begin(idle_limit=_HOUR) as uow:
            await uow.component_states.put(flow.flow_instance_id, "charge", 1)
            assert not uow.is_untouched
        with pytest.raises(ZeroDivisionError):
            async with store.begin(idle_limit=_HOUR) as uow:
                await uow.component_states.put(flow.flow_instance_id, "charge", 2)
                raise ZeroDivisionError
        assert (await store.component_states.get(flow.flow_instance_id, "charge")).state == 1
        with pytest.raises(UnitOfWorkFinished):
            _ = uow.is_untouched
        with pytest.raises(InvalidArgument):
            store.begin(idle_limit=_NOW)
