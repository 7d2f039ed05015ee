"""A worker process whose effects can be counted: each handler writes a row into the table `effects`.

Run as `python worker_process.py URL NAME [REPLICA_SET]`. It says `ready` with its worker id when it is at work, and
`busy` when its first handler runs. SIGTERM stops it gracefully. A timer whose step is `slow` has a handler that says
`holding`, waits in its open transaction, and then writes.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from sqlalchemy import text

from cascade_state import CascadeStateError, Delivery, FlowInstance, Timer, UnitOfWork, open_store
from cascade_state.coordination import Backoff, Worker

# Short, so that what a killed process held comes back within the test.
_LEASE = timedelta(seconds=1.5)
_HEARTBEAT = timedelta(milliseconds=200)
_STALE_AFTER = timedelta(seconds=1.5)
_PACE_SECONDS = 0.005

_EFFECT = text("INSERT INTO effects (flow_instance_id, step_id, worker) VALUES (:flow_instance_id, :step_id, :worker)")


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


class _Handlers:
    def __init__(self, name: str) -> None:
        self._name = name
        self._is_busy = False

    async def on_timer(self, timer: Timer, uow: UnitOfWork) -> None:
        await self._effect(timer.flow_instance_id, timer.step_id, uow)
        if timer.step_id == "slow":
            _say("holding")
            try:
                await asyncio.sleep(0.8)  # shorter than the lease: the server would end the idle transaction
                flow = await uow.flow_instances.get(timer.flow_instance_id)
                await uow.advance(flow.complete_step("slow"), completes=[timer])
            except (CascadeStateError, asyncio.CancelledError) as error:  # cancelled when its share is lost
                _say("refused", type(error).__name__)
                raise
            _say("accepted")

    async def on_delivery(self, delivery: Delivery, uow: UnitOfWork) -> None:
        await self._effect(delivery.flow_instance_id, delivery.step_id, uow)
        flow = await uow.flow_instances.get(delivery.flow_instance_id)
        await uow.advance(flow.resume().complete_step(delivery.step_id).complete(), completes=[delivery])

    async def on_orphan(self, flow: FlowInstance, uow: UnitOfWork) -> None:
        await self._effect(flow.flow_instance_id, "orphan", uow)
        await uow.advance(flow.complete(), lease=flow.lease)

    async def _effect(self, flow_instance_id: object, step_id: str, uow: UnitOfWork) -> None:
        values = {"flow_instance_id": str(flow_instance_id), "step_id": step_id, "worker": self._name}
        await uow.connection.execute(_EFFECT, values)
        if not self._is_busy:
            self._is_busy = True
            _say("busy")
        await asyncio.sleep(_PACE_SECONDS)


async def main(url: str, name: str, replica_set: str | None) -> None:
    handlers = _Handlers(name)
    async with open_store(url, pool_size=4, application_name=f"worker {name}") as store:
        worker = Worker(
            store,
            replica_set=replica_set,
            on_timer=handlers.on_timer,
            on_delivery=handlers.on_delivery,
            on_orphan=handlers.on_orphan,
            concurrency=4,
            lease_duration=_LEASE,
            poll_interval=timedelta(milliseconds=500),
            heartbeat_interval=_HEARTBEAT,
            stale_after=_STALE_AFTER,
            backoff=Backoff(initial=timedelta(milliseconds=50), maximum=timedelta(milliseconds=500)),
            name=name,
        )
        running = asyncio.create_task(worker.run())
        while worker.worker_id is None:  # noqa: ASYNC110 - it is said once
            await asyncio.sleep(0)
        _say("ready", worker.worker_id)
        await running
    _say("stopped")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
