"""What a worker does in real time: leases kept and lost, a store that fails, a share that goes to somebody else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from cascade_state import LeaseLost, SchemaMismatch, Store, StoreUnavailable, Timer, UnitOfWork, open_store
from cascade_state.coordination import Backoff, GiveUp, ReplicaSet, Retry, Worker, handling, worker
from cascade_state.testing import factories
from cascade_state.testing.contracts import rule

_PATIENCE = 20.0
_LEASE = timedelta(milliseconds=600)
_ROOMY_LEASE = timedelta(seconds=3)  # for what must keep it on a machine that has other things to do
_SOON = timedelta(milliseconds=50)
_BACKOFF = Backoff(initial=timedelta(milliseconds=20), maximum=timedelta(milliseconds=100))


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as opened:
        yield opened


@pytest.fixture
async def other(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as opened:
        yield opened


@asynccontextmanager
async def _running(store: Store, **options: Any) -> AsyncIterator[Worker]:
    options = {"poll_interval": _SOON, "lease_duration": _LEASE, "backoff": _BACKOFF, **options}
    started = Worker(store, handle_signals=False, **options)
    task = asyncio.create_task(started.run())
    try:
        yield started
    finally:
        async with asyncio.timeout(_PATIENCE):
            await started.stop()
            await task


async def _until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(_PATIENCE):
        while True:
            holds = condition()
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            await asyncio.sleep(0.005)


async def _timer(store: Store, step_id: str = "ship") -> Timer:
    flow = await factories.add_flow(store)
    return await store.timers.schedule(flow.flow_instance_id, step_id, after=timedelta(0))


async def _is_gone(store: Store, timer: Timer) -> bool:
    return await store.timers.find(timer.timer_id) is None


async def test_a_handler_that_takes_longer_than_its_lease_keeps_it(store: Store, other: Store) -> None:
    timer = await _timer(store)
    calls: list[int] = []

    async def on_timer(item: Timer, uow: UnitOfWork) -> None:
        calls.append(item.attempts)
        for _ in range(8):
            await asyncio.sleep(_ROOMY_LEASE.total_seconds() / 6)
            await uow.component_states.find(item.flow_instance_id, "ship")  # it is not idle

    options: dict[str, Any] = {"on_timer": on_timer, "lease_duration": _ROOMY_LEASE}
    async with _running(store, **options), _running(other, **options):
        await _until(lambda: _is_gone(store, timer))
    assert calls == [1]


async def test_a_handler_that_has_written_holds_up_nobodys_renewal(store: Store, other: Store) -> None:
    """It has the row of its own timer locked, which a renewal of all leases passes over."""
    timers = [await _timer(store, step_id) for step_id in ("writes", "thinks")]
    calls: list[str] = []

    async def on_timer(item: Timer, uow: UnitOfWork) -> None:
        calls.append(item.step_id)
        if item.step_id == "writes":
            await uow.timers.complete([item])
        for _ in range(8):
            await asyncio.sleep(_ROOMY_LEASE.total_seconds() / 6)
            await uow.component_states.find(item.flow_instance_id, "ship")

    options: dict[str, Any] = {"on_timer": on_timer, "lease_duration": _ROOMY_LEASE}
    async with _running(store, **options), _running(other, **options):
        for timer in timers:
            await _until(lambda timer=timer: _is_gone(store, timer))  # type: ignore[misc]
    assert sorted(calls) == ["thinks", "writes"]


@rule("C-50")
async def test_a_handler_whose_lease_is_lost_is_cancelled(store: Store, other: Store) -> None:
    timer = await _timer(store)
    cancelled = asyncio.Event()

    async def on_timer(item: Timer, uow: UnitOfWork) -> None:
        await other.timers.cancel(item.timer_id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with _running(store, on_timer=on_timer) as running:
        await asyncio.wait_for(cancelled.wait(), _PATIENCE)
        await _until(lambda: running.in_hand == 0)
    assert await _is_gone(store, timer)


class _Failing:
    """Makes calls of a store fail for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, repository: Any, method: str, times: int) -> None:
        self.left = times
        call = getattr(repository, method)

        async def failing(*arguments: Any, **options: Any) -> Any:
            if self.left:
                self.left -= 1
                raise StoreUnavailable(reason="for the test")
            return await call(*arguments, **options)

        monkeypatch.setattr(repository, method, failing)


async def test_loops_get_over_a_store_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    handled: list[str] = []

    async def on_timer(item: Timer, uow: UnitOfWork) -> None:
        handled.append(item.step_id)
        for _ in range(4):
            await asyncio.sleep(_LEASE.total_seconds() / 4)
            await uow.component_states.find(item.flow_instance_id, "ship")

    failing = [
        _Failing(monkeypatch, store.replica_sets, "join", 2),
        _Failing(monkeypatch, store.timers, "claim_due", 2),
        _Failing(monkeypatch, store.timers, "next_due_at", 2),
        _Failing(monkeypatch, store.timers, "renew", 1),
        _Failing(monkeypatch, store, "now", 1),
    ]
    async with _running(store, on_timer=on_timer, replica_set="shipping"):
        for step_id in ("one", "two"):
            timer = await _timer(store, step_id)
            await _until(lambda timer=timer: _is_gone(store, timer))  # type: ignore[misc]
    assert handled == ["one", "two"]
    assert [failure.left for failure in failing] == [0] * len(failing)


@pytest.mark.parametrize("method", ["retry", "give_up"])
@rule("Workers")
async def test_what_cannot_be_given_back_comes_with_the_end_of_its_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    timer = await _timer(store)
    _Failing(monkeypatch, store.timers, method, 1)
    calls: list[int] = []

    async def on_timer(item: Timer, uow: UnitOfWork) -> None:
        calls.append(item.attempts)
        if len(calls) == 1:
            raise Retry(timedelta(0)) if method == "retry" else GiveUp("no")

    async with _running(store, on_timer=on_timer):
        await _until(lambda: _is_gone(store, timer))
    assert calls == [1, 2]


async def test_a_lease_that_was_lost_meanwhile_is_not_given_back(store: Store, other: Store) -> None:
    timer = await _timer(store)
    calls = 0

    async def on_timer(item: Timer, uow: UnitOfWork) -> None:
        nonlocal calls
        calls += 1
        await other.timers.cancel(item.timer_id)
        raise ValueError("too late")

    async with _running(store, on_timer=on_timer) as running:
        await _until(lambda: calls and running.in_hand == 0)
    assert await _is_gone(store, timer)


async def test_when_it_cannot_be_told_whether_the_lease_is_held_nothing_is_stored(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = await _timer(store)
    calls = 0

    async def on_timer(item: Timer, uow: UnitOfWork) -> None:
        nonlocal calls
        calls += 1
        await uow.component_states.put(item.flow_instance_id, "ship", calls)
        if calls == 1:
            await uow.timers.complete([item])
            _Failing(monkeypatch, store.timers, "renew", 1)

    async with _running(store, on_timer=on_timer):
        await _until(lambda: _is_gone(store, timer))
    assert (await store.component_states.get(timer.flow_instance_id, "ship")).state == calls


async def test_what_cannot_be_released_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timer = await _timer(store)
    begun = asyncio.Event()

    async def hang(item: Timer, uow: UnitOfWork) -> None:
        begun.set()
        await asyncio.Event().wait()

    with caplog.at_level(logging.WARNING, "cascade_state.worker"):
        async with _running(store, on_timer=hang, grace_period=timedelta(0)):
            await asyncio.wait_for(begun.wait(), _PATIENCE)
            _Failing(monkeypatch, store.timers, "release", 1)
    assert "cannot be released" in caplog.text
    assert (await store.timers.get(timer.timer_id)).lease is not None


async def test_of_several_items_the_lost_one_does_not_keep_the_others(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers = [await _timer(store) for _ in range(3)]
    begun: list[Timer] = []

    async def hang(item: Timer, uow: UnitOfWork) -> None:
        begun.append(item)
        await asyncio.Event().wait()

    async with _running(store, on_timer=hang, grace_period=timedelta(0), lease_duration=timedelta(hours=1)):
        await _until(lambda: len(begun) == 3)
        await other.timers.cancel(timers[0].timer_id)
    assert await _is_gone(store, timers[0])
    for timer in timers[1:]:
        assert (await store.timers.get(timer.timer_id)).lease is None


@rule("ORC-13")
async def test_a_share_that_goes_to_somebody_else_takes_its_handlers_along(store: Store, other: Store) -> None:
    """The worker is removed from its set, as if it had been silent: its handler is cancelled, and it joins again."""
    timer = await _timer(store)
    began: list[str] = []
    cancelled = asyncio.Event()

    async def on_timer(item: Timer, uow: UnitOfWork) -> None:
        assert item.lease is not None
        began.append(item.lease.holder)
        if len(began) == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

    quick = timedelta(milliseconds=100)
    replica_set = ReplicaSet(store, "shipping", heartbeat_interval=quick, stale_after=timedelta(seconds=10))
    options: dict[str, Any] = {"on_timer": on_timer, "replica_set": replica_set}
    async with _running(store, lease_duration=timedelta(hours=1), **options) as running:
        await _until(lambda: began)
        first = running.worker_id
        assert first is not None
        assert await other.replica_sets.leave("shipping", first)
        await asyncio.wait_for(cancelled.wait(), _PATIENCE)
        await _until(lambda: _is_gone(store, timer))
        assert running.worker_id != first
    assert began[0] == first
    assert began[1] != first


async def test_an_item_of_a_partition_that_is_not_its_own_goes_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence is refused, because the owner changed since the claim: the item is released, not lost for an hour."""
    timer = await _timer(store)
    refused = 0

    async def on_timer(item: Timer, uow: UnitOfWork) -> None: ...

    async def fence(uow: UnitOfWork, partition_id: int, generation: int, replica_set: str) -> None:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise LeaseLost(entity="partition", key=partition_id)

    monkeypatch.setattr(UnitOfWork, "fence", fence)
    async with _running(store, on_timer=on_timer, replica_set="shipping", lease_duration=timedelta(hours=1)):
        await _until(lambda: _is_gone(store, timer))
    assert refused == 2


async def test_a_database_that_was_not_migrated_ends_the_run(empty_database_url: str) -> None:
    async def handle(item: Any, uow: UnitOfWork) -> None: ...

    async with open_store(empty_database_url) as store:
        with pytest.raises(SchemaMismatch):
            await asyncio.wait_for(Worker(store, on_timer=handle, on_delivery=handle).run(), _PATIENCE)


async def test_a_run_that_is_cancelled_while_it_stops_hurries(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = await _timer(store)
    begun = asyncio.Event()

    async def hang(item: Timer, uow: UnitOfWork) -> None:
        begun.set()
        await asyncio.Event().wait()

    stopping = Worker(store, on_timer=hang, grace_period=timedelta(hours=1), handle_signals=False)
    task = asyncio.create_task(stopping.run())
    await asyncio.wait_for(begun.wait(), _PATIENCE)
    told = asyncio.create_task(stopping.stop())
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, _PATIENCE)
    await asyncio.wait_for(told, _PATIENCE)
    assert (await store.timers.get(timer.timer_id)).lease is None


async def test_a_claim_that_ends_while_the_worker_stops_is_given_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = await _timer(store)
    claiming, go_on = asyncio.Event(), asyncio.Event()
    claim = store.timers.claim_due

    async def slow(*arguments: Any, **options: Any) -> Any:
        claimed = await claim(*arguments, **options)
        claiming.set()
        await go_on.wait()
        return claimed

    monkeypatch.setattr(store.timers, "claim_due", slow)
    called = False

    async def on_timer(item: Timer, uow: UnitOfWork) -> None:
        nonlocal called
        called = True

    stopping = Worker(store, on_timer=on_timer, handle_signals=False)
    task = asyncio.create_task(stopping.run())
    await asyncio.wait_for(claiming.wait(), _PATIENCE)
    told = asyncio.create_task(stopping.stop())
    await asyncio.sleep(0.01)
    go_on.set()
    await asyncio.wait_for(asyncio.gather(task, told), _PATIENCE)
    assert not called
    assert (await store.timers.get(timer.timer_id)).lease is None


async def test_a_claim_that_hangs_does_not_keep_the_worker(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_CLAIM_SECONDS", 0.1)
    claiming = asyncio.Event()

    async def hanging(*arguments: Any, **options: Any) -> Any:
        claiming.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(store.timers, "claim_due", hanging)

    async def on_timer(item: Timer, uow: UnitOfWork) -> None: ...

    async with _running(store, on_timer=on_timer):
        await asyncio.wait_for(claiming.wait(), _PATIENCE)


def test_an_error_is_kept_in_a_form_that_can_be_stored() -> None:
    assert handling._told(ValueError()) == "ValueError"
    assert handling._told(ValueError("a\x00b\ud800")) == "ValueError: ab?"
    assert len(handling._told(ValueError("x" * 10_000))) == 2_000
