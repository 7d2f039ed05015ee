"""One transaction and its repositories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from cascade_state.abc.advancing import Advancing
from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.component_states import ComponentStates
from cascade_state.abc.correlations import Correlations
from cascade_state.abc.events import Events
from cascade_state.abc.feeds import Feeds
from cascade_state.abc.flow_definitions import FlowDefinitions
from cascade_state.abc.flow_instances import FlowInstances
from cascade_state.abc.guards import Stage, UnitOfWorkGuard
from cascade_state.abc.locks import Patience, check_shared
from cascade_state.abc.replica_sets import ReplicaSets
from cascade_state.abc.timers import Timers
from cascade_state.errors import LeaseLost, LockNotAcquired, UnitOfWorkFinished, UnitOfWorkNotOpen, UsageError
from cascade_state.model.advance import AdvancePlan, HeldDelivery, HeldTimer, Limits, held_delivery, held_timer
from cascade_state.model.arguments import check_count, check_duration, check_key, check_partition
from cascade_state.model.correlations import Delivery
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.locks import LockName, check_lock_name
from cascade_state.model.timers import Timer

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

__all__ = ["UnitOfWork"]

_MAXIMUM_GENERATION = (1 << 63) - 1


class UnitOfWork(Advancing, ABC):
    """One transaction and its repositories: `async with store.begin() as uow:`.

    It is entered once, by one task. A clean exit commits; an exception or a cancellation, at any await, rolls
    back and leaves no trace (C-02). Isolation is READ COMMITTED unless asked otherwise: each call sees what
    was committed when it began, and what this unit of work wrote itself.
    """

    flow_definitions: FlowDefinitions
    flow_instances: FlowInstances
    component_states: ComponentStates
    correlations: Correlations
    timers: Timers
    events: Events
    replica_sets: ReplicaSets
    feeds: Feeds

    def __init__(self, limits: Limits, *, read_only: bool = False) -> None:
        self._limits = limits
        self._guard = UnitOfWorkGuard(read_only=read_only)
        self._lock_names: list[LockName] = []
        self._settled: set[UUID | HeldTimer | HeldDelivery] = set()
        self._idle_limit: timedelta | None = None
        self._in_hand: Timer | Delivery | None = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # A back end attaches the repositories when it begins: before that there are none.
            if name in UnitOfWork.__annotations__:
                self._require_open()
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def __aenter__(self) -> UnitOfWork:
        if self._guard.stage is Stage.FINISHED:
            raise UnitOfWorkFinished
        if self._guard.stage is Stage.OPEN:
            raise UsageError("this unit of work was entered already; begin one for each task")
        self._guard.stage = Stage.OPEN
        try:
            if self._idle_limit is None:
                await self._begin()
            else:
                await self._begin_limited(self._idle_limit)
        except BaseException:
            self._guard.stage = Stage.FINISHED
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._guard.stage is not Stage.OPEN:
            return  # rollback() ended it already
        self._guard.stage = Stage.FINISHED
        if not self._left_unused():
            await run_to_completion(self._commit() if kind is None else self._rollback())

    async def rollback(self) -> None:
        """Abandons the unit of work at once: nothing of it is stored, and every later call is refused."""
        with self._guard.call(writes=False):
            self._guard.stage = Stage.FINISHED
            await run_to_completion(self._rollback())

    async def fence(self, partition_id: int, generation: int, replica_set: str) -> None:
        """Makes this unit of work valid only for the present owner of a partition: one round trip.

        It returns if the partition has this generation, so that its owner did not change since it was given
        out; and until the unit of work ends the owner cannot change. Call it first: then a hand-over waits for
        what is in hand, instead of making it vain.

        Raises:
            LeaseLost: The partition has another generation: somebody else owns it, or nobody. Drop the work in
                hand.
        """
        check_partition(partition_id, "partition_id", self._limits.partition_count)
        check_count(generation, "generation", minimum=0, maximum=_MAXIMUM_GENERATION)
        check_key(replica_set, "replica_set")
        with self._guard.call(writes=True):
            if not await self.replica_sets._fence(replica_set, partition_id, generation):
                raise LeaseLost(entity=f"partition of replica set {replica_set}", key=partition_id, token=generation)

    async def limit_idle(self, duration: timedelta) -> None:
        """Has the server end this unit of work, and its connection, once nothing was sent for so long: one round trip.

        A process that is stopped in the middle then keeps its row locks, and holds back the feed, no longer than its
        lease. In memory it does nothing: there the process is all there is.
        """
        check_duration(duration, "duration")
        with self._guard.call(writes=False):
            await self._limit_idle(duration)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was read or written in it: it can end as if it had never been. False where nobody knows."""
        self._require_open()
        return self._is_untouched()

    def has_settled(self, item: Timer | Delivery | FlowInstance) -> bool:
        """Tells whether `advance` acknowledged a claimed item in this unit of work, or ended its flow."""
        self._require_open()
        if item.flow_instance_id in self._settled:
            return True
        if isinstance(item, FlowInstance):
            return False
        return _held(item) in self._settled

    def take_in_hand(self, item: Timer | Delivery) -> None:
        """Says which claimed item this unit of work is about: an `advance` that removes it acknowledges it.

        Resuming a flow removes the timer or the wait that it was resumed by. With the item in hand that is the
        acknowledgement, under its lease, and costs no round trip of its own. If the lease was lost, `advance` removes
        nothing less, and whoever acknowledges is told. A worker does this before it calls a handler.

        Raises:
            LeaseLost: It was never claimed.
        """
        self._require_open()
        _held(item)
        self._in_hand = item

    async def _write(self, plan: AdvancePlan) -> FlowInstance:
        fenced = None if self._in_hand is None else plan.acknowledging(self._in_hand)
        if fenced is not None:
            with suppress(LeaseLost):  # it is settled in another way, or lost, which its acknowledgement will find
                stored = await self.flow_instances.write(fenced)
                self._note(fenced)
                return stored
        stored = await self.flow_instances.write(plan)
        self._note(plan)
        return stored

    def _note(self, plan: AdvancePlan) -> None:
        """Takes note of what was written."""
        self._settled.update(plan.complete_timers)
        self._settled.update(plan.complete_deliveries)
        if plan.is_terminal:
            self._settled.add(plan.instance.flow_instance_id)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[UnitOfWork]:
        """Opens a nested scope: an exception that leaves it undoes what was done inside, and only that.

        A conflict (`VersionConflict`, `AlreadyExists` …) raised inside leaves the unit of work usable outside
        (C-04).
        """
        with self._guard.call(writes=False):
            mark = await self._set_savepoint()
        locked = len(self._lock_names)
        settled = frozenset(self._settled)
        try:
            yield self
        except BaseException:
            self._settled = set(settled)
            if self._guard.stage is Stage.OPEN:
                del self._lock_names[locked:]
                await run_to_completion(self._rollback_to_savepoint(mark))
            raise
        if self._guard.stage is Stage.OPEN:
            with self._guard.call(writes=False):
                await self._release_savepoint(mark)

    async def lock(self, name: LockName, *, shared: bool = False, timeout: timedelta | None = None) -> None:
        """Takes an advisory lock, which is held until this unit of work (or the savepoint around the call) ends.

        The one to prefer: it needs no connection of its own, works behind a transaction pooler and cannot leak. It
        excludes `store.locks` of the same name. Without a wait it is one round trip. Take it before reading what it
        protects: above READ COMMITTED, in `store.begin(isolation=…)`, reads may show what was before the lock.

        Args:
            name: A text, or a tuple of texts and integers, of at most 512 bytes.
            shared: Whether others that ask for it shared may hold it too.
            timeout: The longest wait. Zero: exactly one try. None: until it is free.

        Raises:
            LockNotAcquired: It was not free in time; the unit of work goes on without it.
            TransactionAborted: Units of work wait for each other; this one can only be rolled back.
            UsageError: This unit of work has the lock already.
        """
        checked = check_lock_name(name)
        check_shared(shared)
        patience = Patience(timeout)
        with self._guard.call(writes=False):
            if checked in self._lock_names:
                raise UsageError(f"this unit of work has the lock {checked!r} already; it is held to its end")
            if not await self._lock(checked, shared, patience):
                raise LockNotAcquired(lock_name=checked, waited=patience.waited())
            self._lock_names.append(checked)

    @property
    def connection(self) -> AsyncConnection:
        """The SQLAlchemy connection of this transaction: the caller's own rows commit and roll back with ours.

        Raises:
            UsageError: The back end has no SQL (memory).
        """
        self._require_open()
        return self._sql_connection()

    def session(self, **options: Any) -> AsyncSession:
        """Returns an `AsyncSession` bound to this transaction, for the caller's own rows.

        Flush it (or use it as a context manager) before the unit of work ends; the unit of work commits.

        Args:
            options: Passed to `AsyncSession`.

        Raises:
            UsageError: The back end has no SQL (memory).
        """
        self._require_open()
        return self._sql_session(**options)

    def _require_open(self) -> None:
        if self._guard.stage is not Stage.OPEN:
            raise UnitOfWorkNotOpen if self._guard.stage is Stage.NEW else UnitOfWorkFinished

    @abstractmethod
    async def _begin(self) -> None: ...

    async def _begin_limited(self, idle_limit: timedelta) -> None:
        """Begins with a limit on idleness; a back end may put off what that costs until something is sent."""
        await self._begin()
        try:
            await self._limit_idle(idle_limit)
        except BaseException:
            await run_to_completion(self._rollback())
            raise

    def _is_untouched(self) -> bool:
        return False

    def _left_unused(self) -> bool:
        """Ends it at once if nothing was done in it, and nobody can do anything any more; tells whether it did."""
        return False

    @abstractmethod
    async def _commit(self) -> None:
        """Commits and gives everything back, also when the commit fails."""

    @abstractmethod
    async def _rollback(self) -> None:
        """Rolls back and gives everything back; never raises because a connection is gone."""

    @abstractmethod
    async def _lock(self, name: LockName, shared: bool, patience: Patience) -> bool: ...

    @abstractmethod
    async def _limit_idle(self, duration: timedelta) -> None: ...

    @abstractmethod
    async def _set_savepoint(self) -> object: ...

    @abstractmethod
    async def _release_savepoint(self, mark: Any) -> None: ...

    @abstractmethod
    async def _rollback_to_savepoint(self, mark: Any) -> None: ...

    @abstractmethod
    def _sql_connection(self) -> AsyncConnection: ...

    @abstractmethod
    def _sql_session(self, **options: Any) -> AsyncSession: ...


def _held(item: Timer | Delivery) -> HeldTimer | HeldDelivery:
    return held_timer(item) if isinstance(item, Timer) else held_delivery(item, "item")
