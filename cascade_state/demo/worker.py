"""A worker process: claims deliveries, due timers and flows, and hands each to the engine.

`python -m cascade_state.demo.worker URL` works until SIGTERM. Several may run on one store; what a dead one
held is claimed by the others when its leases expire. Everything it does is told on standard output, one JSON
document a line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cascade_state import (
    Delivery,
    FlowInstance,
    FlowInstanceFilter,
    FlowStatus,
    LeaseLost,
    Store,
    Timer,
    open_store,
)
from cascade_state.demo.components import standard_components
from cascade_state.demo.effects import TableEffects
from cascade_state.demo.engine import Engine, Stage

__all__ = ["URL_VARIABLE", "Worker", "WorkerOptions"]

URL_VARIABLE = "CASCADE_DEMO_URL"  # a URL may hold a password, which has no place on a command line

_DRIVABLE = FlowInstanceFilter(statuses=(FlowStatus.INITIALIZING, FlowStatus.RUNNING))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works."""

    concurrency: int = 16  # answers from outside take most of the time, so more than cores
    lease_duration: timedelta = timedelta(seconds=2)  # what a dead worker held stays untouched for that long
    poll_interval: timedelta = timedelta(
        milliseconds=40
    )  # how long an event or timer may lie when nothing else happens


class Worker:
    """Claims work under a name of its own and lets an engine do it.

    A name is never used twice: a restarted worker is another holder and waits for the leases of the one before.
    """

    def __init__(self, store: Store, engine: Engine, *, name: str, options: WorkerOptions | None = None) -> None:
        self._store = store
        self._engine = engine
        self._options = options or WorkerOptions()
        self.holder: str = f"{name}/{secrets.token_hex(4)}"
        self._held: dict[asyncio.Task[None], FlowInstance | Delivery | Timer] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then finishes what it has in hand. An error of the engine ends it."""
        stopped = asyncio.create_task(stop.wait())
        renewing = asyncio.create_task(self._keep_leases())
        try:
            while not stop.is_set():
                claimed = await self._take(self._options.concurrency - len(self._held))
                full = len(self._held) >= self._options.concurrency
                if claimed and not full:
                    continue
                timeout = None if full else self._options.poll_interval.total_seconds()
                await asyncio.wait(
                    (stopped, renewing, *self._held), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                self._raise_errors(renewing)
            while self._held:
                await asyncio.wait(self._held, return_when=asyncio.FIRST_COMPLETED)
                self._raise_errors(renewing)
        finally:
            await _cancelled(stopped, renewing, *self._held)

    async def run_until_idle(self) -> int:
        """Works until nothing can be claimed; returns how much was claimed. For tests that move the time themselves."""
        total = 0
        try:
            while claimed := await self._take(self._options.concurrency):
                total += claimed
                while self._held:
                    await asyncio.wait(self._held)
                    self._raise_errors()
        finally:
            await _cancelled(*self._held)
        return total

    async def _take(self, limit: int) -> int:
        """Claims up to `limit` pieces of work, starts on them, and returns how many.

        Deliveries and timers first: they are short, and they go on with what has waited already.
        """
        before = len(self._held)
        lease_duration = self._options.lease_duration
        if limit > 0:
            deliveries = await self._store.correlations.claim_delivered(
                self.holder, limit=limit, lease_duration=lease_duration
            )
            for delivery in deliveries:
                self._start(delivery, self._engine.deliver(delivery))
            limit -= len(deliveries)
        if limit > 0:
            timers = await self._store.timers.claim_due(self.holder, limit=limit, lease_duration=lease_duration)
            for timer in timers:
                self._start(timer, self._engine.fire(timer))
            limit -= len(timers)
        if limit > 0:
            flows = await self._store.flow_instances.claim(
                self.holder, filter=_DRIVABLE, limit=limit, lease_duration=lease_duration
            )
            for flow in flows:
                self._start(flow, self._engine.drive(flow))
        return len(self._held) - before

    def _start(self, claimed: FlowInstance | Delivery | Timer, work: Coroutine[Any, Any, None]) -> None:
        self._held[asyncio.create_task(work)] = claimed

    def _raise_errors(self, *others: asyncio.Task[None]) -> None:
        for task in [task for task in (*others, *self._held) if task.done()]:
            self._held.pop(task, None)
            # A lost lease is nothing to worry about: the commit was refused, and somebody else has the work.
            with contextlib.suppress(LeaseLost):
                task.result()

    async def _keep_leases(self) -> None:
        """Renews the leases of everything in hand, at a third of their length, in one statement a kind."""
        while True:
            await asyncio.sleep(self._options.lease_duration.total_seconds() / 3)
            held = list(self._held.values())
            lease_duration = self._options.lease_duration
            await self._store.flow_instances.renew(_of(FlowInstance, held), lease_duration)
            await self._store.correlations.renew(_of(Delivery, held), lease_duration)
            await self._store.timers.renew(_of(Timer, held), lease_duration)


def _of(kind: type[Any], items: list[Any]) -> list[Any]:
    return [item for item in items if isinstance(item, kind)]


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# The process


def _say(what: str, **facts: Any) -> None:
    print(json.dumps({"what": what, **facts}), flush=True)


def _report(stage: Stage, claim: str, flow: FlowInstance, step_id: str) -> None:
    _say(stage, claim=claim, flow=flow.business_key, step=step_id)


async def _work(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.stop_with_parent:
        threading.Thread(target=_wait_for_end_of_input, args=(loop, stop), daemon=True).start()
    options = WorkerOptions(
        concurrency=arguments.concurrency, lease_duration=timedelta(seconds=arguments.lease_seconds)
    )
    async with open_store(
        arguments.url,
        schema=arguments.schema,
        pool_size=options.concurrency,
        application_name=f"cascade_state demo {arguments.name}",
    ) as store:
        components = standard_components(timedelta(milliseconds=arguments.latency_ms))
        engine = Engine(store, TableEffects(store), components, worker=arguments.name, report=_report)
        worker = Worker(store, engine, name=arguments.name, options=options)
        _say("ready", holder=worker.holder, process_id=os.getpid())
        await worker.run(stop)
    _say("stopped")


def _wait_for_end_of_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # The parent never writes; its end of the pipe closes when it dies, however it dies.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(stop.set)


def main() -> None:
    """Runs a worker until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m cascade_state.demo.worker", description=__doc__)
    parser.add_argument(
        "url",
        nargs="?",
        default=os.environ.get(URL_VARIABLE),
        help=f"the store to work on, migrated and with the table of effects; without it ${URL_VARIABLE}",
    )
    parser.add_argument("--name", default="worker", help="the name that its effects are recorded under")
    parser.add_argument("--schema", help="the database schema of the store")
    parser.add_argument("--concurrency", type=int, default=WorkerOptions().concurrency)
    parser.add_argument("--lease-seconds", type=float, default=WorkerOptions().lease_duration.total_seconds())
    parser.add_argument("--latency-ms", type=float, default=20.0, help="how long an answer from outside takes")
    parser.add_argument("--stop-with-parent", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args()
    if not arguments.url:
        parser.error("give the URL of a store")
    asyncio.run(_work(arguments))


if __name__ == "__main__":
    main()
