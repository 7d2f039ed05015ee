"""A process that holds a lock until it is killed: `python lock_holder.py URL NAME`; it says when it has it."""

from __future__ import annotations

import asyncio
import sys

from cascade_state import open_store


async def main(url: str, name: str) -> None:
    async with open_store(url) as store, store.locks.hold(name) as lock:
        sys.stdout.write(f"{lock.fencing_token}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
