"""The entry object of a back end."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, get_args

from cascade_state.abc.advancing import Advancing
from cascade_state.abc.capabilities import Capabilities
from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.component_states import ComponentStates
from cascade_state.abc.correlations import Correlations
from cascade_state.abc.events import Events
from cascade_state.abc.feeds import Feeds
from cascade_state.abc.flow_definitions import FlowDefinitions
from cascade_state.abc.flow_instances import FlowInstances
from cascade_state.abc.guards import Stage, StoreGuard
from cascade_state.abc.hints import HintListener, HintTopic
from cascade_state.abc.locks import Locks
from cascade_state.abc.options import StoreOptions
from cascade_state.abc.replica_sets import ReplicaSets
from cascade_state.abc.timers import Timers
from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.errors import InvalidArgument, StoreNotOpen, StoreUnavailable, TransactionAborted, UsageError
from cascade_state.model.arguments import check_count, check_duration
from cascade_state.model.statistics import Statistics

if TYPE_CHECKING:
    from typing import Self

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

__all__ = ["Isolation", "Store"]

_log = logging.getLogger("cascade_state.store")

Isolation: TypeAlias = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 2.0


class Store(Advancing, ABC):
    """The durable state of flows: `async with open_store(url) as store:`.

    Its repositories are used directly, each call being a transaction of its own, or through a unit of work
    that groups any of them. A store belongs to the event loop that entered it, may be used by any number of
    that loop's tasks, and is entered once. Leaving it closes every connection.
    """

    flow_definitions: FlowDefinitions
    flow_instances: FlowInstances
    component_states: ComponentStates
    correlations: Correlations
    timers: Timers
    events: Events
    replica_sets: ReplicaSets
    locks: Locks
    feeds: Feeds

    def __init__(self, options: StoreOptions) -> None:
        self.options = options
        self._limits = options.limits
        self._guard = StoreGuard()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            # A back end attaches the repositories when it opens: before that there are none.
            if name in Store.__annotations__ and self._guard.stage is not Stage.OPEN:
                raise StoreNotOpen
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def __aenter__(self) -> Self:
        if self._guard.stage is not Stage.NEW:
            raise UsageError("a store is entered once; open another one")
        await self._open()
        self._guard.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._guard.stage = Stage.FINISHED
        await run_to_completion(self._close())

    @property
    @abstractmethod
    def url(self) -> str:
        """The address this store works on, without a password; an embedded server's own address once it runs."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this back end declares of itself."""

    def begin(
        self,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        idle_limit: timedelta | None = None,
    ) -> UnitOfWork:
        """Returns a unit of work, to be entered once with `async with`: it commits on a clean exit, else rolls back.

        Args:
            isolation: None: READ COMMITTED, which with versions and leases is all that the store itself needs. Above
                it, an event that is published or a wait that is stored may be matched a second after the commit instead
                of in it: an old snapshot does not show what others left under the key.
            read_only: Refuses every write with `UsageError` (C-06).
            idle_limit: As `uow.limit_idle` from the beginning, without a round trip of its own; the transaction itself
                begins with the first call then. What waits for others before it reads or writes so holds up nobody.
        """
        self._guard.call(writes=False)
        if isolation not in (None, "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
            raise InvalidArgument(argument="isolation", reason=f"is none that PostgreSQL has: {isolation!r}")
        uow = self._unit_of_work(isolation, read_only)
        if idle_limit is not None:
            uow._idle_limit = check_duration(idle_limit, "idle_limit")
        return uow

    def enlist(self, session_or_connection: AsyncSession | AsyncConnection) -> AbstractAsyncContextManager[UnitOfWork]:
        """Returns a unit of work inside the caller's own transaction: `async with store.enlist(session) as uow:`.

        The caller's rows and ours commit and roll back together. It never commits, rolls back or retries by
        itself; after an error the caller decides (a `uow.savepoint()` keeps the transaction usable). A
        transaction is begun on the session or connection if there is none yet.

        Raises:
            UsageError: Not an asyncpg-backed `AsyncSession` or `AsyncConnection`, or a back end without SQL
                (memory).
        """
        self._guard.call(writes=False)
        return self._enlist(session_or_connection)

    async def run(
        self,
        fn: Callable[[UnitOfWork], Awaitable[T]],
        *,
        retries: int = 8,
        isolation: Isolation | None = None,
        read_only: bool = False,
    ) -> T:
        """Returns what `fn(uow)` returns, once its unit of work committed; runs all of it again when that may help.

        `TransactionAborted` and `StoreUnavailable` are retried (C-05), with a growing, jittered pause of at
        most two seconds, so that `fn` may run several times, and in a rare case (the connection broke while
        committing) after it was stored: use ids and idempotency keys that make a second time harmless. Every
        other error is raised at once.

        Args:
            retries: How often it is run again after the first time.
        """
        check_count(retries, "retries", minimum=0)
        attempt = 0
        while True:
            try:
                async with self.begin(isolation=isolation, read_only=read_only) as uow:
                    result = await fn(uow)
                return result
            except (TransactionAborted, StoreUnavailable) as error:
                if attempt >= retries:
                    raise
                _log.info("retrying attempt=%d reason=%s", attempt + 1, error)
            pause = min(_FIRST_PAUSE_SECONDS * 2**attempt, _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            attempt += 1

    def listen(self, topic: HintTopic = "work") -> HintListener:
        """Returns a listener for commits of any process: `async with store.listen() as hints: await hints.wait(…)`.

        Any number of them may listen; a store needs one connection for all. Behind a transaction pooler that is a
        connection to `direct_url`; without one, and with `hints=False`, nothing is heard, and `is_listening` says so.

        Args:
            topic: "work": what workers claim; "events": what the feed reads; "members": who is in a replica set, and
                owns what. What is heard then is `partition_of_key` of the set's name; another set can have the same.
        """
        self._guard.call(writes=False)
        if topic not in get_args(HintTopic):
            raise InvalidArgument(argument="topic", reason=f"must be one of {get_args(HintTopic)}")
        return self._listener(topic)

    @abstractmethod
    async def now(self) -> datetime:
        """Returns the current instant by the clock that judges due times and leases: the database's, or `clock`."""

    @abstractmethod
    async def migrate(self) -> None:
        """Brings the schema to this version's, under an advisory lock: any number of processes at once upgrade once.

        The feed of a database that was restored from another server's dump goes on where it was, too.

        Raises:
            SchemaMismatch: The database is ahead of this version of the library, or has another partition
                count.
            TransactionAborted: It was restored, and a transaction of the server is older; call again when it ended.
        """

    @abstractmethod
    async def check_schema(self) -> None:
        """Checks that the database has the schema this version works with.

        Raises:
            SchemaMismatch: It is behind, ahead, has another partition count, or was restored from another server's
                dump and not migrated since (writes are refused meanwhile); tells both sides.
        """

    @abstractmethod
    async def statistics(self, *, exact: bool = False) -> Statistics:
        """Returns figures of the store, read from indexes.

        A back end may estimate a figure above 10,000, so that the call takes no longer on a large store than on a small
        one; `estimated` of the result names those figures.

        Args:
            exact: Count everything, however long it takes.
        """

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _close(self) -> None: ...

    @abstractmethod
    def _listener(self, topic: HintTopic) -> HintListener: ...

    @abstractmethod
    def _unit_of_work(self, isolation: Isolation | None, read_only: bool) -> UnitOfWork: ...

    @abstractmethod
    def _enlist(
        self, session_or_connection: AsyncSession | AsyncConnection
    ) -> AbstractAsyncContextManager[UnitOfWork]: ...
