"""Replica sets: named groups of identical workers that share the partitions of a store.

    async with ReplicaSet(store, "shipping").join() as member:
        ...  # work in member.partitions

The whole of the agreement lies in the database (`abc.ReplicaSets`): who is there, who owns which partition in
which generation. This module and `member` keep one process's side of it: they join, send heartbeats, tell the
loops what changed, and leave.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.store import Store
from cascade_state.coordination.member import Member, new_worker_id
from cascade_state.coordination.settings import check_store
from cascade_state.errors import InvalidArgument
from cascade_state.model.arguments import check_duration, check_key
from cascade_state.types import JsonObject

__all__ = ["BEATS_BEFORE_STALE", "ReplicaSet"]

# Two heartbeats may fail, or one may be late by its own interval and another one fail, before anybody notices.
BEATS_BEFORE_STALE = 3


class ReplicaSet:
    """A named group of identical workers. Sets of different names know nothing of each other.

    Partitions are spread evenly: with n workers each owns floor(P / n) or one more. Whoever joins has its fair
    share within two heartbeat intervals; whoever leaves hands over at once; the share of whoever dies or loses
    the database is taken over within `stale_after` and one interval. Hints make the others notice who joins and
    who leaves within milliseconds; without them their heartbeats do. Nothing depends on a leader, or on the
    clocks of the workers.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        heartbeat_interval: timedelta = timedelta(seconds=5),
        stale_after: timedelta = timedelta(seconds=30),
        worker_name: str | None = None,
        metadata: JsonObject | None = None,
    ) -> None:
        """Describes a set; nothing is sent before `join`.

        Args:
            heartbeat_interval: How often a worker says that it is alive; at most a third of `stale_after`.
            stale_after: How long a worker may be silent, by the database's clock, before the others take over.
            worker_name: What the worker's id begins with, so that people recognise it; None: host and process
                id. It need not be unique.
            metadata: Kept with the worker for people to read, beside `host` and `pid`.

        Raises:
            InvalidArgument: A duration or a name is unusable, or the interval is longer than a third of
                `stale_after`.
        """
        self.store: Store = check_store(store)
        self.name: str = check_key(name, "name")
        self.heartbeat_interval: timedelta = check_duration(heartbeat_interval, "heartbeat_interval")
        self.stale_after: timedelta = check_duration(stale_after, "stale_after")
        if heartbeat_interval * BEATS_BEFORE_STALE > stale_after:
            raise InvalidArgument(
                argument="heartbeat_interval",
                reason=f"must be at most a third of stale_after ({stale_after / BEATS_BEFORE_STALE})",
            )
        if not isinstance(metadata, (Mapping, type(None))):
            raise InvalidArgument(argument="metadata", reason="must be a JSON object")
        self.metadata: JsonObject = {"host": socket.gethostname(), "pid": os.getpid(), **(metadata or {})}
        self.worker_name: str = check_key(
            f"{self.metadata['host']}-{self.metadata['pid']}" if worker_name is None else worker_name, "worker_name"
        )
        check_key(new_worker_id(self.worker_name), "worker_name")

    @asynccontextmanager
    async def join(self) -> AsyncIterator[Member]:
        """Joins as a new worker: `async with replica_set.join() as member:`.

        Whatever ends the block, the worker leaves: its partitions go to the others at once, its row is gone. If
        the database cannot be reached then, the others take over when its time is up.

        Raises:
            StoreUnavailable: The database cannot be reached; nothing was joined.
            SchemaMismatch: The database has another partition count than the store.
        """
        member = Member(
            self.store,
            self.name,
            worker_name=self.worker_name,
            heartbeat_interval=self.heartbeat_interval,
            stale_after=self.stale_after,
            metadata=self.metadata,
        )
        try:
            await member._join()
            yield member
        finally:
            await run_to_completion(member._leave())
