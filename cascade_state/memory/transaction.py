"""Transactions on a memory store.

A `View` is what a call works on: the tables, the locks and the time. There are two. `Direct` writes to the
committed tables, for a call that is a transaction of its own: such a call runs from beginning to end
without giving way to another task, so it needs neither locks nor a copy of anything. `Transaction` is an
open unit of work: it keeps its writes in layers over the tables and applies them when it commits, in one
go. In both, a call that fails leaves nothing behind.

Isolation. READ COMMITTED: a call sees what is committed when it runs, and the transaction's own writes.
REPEATABLE READ: the transaction sees what was committed when it began; meeting a row or key that another
one has changed since raises `TransactionAborted` (the first updater wins). SERIALIZABLE: besides that, a
transaction that has written cannot commit once anybody else has committed anything since it began; that is
stricter than PostgreSQL, and truly serial.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from cascade_state.clock import Clock
from cascade_state.errors import StoreNotOpen, TransactionAborted
from cascade_state.memory.data import MemoryData
from cascade_state.memory.locks import ADVISORY, AdvisoryLock, Blocked, LockKey, LockOwner
from cascade_state.memory.rows import (
    AssignmentKey,
    AssignmentRow,
    BusinessKey,
    BusinessKeyRow,
    DefinitionKey,
    DefinitionRow,
    EventKey,
    EventRow,
    FeedCheckpointKey,
    FeedCheckpointRow,
    FeedConsumerRow,
    FlowKey,
    FlowRow,
    HistoryKey,
    HistoryRow,
    ReplicaSetRow,
    ResultRow,
    StateRow,
    StepKey,
    TargetRow,
    TimerKey,
    TimerRow,
    WaitKey,
    WaitRow,
    WorkerKey,
    WorkerRow,
)
from cascade_state.memory.schema import TABLES, new_table
from cascade_state.memory.tables import LayeredTable, Rows, Undo
from cascade_state.model.arguments import check_instant

__all__ = ["Direct", "Mark", "Transaction", "View"]

P = ParamSpec("P")
T = TypeVar("T")


class View:
    """The store as one call sees and changes it."""

    flow_definitions: Rows[DefinitionKey, DefinitionRow]
    flow_instances: Rows[FlowKey, FlowRow]
    business_keys: Rows[BusinessKey, BusinessKeyRow]
    step_results: Rows[StepKey, ResultRow]
    component_states: Rows[StepKey, StateRow]
    timers: Rows[TimerKey, TimerRow]
    correlations: Rows[WaitKey, WaitRow]
    early_events: Rows[EventKey, EventRow]
    flow_events: Rows[HistoryKey, HistoryRow]
    replica_sets: Rows[str, ReplicaSetRow]
    workers: Rows[WorkerKey, WorkerRow]
    partition_assignments: Rows[AssignmentKey, AssignmentRow]
    partition_targets: Rows[AssignmentKey, TargetRow]
    feed_consumers: Rows[str, FeedConsumerRow]
    feed_checkpoints: Rows[FeedCheckpointKey, FeedCheckpointRow]

    def __init__(self, data: MemoryData, clock: Clock) -> None:
        self._data = data
        self._clock = clock

    @property
    def partition_count(self) -> int:
        """The number of partitions."""
        return self._data.partition_count

    @property
    def last_feed_position(self) -> int:
        """The place in the feed of the last event that is committed."""
        return self._data.feed_position

    def now(self) -> datetime:
        """Returns the current instant; a call asks once."""
        now = self._clock.now()
        return now if now.tzinfo is UTC else check_instant(now, "clock")

    def is_in(self, flow_key: int, partitions: frozenset[int] | None) -> bool:
        """Tells whether a flow, or a timer of one, lies in one of the partitions (None: all)."""
        return partitions is None or flow_key & (self._data.partition_count - 1) in partitions

    def lock(self, kind: str, which: Hashable) -> None:
        """Takes a lock until the transaction ends.

        Raises:
            Blocked: Somebody else holds it.
            TransactionAborted: What it protects has changed since this transaction's snapshot.
        """
        raise NotImplementedError

    def share(self, kind: str, which: Hashable) -> None:
        """Takes a lock that others may share; otherwise like `lock`."""
        raise NotImplementedError

    def is_free(self, kind: str, which: Hashable) -> bool:
        """Tells whether `lock` would succeed at once."""
        raise NotImplementedError

    def feed_position(self) -> int | None:
        """Returns the place in the feed of an event that is stored now; None: the commit gives it."""
        raise NotImplementedError


class Direct(View):
    """The committed tables themselves, for one call at a time."""

    def __init__(self, data: MemoryData, clock: Clock) -> None:
        super().__init__(data, clock)
        self._held = data.locks.held
        for name, table in data.tables.items():
            setattr(self, name, table)
        self._names: dict[Any, str] = {table: name for name, table in data.tables.items()}

    def call(self, body: Callable[Concatenate[View, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs one call; if it fails, it was never there."""
        undo = self._data.undo
        try:
            result = body(self, *args, **kwargs)
        except BaseException:
            undo.back_to(0)
            raise
        if self._data.hints and undo.changes:
            self._data.hints.tell((self._names[rows], key, rows.get(key)) for rows, key, _ in undo.changes)
        undo.changes.clear()
        return result

    def lock(self, kind: str, which: Hashable) -> None:
        if self._held and (kind, which) in self._held:
            raise Blocked((kind, which))

    def share(self, kind: str, which: Hashable) -> None:
        lock = self._held.get((kind, which)) if self._held else None
        if lock is not None and lock.exclusive is not None:
            raise Blocked((kind, which))

    def is_free(self, kind: str, which: Hashable) -> bool:
        return not self._held or (kind, which) not in self._held

    def feed_position(self) -> int | None:
        return self._data.next_feed_position()


class Mark(NamedTuple):
    """A point in a transaction that can be gone back to."""

    changes: int
    locks: int


class Transaction(LockOwner, View):
    """An open transaction."""

    def __init__(
        self, data: MemoryData, clock: Clock, *, isolation: str | None = None, application_name: str = ""
    ) -> None:
        LockOwner.__init__(self, application_name)
        View.__init__(self, data, clock)
        self._undo = Undo()
        self._layers: dict[str, LayeredTable[Any, Any]] = {}
        self._savepoints: list[Mark] = []
        self._is_aborted = False
        self._is_closed = False
        self._is_serializable = isolation == "SERIALIZABLE"
        # A transaction that sees what was keeps the rows that others have changed since as they were, and the locks
        # that they had.
        self._is_snapshot = isolation in ("REPEATABLE READ", "SERIALIZABLE")
        self._remembered: dict[str, LayeredTable[Any, Any]] = {}
        self._overtaken: set[LockKey] = set()

    def __getattr__(self, name: str) -> Any:
        # Called once for each table: most transactions touch a few of them.
        if name not in TABLES:
            raise AttributeError(name)
        base: Rows[Any, Any] = self._data.tables[name]
        if self._is_snapshot:
            base = self._remembered[name] = LayeredTable(base, new_table(name, Undo()), Undo())
        layer = self._layers[name] = LayeredTable(base, new_table(name, self._undo), self._undo)
        setattr(self, name, layer)
        return layer

    # Its life

    def begin(self) -> None:
        """Takes the snapshot, if the isolation wants one."""
        if self._is_snapshot:
            for name in TABLES:
                getattr(self, name)
            self._data.snapshots.add(self)

    def call(self, body: Callable[Concatenate[View, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs one call; if it fails, it was never there, and the transaction goes on without it.

        Raises:
            TransactionAborted: It lost against another one; it can only be rolled back now, at least to a
            savepoint.
        """
        self.check_usable()
        mark = self.mark()
        try:
            return body(self, *args, **kwargs)
        except TransactionAborted:
            self.abort()
            raise
        except BaseException:
            self._back_to(mark)
            raise

    def check_usable(self) -> None:
        """Raises if the transaction was aborted, or ended by the closing of its store."""
        if self._is_closed:
            raise StoreNotOpen
        if self._is_aborted:
            raise TransactionAborted(reason="it was aborted before; roll it back")

    def commit(self) -> None:
        """Applies all writes at once.

        Raises:
            TransactionAborted: It was aborted before, or is serializable and was overtaken; nothing is
            applied.
        """
        try:
            self.check_usable()
            if self._is_serializable and self._undo.changes and self._overtaken:
                raise TransactionAborted(reason="others have committed since the serializable snapshot")
            self._apply()
        finally:
            self.end()

    def end(self) -> None:
        """Gives all locks back and forgets what was not committed."""
        self._data.snapshots.discard(self)
        self._data.locks.give_back(self)

    def close(self) -> None:
        """Ends it because its store was closed; later calls, and one that waits for a lock, raise `StoreNotOpen`."""
        self._is_closed = True
        self._data.locks.turn_away(self)
        self.end()

    def abort(self) -> None:
        """Undoes everything since the last savepoint, and refuses calls until it is rolled back to one."""
        self._back_to(self._savepoints[-1] if self._savepoints else Mark(0, 0))
        self._is_aborted = True

    def _apply(self) -> None:
        data = self._data
        observers = [snapshot for snapshot in data.snapshots if snapshot is not self]
        for name, layer in self._layers.items():
            table = data.tables[name]
            # Places in the feed are given out here: in the order of each flow, in whatever order they were stored.
            changed = sorted(layer.changed) if name == "flow_events" else layer.changed
            for key in changed:
                row = layer.top.get(key)
                if name == "flow_events" and row is not None:
                    row = row._replace(position=data.next_feed_position())
                before = table.drop(key) if row is None else table.set(key, row)
                for snapshot in observers:
                    snapshot.remember(name, key, before)
        if data.hints:
            layers = self._layers.items()
            data.hints.tell((name, key, layer.top.get(key)) for name, layer in layers for key in layer.changed)
        if observers:
            taken = {key for key, _ in self.taken if key[0] != ADVISORY and data.locks.held[key].exclusive is self}
            for snapshot in observers:
                snapshot.overtake(taken)

    # Snapshots

    def remember(self, name: str, key: Any, row: Any) -> None:
        """Goes on seeing a row as it was before another transaction's commit."""
        self._remembered[name].remember(key, row)

    def overtake(self, keys: set[LockKey]) -> None:
        """Notes what another transaction had locked for itself when it committed."""
        self._overtaken.update(keys)

    # Savepoints

    def mark(self) -> Mark:
        """Returns the present point."""
        return Mark(len(self._undo.changes), len(self.taken))

    def set_savepoint(self) -> int:
        """Opens a savepoint; returns its depth."""
        self.check_usable()
        self._savepoints.append(self.mark())
        return len(self._savepoints) - 1

    def release_savepoint(self, depth: int) -> None:
        """Closes a savepoint, and those inside; what was done inside stays."""
        self.check_usable()
        del self._savepoints[depth:]

    def roll_back_to_savepoint(self, depth: int) -> None:
        """Closes a savepoint, and those inside, and undoes what was done inside, locks included."""
        self._back_to(self._savepoints[depth])
        del self._savepoints[depth:]
        self._is_aborted = False

    def _back_to(self, mark: Mark) -> None:
        self._undo.back_to(mark.changes)
        self._data.locks.give_back(self, mark.locks)

    # What a call asks for

    async def acquire(self, which: AdvisoryLock, *, shared: bool, seconds: float | None) -> bool:
        """Takes an advisory lock until the transaction ends, and returns whether that was possible in time.

        Raises:
            TransactionAborted: Transactions would wait for each other for ever; this one is aborted.
        """
        self.check_usable()
        try:
            return await self._data.locks.acquire(which, self, shared=shared, seconds=seconds)
        except TransactionAborted:
            self.abort()
            raise

    def lock(self, kind: str, which: Hashable) -> None:
        key = (kind, which)
        if key in self._overtaken:
            raise TransactionAborted(reason="another transaction changed the row since the snapshot")
        self._data.locks.take(key, self)

    def share(self, kind: str, which: Hashable) -> None:
        key = (kind, which)
        if key in self._overtaken:
            raise TransactionAborted(reason="another transaction changed the row since the snapshot")
        self._data.locks.share(key, self)

    def is_free(self, kind: str, which: Hashable) -> bool:
        key = (kind, which)
        return key not in self._overtaken and self._data.locks.is_free(key, self)

    def feed_position(self) -> int | None:
        return None
