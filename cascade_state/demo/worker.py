"""A worker process: joins the replica set, and works until SIGTERM.

`python -m cascade_state.demo.worker URL` is one worker. Any number may run on one store: they share its partitions, and
what a dead one held is taken over by the others. Everything it does is told on standard output, one JSON document a
line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from datetime import timedelta
from typing import Any

from cascade_state import FlowInstance, open_store
from cascade_state.coordination import Member, ReplicaSet
from cascade_state.demo.components import standard_components
from cascade_state.demo.effects import TableEffects
from cascade_state.demo.engine import Engine, Stage
from cascade_state.demo.loop import Worker, WorkerOptions

__all__ = ["REPLICA_SET", "URL_VARIABLE"]

REPLICA_SET = "demo"
URL_VARIABLE = "CASCADE_DEMO_URL"  # a URL may hold a password, which has no place on a command line

# Short, so that a take-over can be watched: the share of a killed worker moves within two and a half seconds.
_HEARTBEAT_INTERVAL = timedelta(seconds=0.5)
_STALE_AFTER = timedelta(seconds=2)


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
        workers = ReplicaSet(
            store,
            REPLICA_SET,
            heartbeat_interval=_HEARTBEAT_INTERVAL,
            stale_after=_STALE_AFTER,
            worker_name=arguments.name,
        )
        async with workers.join() as member:
            worker = Worker(store, engine, name=arguments.name, member=member, options=options)
            _say("ready", holder=worker.holder, process_id=os.getpid())
            telling = asyncio.create_task(_tell_share(member))
            await worker.run(stop)
            telling.cancel()
    _say("stopped")


async def _tell_share(member: Member) -> None:
    share = member.share
    while True:
        _say("share", partitions=len(share.partitions))
        share = await member.changed(since=share)


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
