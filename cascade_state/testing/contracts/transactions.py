"""Transactions: all or nothing, seen by others only when committed (C-01 … C-06)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.errors import (
    AlreadyExists,
    CascadeStateError,
    StoreUnavailable,
    TransactionAborted,
    UnitOfWorkFinished,
    UsageError,
    VersionConflict,
)
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import LEASE, StoreContract
from cascade_state.testing.contracts.calls import CALLS
from cascade_state.testing.contracts.feed_reading import read_feed
from cascade_state.testing.contracts.rules import rule

__all__ = ["TransactionsContract"]

_WRITES = sorted(name for name, call in CALLS.items() if call.writes)
_READS = sorted(name for name, call in CALLS.items() if not call.writes)


class Interrupted(Exception):
    """An exception that the store knows nothing about."""


class TransactionsContract(StoreContract):
    """A unit of work is one transaction."""

    # C-01

    @rule("C-01")
    async def test_nothing_is_visible_to_others_before_the_commit_and_everything_after(
        self, store: Store, other_store: Store
    ) -> None:
        key = factories.unique("key")
        async with store.begin() as uow:
            definition = await factories.deploy_flow_definition(uow)
            flow = await factories.add_flow(uow, definition, business_key="order-1", waits_for=key)
            await uow.component_states.put(flow.flow_instance_id, "charge", {"attempts": 1})
            timer = await uow.timers.schedule(flow.flow_instance_id, "charge", after=LEASE)
            for outside in (store, other_store):
                assert await outside.flow_definitions.find(definition.flow_id) is None
                assert await outside.flow_instances.find(flow.flow_instance_id) is None
                assert await outside.flow_instances.find_by_business_key(definition.flow_id, "order-1") is None
                assert await outside.flow_instances.find_by_correlation(key) == []
                assert await outside.flow_instances.history(flow.flow_instance_id) == []
                assert await outside.flow_instances.count() == 0
                assert await outside.component_states.find(flow.flow_instance_id, "charge") is None
                assert await outside.timers.find(timer.timer_id) is None
                assert await outside.correlations.list_waiting(key) == []
                assert await outside.events.read() == []
        for outside in (store, other_store):
            assert (await outside.flow_definitions.get(definition.flow_id)).version == 1
            assert await outside.flow_instances.get(flow.flow_instance_id) == flow
            assert await outside.flow_instances.find_by_correlation(key) == [flow]
            assert (await outside.component_states.get(flow.flow_instance_id, "charge")).state == {"attempts": 1}
            assert await outside.timers.get(timer.timer_id) == timer
            assert [wait.step_id for wait in await outside.correlations.list_waiting(key)] == ["ship"]
            await read_feed(outside, 3)

    @rule("C-01")
    async def test_removals_and_changes_are_not_visible_before_the_commit_either(
        self, store: Store, other_store: Store
    ) -> None:
        kept, gone = await factories.add_flow(store), await factories.add_flow(store)
        async with store.begin() as uow:
            changed = await uow.advance(kept.complete_step("charge"))
            assert await uow.flow_instances.remove(gone.flow_instance_id)
            assert await other_store.flow_instances.get(kept.flow_instance_id) == kept
            assert await other_store.flow_instances.get(gone.flow_instance_id) == gone
        assert await other_store.flow_instances.get(kept.flow_instance_id) == changed
        assert await other_store.flow_instances.find(gone.flow_instance_id) is None

    @rule("C-01")
    async def test_a_unit_of_work_becomes_visible_at_once(self, store: Store, other_store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        chosen = FlowInstanceFilter(flow_id=definition.flow_id)
        ready = asyncio.Event()

        async def watch() -> list[int]:
            seen: list[int] = []
            while not seen or seen[-1] == 0:
                seen.append(await other_store.flow_instances.count(chosen))
                ready.set()
                await asyncio.sleep(0)
            return seen

        watching = self.started(watch())
        await self.finished(ready.wait())
        async with store.begin() as uow:
            for _ in range(5):
                await factories.add_flow(uow, definition)
        seen = await self.finished(watching)
        assert set(seen) == {0, 5}

    @rule("C-01")
    async def test_a_unit_of_work_sees_its_own_writes(self, store: Store) -> None:
        key = factories.unique("key")
        async with store.begin() as uow:
            flow = await factories.add_flow(uow, business_key="order-1", waits_for=key)
            assert await uow.flow_instances.get(flow.flow_instance_id) == flow
            assert await uow.flow_instances.find_by_business_key(flow.flow_id, "order-1") == flow
            assert (await uow.flow_instances.list_page()).items == (flow,)
            (delivery,) = await uow.correlations.publish(key, {"status": "delivered"})
            (claimed,) = await uow.correlations.claim_delivered("worker-1", lease_duration=LEASE)
            assert (claimed.event_id, claimed.payload) == (delivery.event_id, {"status": "delivered"})
            ended = await uow.advance(flow.resume().complete_step("ship").complete(), completes=[claimed])
            assert (await uow.flow_instances.get(flow.flow_instance_id)).is_terminal
        assert await store.flow_instances.get(flow.flow_instance_id) == ended

    @rule("C-01")
    async def test_each_call_sees_what_was_committed_when_it_began(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            assert await uow.flow_instances.get(flow.flow_instance_id) == flow
            later = await other_store.advance(flow.complete_step("charge"))
            assert await uow.flow_instances.get(flow.flow_instance_id) == later

    # C-02

    @rule("C-02")
    @pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
    async def test_leaving_by_an_exception_leaves_no_trace(self, store: Store, error: type[BaseException]) -> None:
        kept = await factories.add_flow(store)
        key = factories.unique("key")
        with pytest.raises(error):
            async with store.begin() as uow:
                flow = await factories.add_flow(uow, waits_for=key)
                await uow.advance(kept.complete_step("charge"), put_states={"charge": 1})
                await uow.timers.schedule(kept.flow_instance_id, "charge", after=LEASE)
                await uow.correlations.publish(key, {})
                raise error
        assert await store.flow_instances.find(flow.flow_instance_id) is None
        assert await store.flow_definitions.find(flow.flow_id) is None
        assert await store.flow_instances.get(kept.flow_instance_id) == kept
        assert await store.component_states.list_for_instance(kept.flow_instance_id) == []
        assert await store.timers.list_for_instance(kept.flow_instance_id) == []
        assert await store.correlations.claim_delivered("worker-1", lease_duration=LEASE) == []
        assert len(await store.flow_instances.history(kept.flow_instance_id)) == 2
        assert await self.observer.open_transactions() == []

    @rule("C-02")
    async def test_rollback_abandons_the_unit_of_work(self, store: Store) -> None:
        async with store.begin() as uow:
            flow = await factories.add_flow(uow)
            await uow.rollback()
            with pytest.raises(UnitOfWorkFinished):
                await uow.flow_instances.find(flow.flow_instance_id)
        assert await store.flow_instances.find(flow.flow_instance_id) is None
        assert await self.observer.open_transactions() == []

    @rule("C-02")
    async def test_a_rolled_back_write_frees_the_row_for_who_waits_for_it(
        self, store: Store, other_store: Store
    ) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            await uow.advance(flow.complete_step("charge", {"by": "first"}))
            waiting = self.started(other_store.advance(flow.complete_step("charge", {"by": "second"})))
            await self.blocked(waiting)
            await uow.rollback()
        assert (await self.finished(waiting)).step_output("charge", "by") == "second"

    # C-04, the half that needs no SQL; the other half is in `enlisting`

    @rule("C-04")
    async def test_a_failing_savepoint_undoes_only_itself(self, store: Store) -> None:
        async with store.begin() as uow:
            before = await factories.add_flow(uow)
            with pytest.raises(Interrupted):
                async with uow.savepoint():
                    inside = await factories.add_flow(uow)
                    await uow.advance(before.complete_step("charge"))
                    raise Interrupted
            assert await uow.flow_instances.find(inside.flow_instance_id) is None
            assert await uow.flow_instances.get(before.flow_instance_id) == before
            after = await factories.add_flow(uow)
        assert await store.flow_instances.find(inside.flow_instance_id) is None
        assert await store.flow_instances.get(before.flow_instance_id) == before
        assert await store.flow_instances.get(after.flow_instance_id) == after

    @rule("C-04")
    async def test_savepoints_nest(self, store: Store) -> None:
        async with store.begin() as uow:
            async with uow.savepoint():
                outer = await factories.add_flow(uow)
                with pytest.raises(Interrupted):
                    async with uow.savepoint():
                        inner = await factories.add_flow(uow)
                        raise Interrupted
                async with uow.savepoint():
                    second = await factories.add_flow(uow)
            with pytest.raises(Interrupted):
                async with uow.savepoint():
                    async with uow.savepoint():
                        undone = await factories.add_flow(uow)
                    raise Interrupted
        stored = {item.flow_instance_id async for item in store.flow_instances.iterate()}
        assert stored == {outer.flow_instance_id, second.flow_instance_id}
        assert stored.isdisjoint({inner.flow_instance_id, undone.flow_instance_id})

    @rule("C-04")
    async def test_a_conflict_inside_a_savepoint_leaves_the_unit_of_work_usable(self, store: Store) -> None:
        stale = await factories.add_flow(store, business_key="order-1")
        current = await store.advance(stale.complete_step("charge"))
        definition = await store.flow_definitions.get(stale.flow_id)
        async with store.begin() as uow:
            with pytest.raises(VersionConflict):
                async with uow.savepoint():
                    lost = await factories.add_flow(uow)
                    await uow.advance(stale.complete_step("charge"))
            with pytest.raises(AlreadyExists):
                async with uow.savepoint():
                    await uow.advance(factories.running_flow(definition, business_key="order-1"))
            kept = await uow.advance(current.complete_step("ship"))
        assert await store.flow_instances.get(kept.flow_instance_id) == kept
        assert await store.flow_instances.find(lost.flow_instance_id) is None

    @rule("C-04")
    async def test_an_expected_conflict_leaves_the_unit_of_work_usable_even_without_a_savepoint(
        self, store: Store
    ) -> None:
        stale = await factories.add_flow(store)
        current = await store.advance(stale.complete_step("charge"))
        async with store.begin() as uow:
            with pytest.raises(VersionConflict):
                await uow.advance(stale.complete_step("charge"))
            kept = await uow.advance(current.complete_step("ship"))
        assert await store.flow_instances.get(kept.flow_instance_id) == kept

    @rule("C-04")
    async def test_only_a_session_or_connection_can_be_enlisted(self, store: Store) -> None:
        with pytest.raises(UsageError):
            async with store.enlist(object()):  # type: ignore[arg-type]
                pytest.fail("enlisted something that is no connection")

    # C-05

    @rule("C-05")
    @pytest.mark.parametrize("error", [TransactionAborted, StoreUnavailable])
    async def test_run_repeats_the_whole_function_when_that_may_help(
        self, store: Store, error: Callable[..., CascadeStateError]
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        attempts: list[UnitOfWork] = []

        async def add(uow: UnitOfWork) -> int:
            attempts.append(uow)
            await factories.add_flow(uow, definition)
            if len(attempts) < 3:
                raise error(reason="for the test")
            return len(attempts)

        assert await self.finished(store.run(add)) == 3
        assert len(set(map(id, attempts))) == 3
        assert await store.flow_instances.count() == 1

    @rule("C-05")
    async def test_run_gives_up_after_its_retries(self, store: Store) -> None:
        attempts = 0

        async def fail(uow: UnitOfWork) -> None:
            nonlocal attempts
            attempts += 1
            await factories.add_flow(uow)
            raise TransactionAborted(reason="always")

        with pytest.raises(TransactionAborted):
            await self.finished(store.run(fail, retries=2))
        assert attempts == 3
        with pytest.raises(TransactionAborted):
            await self.finished(store.run(fail, retries=0))
        assert attempts == 4
        assert await store.flow_instances.count() == 0

    @rule("C-05")
    async def test_run_repeats_nothing_that_would_fail_again(self, store: Store) -> None:
        attempts = 0

        async def fail(uow: UnitOfWork) -> None:
            nonlocal attempts
            attempts += 1
            await factories.add_flow(uow)
            raise VersionConflict(expected_version=1, actual_version=2)

        with pytest.raises(VersionConflict):
            await self.finished(store.run(fail))
        assert attempts == 1
        assert await store.flow_instances.count() == 0

    @rule("C-05")
    async def test_run_passes_its_options_on(self, store: Store) -> None:
        async def add(uow: UnitOfWork) -> None:
            await factories.add_flow(uow)

        with pytest.raises(UsageError):
            await self.finished(store.run(add, read_only=True))
        with pytest.raises(UsageError):
            await self.finished(store.run(add, retries=-1))
        await self.finished(store.run(add, isolation="SERIALIZABLE"))
        assert await store.flow_instances.count() == 1

    @rule("C-05")
    async def test_a_block_is_not_repeated(self, store: Store) -> None:
        entered = 0
        with pytest.raises(TransactionAborted):
            async with store.begin() as uow:
                entered += 1
                await factories.add_flow(uow)
                raise TransactionAborted(reason="for the test")
        assert entered == 1
        assert await store.flow_instances.count() == 0
