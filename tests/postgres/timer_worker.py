"""A process that fires timers until it is killed: each ends its flow, in the commit that completes the timer.

Run as `python timer_worker.py URL HOLDER`. It says `ready` once it is at work.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from cascade_state import LeaseLost, NewEvent, Store, StoreUnavailable, Timer, TransactionAborted, open_store

_LEASE = timedelta(seconds=1)  # short: what a killed worker held must come back soon
_PAUSE_SECONDS = 0.02


async def _fire(store: Store, timer: Timer) -> None:
    flow = await store.flow_instances.get(timer.flow_instance_id)
    fired = NewEvent("test.fired", {"due_at": timer.due_at.isoformat(), "attempts": timer.attempts})
    await store.advance(flow.resume().complete_step(timer.step_id).complete(), completes=[timer], events=[fired])


async def _work(url: str, holder: str) -> None:
    while True:
        try:
            async with open_store(url) as store:
                sys.stdout.write("ready\n")
                sys.stdout.flush()
                while True:
                    for timer in await store.timers.claim_due(holder, limit=4, lease_duration=_LEASE):
                        try:
                            await _fire(store, timer)
                        except LeaseLost:
                            continue  # it took too long; somebody else fires it
                    await asyncio.sleep(_PAUSE_SECONDS)
        except (StoreUnavailable, TransactionAborted):
            await asyncio.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], sys.argv[2]))
