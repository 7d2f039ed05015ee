"""A process that runs a feed consumer until it is told to stop, or killed: each event has one row as its effect.

Run as `python -m tests.coordination.feed_worker URL WORKER [hold]`. It says `ready` once it runs; with `hold` it says
`holding` when it has its first batch in hand, which it then keeps until it reads a line.
"""

from __future__ import annotations

import asyncio
import sys

from sqlalchemy import text

from cascade_state import FeedConsumer, FlowEvent, UnitOfWork, open_store
from tests.coordination.feed_effects import QUICK, keep_effects


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def work(url: str, worker: str, *, holds: bool) -> None:
    async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
        nonlocal holds
        await keep_effects(uow, events, worker)
        if holds:
            holds = False
            say("holding")
            await asyncio.to_thread(sys.stdin.readline)
            await uow.connection.execute(text("SELECT 1"))
        else:
            await asyncio.sleep(0.02)  # so that whoever kills it mostly meets a batch in hand

    async with open_store(url, partition_count=16, application_name=worker) as store:
        consumer = FeedConsumer(store, name="invoices", handler=handle, **QUICK)
        say("ready")
        await consumer.run()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], holds="hold" in sys.argv[3:]))
