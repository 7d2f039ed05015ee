"""The small parts of coordination by themselves: waits, outcomes, places, signals, time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta

import pytest

from cascade_state import InvalidArgument, open_store
from cascade_state.coordination import Backoff, GiveUp, Retry
from cascade_state.coordination.signals import called_on_signals
from cascade_state.coordination.slots import Slots
from cascade_state.coordination.store_time import StoreTime
from cascade_state.testing.clock import FrozenClock

_SECOND = timedelta(seconds=1)


def test_waits_grow_up_to_the_maximum() -> None:
    backoff = Backoff(jitter=0)
    waits = [backoff.delay(attempt).total_seconds() for attempt in (1, 2, 3, 9, 10, 1_000_000)]
    assert waits == [1, 2, 4, 256, 300, 300]


def test_waits_are_jittered_within_their_share() -> None:
    backoff = Backoff(initial=10 * _SECOND, jitter=0.2)
    waits = {backoff.delay(1) for _ in range(200)}
    assert len(waits) > 100
    assert all(8 * _SECOND <= wait <= 12 * _SECOND for wait in waits)


@pytest.mark.parametrize(
    "options",
    [
        {"initial": timedelta(0)},
        {"maximum": timedelta(milliseconds=1)},
        {"factor": 0.5},
        {"factor": float("nan")},
        {"factor": "2"},
        {"factor": True},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"initial": 1},
    ],
    ids=str,
)
def test_unusable_waits_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        Backoff(**options)  # type: ignore[arg-type]


def test_an_attempt_has_a_number_from_one_on() -> None:
    with pytest.raises(InvalidArgument):
        Backoff().delay(0)


def test_outcomes_carry_what_they_say() -> None:
    assert (Retry(_SECOND).after, Retry(_SECOND, "down").reason) == (_SECOND, "down")
    assert Retry(timedelta(0)).reason
    assert (GiveUp("no").reason, str(GiveUp("no"))) == ("no", "no")
    assert GiveUp("").reason
    with pytest.raises(InvalidArgument):
        Retry(-_SECOND)
    with pytest.raises(InvalidArgument):
        GiveUp("\x00")


async def test_places_are_given_in_turn_and_gathered() -> None:
    slots = Slots(8)
    assert await slots.reserve(100, gather=False) == 8
    first = asyncio.create_task(slots.reserve(100, gather=True))
    second = asyncio.create_task(slots.reserve(1, gather=False))
    await asyncio.sleep(0)
    slots.give_back(1)
    await asyncio.sleep(0)
    slots.give_back(2)
    assert await first == 3  # it waited for a second place, and got all that were free
    slots.give_back(1)
    assert await second == 1


async def test_gathering_does_not_wait_for_long() -> None:
    slots = Slots(8)
    await slots.reserve(7, gather=False)
    async with asyncio.timeout(5):
        assert await slots.reserve(100, gather=True) == 1


async def test_closed_places_turn_everybody_away() -> None:
    slots = Slots(1)
    await slots.reserve(1, gather=False)
    waiting = asyncio.create_task(slots.reserve(1, gather=False))
    await asyncio.sleep(0)
    slots.close()
    assert await waiting == 0
    slots.give_back(1)
    assert await slots.reserve(1, gather=False) == 0


async def test_signals_call_everybody_who_wants_to_know_and_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    called: list[str] = []
    heard = asyncio.Event()

    def last() -> None:
        called.append("two")
        heard.set()

    with called_on_signals(lambda: called.append("one")):
        with called_on_signals(last):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(heard.wait(), 5)
        assert called == ["one", "two"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def stay() -> None:
        with called_on_signals(lambda: None):
            assert signal.getsignal(signal.SIGTERM) == before

    thread = threading.Thread(target=lambda: asyncio.run(stay()))
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


_PROGRAM = """
import asyncio, sys
from datetime import timedelta
from cascade_state import open_store
from cascade_state.coordination import Worker
from cascade_state.testing import factories

async def main():
    async with open_store("memory://") as store:
        flow = await factories.add_flow(store)
        await store.timers.schedule(flow.flow_instance_id, "ship", after=timedelta(0))

        async def on_timer(item, uow):
            print("busy", flush=True)
            await asyncio.Event().wait()

        await Worker(store, on_timer=on_timer, grace_period=timedelta(hours=1)).run()
        (left,) = await store.timers.claim_due("next", lease_duration=timedelta(1))
        print("released", left.step_id, flush=True)

asyncio.run(main())
"""


def test_a_signal_stops_a_worker_and_a_second_one_ends_its_grace() -> None:
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # the handler may go on for an hour
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "released ship\n"
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_the_time_until_an_instant_is_the_stores() -> None:
    async with open_store("memory://") as store:
        time = StoreTime(store)
        now = await store.now()
        assert abs(await time.seconds_since(now)) < 5
        assert -3600.5 < await time.seconds_since(now + timedelta(hours=1)) < -3590
        time.distrust()
        event = asyncio.Event()
        assert not await time.wait(event, now + timedelta(milliseconds=20), 10)
        assert not await time.wait(event, None, 0.01)
        event.set()
        assert await time.wait(event, now + timedelta(hours=1), 10)


async def test_a_clock_that_a_test_moves_is_looked_at() -> None:
    clock = FrozenClock()
    async with open_store("memory://", clock=clock) as store:
        time = StoreTime(store)
        event = asyncio.Event()
        waiting = asyncio.create_task(time.wait(event, clock.now() + timedelta(hours=1), 3600))
        await asyncio.sleep(0)
        clock.advance(timedelta(hours=1))
        assert not await asyncio.wait_for(waiting, 5)
        waiting = asyncio.create_task(time.wait(event, clock.now() + timedelta(hours=1), 3600))
        await asyncio.sleep(0)
        event.set()
        assert await asyncio.wait_for(waiting, 5)
        event.clear()
        assert not await time.wait(event, clock.now() + timedelta(hours=1), 0.03)
