"""Advisory locks on PostgreSQL: held by the session of a connection of their own.

Waiting. The server waits, in its queue, with `lock_timeout`, which counts milliseconds: nobody polls, who waits longest
is next, and a time-out is kept to a millisecond. One statement waits for some seconds at most, then asks again, behind
who came meanwhile: while it waits it has a snapshot, and an old snapshot keeps vacuum from its work, and CREATE INDEX
CONCURRENTLY from its end, which the holder of the lock may be waiting for.

Cancelling. The driver asks the server to cancel the statement, but the lock may have been granted just before. So the
connection of a cancelled wait is used for nothing more than giving up what it may hold.

Fencing. Once the lock is granted, the row of its name is counted up, in a transaction of its own; so the tokens are in
the order of the holders, and durable before anybody sees them (docs/adr/0016-fencing-tokens.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from datetime import datetime
from math import ceil
from typing import Any, Literal, TypeVar

from cascade_state.abc.completion import run_to_completion
from cascade_state.abc.guards import Guard
from cascade_state.abc.locks import HeldLock, Locks, Patience
from cascade_state.errors import LockLost, StoreError, StoreNotOpen, StoreUnavailable, TransactionAborted
from cascade_state.model.locks import LockInfo, LockName, lock_name_from_text, lock_name_text
from cascade_state.postgres.direct import DriverConnection, Record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.lock_connections import LockConnections
from cascade_state.postgres.statements import locks as statements
from cascade_state.postgres.statements.parameters import columns

__all__ = ["PostgresLocks"]

T = TypeVar("T")

_log = logging.getLogger("cascade_state.locks")

_LOCK_NOT_AVAILABLE = "55P03"
_LONGEST_WAIT_SECONDS = 10.0  # of one statement
_LONGEST_LOCK_TIMEOUT = 2**31 - 1
_HALF = 2**32
_MOST_NAMES = 10_000  # that are remembered for `list_held`


class PostgresLocks(Locks):
    """See `Locks`. Each lock that is held takes one connection."""

    def __init__(self, guard: Guard, executor: Executor, connections: LockConnections) -> None:
        super().__init__(guard, executor.options.schema)
        self._executor = executor
        self._connections = connections
        self._held: set[_SessionLock] = set()
        self._waits: set[asyncio.Task[Any]] = set()
        self._calls: set[asyncio.Future[None]] = set()
        self._names: dict[int, LockName] = {}  # of what units of work of this store locked
        self._closed = False

    async def close(self) -> None:
        """Releases what is held, and ends all waiting with `StoreNotOpen`."""
        self._closed = True
        for wait in tuple(self._waits):
            wait.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        for lock in tuple(self._held):
            await lock.release()
        self._connections.close()

    async def lock_in_transaction(self, executor: Executor, name: LockName, shared: bool, patience: Patience) -> bool:
        """Takes a lock until the open transaction of `executor` ends; returns whether that was possible in time.

        Whoever has to wait does so within a savepoint, so that a time-out leaves the transaction usable.

        Raises:
            TransactionAborted: Transactions wait for each other.
        """
        key = self.key_of(name)
        self._remember(key, name)
        (record,) = await executor.fetch(statements.TRANSACTION_TRY[shared], {"key": key})
        if record["granted"]:
            return True
        if patience.is_none:
            return False
        try:
            async with executor.transaction(undoable=True):
                values = {"key": key, "milliseconds": _milliseconds(patience.left())}
                await executor.fetch(statements.TRANSACTION_WAIT[shared], values)
                await executor.fetch(statements.RESTORE_LOCK_TIMEOUT, {"lock_timeout": record["lock_timeout"]})
        except TransactionAborted as error:
            if error.sqlstate != _LOCK_NOT_AVAILABLE:
                raise
            return False
        return True

    def _remember(self, key: int, name: LockName) -> None:
        if len(self._names) >= _MOST_NAMES:
            self._names.clear()
        self._names[key] = name

    async def _acquire(self, name: LockName, shared: bool, patience: Patience) -> HeldLock | None:
        call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls.add(call)
        try:
            while True:
                connection, was_kept = await self._connections.take()
                try:
                    return await self._acquire_on(connection, name, shared, patience)
                except StoreUnavailable:
                    await run_to_completion(self._connections.discard(connection))
                    if not was_kept:  # else it may have broken before; with it, what it may have acquired is gone
                        raise
                except BaseException:
                    await run_to_completion(self._connections.discard(connection))
                    raise
        finally:
            self._calls.discard(call)
            call.set_result(None)

    async def _acquire_on(
        self, connection: DriverConnection, name: LockName, shared: bool, patience: Patience
    ) -> HeldLock | None:
        key = self.key_of(name)
        if not await self._interruptible(self._is_granted(connection, key, shared, patience)):
            _log.debug("not acquired lock=%r waited=%.3f", name, patience.waited())
            self._connections.put_back(connection)
            return None
        pid = connection.get_server_pid()
        (record,) = await self._connections.fetch(
            connection,
            statements.NEXT_TOKEN,
            {
                "partition_id": self._partition_of(key),
                "key": key,
                "lock_name": lock_name_text(name),
                "backend_pid": pid,
            },
        )
        token: int = record["token"]
        if self._closed:
            raise StoreNotOpen
        _log.debug("acquired lock=%r token=%d pid=%d waited=%.3f", name, token, pid, patience.waited())
        lock = _SessionLock(self, connection, lock_name=name, key=key, shared=shared, fencing_token=token)
        self._held.add(lock)
        return lock

    async def _is_granted(self, connection: DriverConnection, key: int, shared: bool, patience: Patience) -> bool:
        while (left := patience.left()) != 0:
            longest = _LONGEST_WAIT_SECONDS if left is None else min(left, _LONGEST_WAIT_SECONDS)
            values = {"key": key, "milliseconds": _milliseconds(longest)}
            try:
                await self._connections.fetch(connection, statements.WAIT[shared], values)
            except TransactionAborted as error:
                if error.sqlstate != _LOCK_NOT_AVAILABLE:
                    raise
                if left is not None and left <= longest:
                    return False
            else:
                return True
        (record,) = await self._connections.fetch(connection, statements.TRY[shared], {"key": key})
        return bool(record["granted"])

    async def _interruptible(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work`, which ends with `StoreNotOpen` when the store is closed."""
        task = asyncio.ensure_future(work)
        self._waits.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and caller is not None and not caller.cancelling():
                raise StoreNotOpen from None
            raise
        finally:
            self._waits.discard(task)

    async def release(self, lock: _SessionLock, connection: DriverConnection) -> bool:
        """Releases a lock and takes its connection back; returns whether it was held."""
        self._held.discard(lock)
        try:
            (record,) = await self._connections.ask(connection, statements.UNLOCK[lock.shared], {"key": lock.key})
        except (StoreError, TimeoutError) as error:
            _log.warning("lost lock=%r token=%d reason=%s", lock.lock_name, lock.fencing_token, error)
            connection.terminate()
            return False
        _log.debug("released lock=%r token=%d", lock.lock_name, lock.fencing_token)
        self._connections.put_back(connection)
        return bool(record["granted"])

    async def confirm(self, lock: _SessionLock, connection: DriverConnection) -> None:
        """Returns if the session of a lock lives.

        Raises:
            LockLost: It does not.
        """
        try:
            await self._connections.ask(connection, statements.SESSION, {})
        except (StoreError, TimeoutError) as error:
            self._held.discard(lock)
            _log.warning("lost lock=%r token=%d reason=%s", lock.lock_name, lock.fencing_token, error)
            connection.terminate()
            raise LockLost(lock_name=lock.lock_name) from error

    async def _is_held(self, name: LockName) -> bool:
        upper, lower = divmod(self.key_of(name) % (_HALF * _HALF), _HALF)
        (record,) = await self._executor.fetch(statements.IS_HELD, {"upper_half": upper, "lower_half": lower})
        return bool(record["is_held"])

    async def _list_held(self) -> list[LockInfo]:
        found = [(_key_from(record), record) for record in await self._executor.fetch(statements.LIST, {})]
        wanted = sorted({(self._partition_of(key), key) for key, _ in found})
        described: dict[int, Record] = {}
        if wanted:
            values = columns("wanted", statements.TOKEN_KEYS, wanted)
            described = {
                record["lock_key"]: record for record in await self._executor.fetch(statements.DESCRIBE, values)
            }
        infos = [_info_from(key, record, described.get(key), self._names.get(key)) for key, record in found]
        return sorted(infos, key=lambda info: (info.key, not info.granted, info.since is None, info.since, info.pid))

    def _partition_of(self, key: int) -> int:
        return key % self._executor.options.partition_count


class _SessionLock(HeldLock):
    __slots__ = ("_connection", "_locks", "_reason", "_turn")

    def __init__(
        self,
        locks: PostgresLocks,
        connection: DriverConnection,
        *,
        lock_name: LockName,
        key: int,
        shared: bool,
        fencing_token: int,
    ) -> None:
        super().__init__(lock_name=lock_name, key=key, shared=shared, fencing_token=fencing_token)
        self._locks = locks
        self._connection: DriverConnection | None = connection
        self._reason = "it was released"
        self._turn = asyncio.Lock()  # one statement at a time on a connection

    async def release(self) -> bool:
        return await run_to_completion(self._release())

    async def _release(self) -> bool:
        async with self._turn:
            connection, self._connection = self._connection, None
            return connection is not None and await self._locks.release(self, connection)

    async def check(self) -> None:
        # To its end: a cancelled statement would leave a request to cancel under way, which may meet the release.
        await run_to_completion(self._check())

    async def _check(self) -> None:
        async with self._turn:
            if self._connection is None:
                raise LockLost(lock_name=self.lock_name, reason=self._reason)
            try:
                await self._locks.confirm(self, self._connection)
            except LockLost:
                self._connection = None
                self._reason = "its connection ended"
                raise


def _milliseconds(seconds: float | None) -> str:
    """Returns a `lock_timeout`, in which 0 means that there is none."""
    return "0" if seconds is None else str(min(max(ceil(seconds * 1000), 1), _LONGEST_LOCK_TIMEOUT))


def _key_from(record: Record) -> int:
    key: int = record["upper_half"] * _HALF + record["lower_half"]
    return key - _HALF * _HALF if key >= _HALF * _HALF // 2 else key


def _info_from(key: int, record: Record, described: Record | None, name: LockName | None) -> LockInfo:
    return LockInfo(
        lock_name=name if described is None else lock_name_from_text(described["lock_name"]),
        key=key,
        mode=_mode_from(record),
        pid=record["pid"],
        application_name=record["application_name"] or "",
        granted=record["granted"],
        since=_since_from(record, described),
    )


def _mode_from(record: Record) -> Literal["exclusive", "shared"]:
    return "shared" if record["mode"] == "ShareLock" else "exclusive"


def _since_from(record: Record, described: Record | None) -> datetime | None:
    since: datetime | None
    if not record["granted"]:
        since = record["waitstart"] or record["query_start"]  # the first is set a moment after the wait began
        return since
    began = record["backend_start"]
    if described is not None and began is not None and described["backend_pid"] == record["pid"]:
        if described["acquired_at"] >= began:  # not another session that had the same number
            since = described["acquired_at"]
            return since
    since = record["xact_start"] or began
    return since
