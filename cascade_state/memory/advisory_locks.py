"""Advisory locks of a memory store: between the tasks of one process."""

from __future__ import annotations

import os
import time

from cascade_state.abc.guards import Guard
from cascade_state.abc.locks import HeldLock, Locks, Patience
from cascade_state.abc.options import StoreOptions
from cascade_state.errors import LockLost
from cascade_state.memory.data import MemoryData
from cascade_state.memory.locks import ADVISORY, LockOwner
from cascade_state.model.locks import LockInfo, LockName

__all__ = ["MemoryLocks"]


class MemoryLocks(Locks):
    """See `Locks`. What ends with a connection on PostgreSQL ends with the store here."""

    def __init__(self, guard: Guard, options: StoreOptions) -> None:
        super().__init__(guard, options.schema)
        self._application_name = options.application_name
        self._data: MemoryData
        self._owners: set[LockOwner] = set()  # who holds a lock through this store, or waits for one

    def open(self, data: MemoryData) -> None:
        """Begins to work on `data`."""
        self._data = data

    def close(self) -> None:
        """Gives back what is held, and turns away who waits."""
        for owner in tuple(self._owners):
            self._data.locks.turn_away(owner)
            self.give_back(owner)

    def give_back(self, owner: LockOwner) -> bool:
        """Gives back what `owner` holds; returns whether it held it until now."""
        if owner not in self._owners:
            return False
        self._owners.remove(owner)
        self._data.locks.give_back(owner)
        return True

    def has(self, owner: LockOwner) -> bool:
        """Tells whether `owner` holds what it got."""
        return owner in self._owners

    async def _acquire(self, name: LockName, shared: bool, patience: Patience) -> HeldLock | None:
        key = self.key_of(name)
        data = self._data
        owner = LockOwner(self._application_name)
        self._owners.add(owner)
        is_granted = False
        try:
            is_granted = await data.locks.acquire((key, name), owner, shared=shared, seconds=patience.left())
        finally:
            if not is_granted:
                self._owners.discard(owner)
        if not is_granted:
            return None
        # As on PostgreSQL: beyond the last one, and beyond those of an earlier store of this name.
        token = max(data.fencing_tokens.get(key, 0) + 1, time.time_ns() // 1_000)
        data.fencing_tokens[key] = token
        return _MemoryHeldLock(self, owner, lock_name=name, key=key, shared=shared, fencing_token=token)

    async def _is_held(self, name: LockName) -> bool:
        return (ADVISORY, (self.key_of(name), name)) in self._data.locks.held

    async def _list_held(self) -> list[LockInfo]:
        infos = [
            LockInfo(
                lock_name=use.lock[1],
                key=use.lock[0],
                mode="shared" if use.is_shared else "exclusive",
                pid=os.getpid(),
                application_name=use.application_name,
                granted=use.is_granted,
                since=use.since,
            )
            for use in self._data.locks.uses()
        ]
        return sorted(infos, key=lambda info: (info.key, not info.granted))  # stable: each queue keeps its order


class _MemoryHeldLock(HeldLock):
    __slots__ = ("_is_released", "_locks", "_owner")

    def __init__(
        self, locks: MemoryLocks, owner: LockOwner, *, lock_name: LockName, key: int, shared: bool, fencing_token: int
    ) -> None:
        super().__init__(lock_name=lock_name, key=key, shared=shared, fencing_token=fencing_token)
        self._locks = locks
        self._owner = owner
        self._is_released = False

    async def release(self) -> bool:
        self._is_released = True
        return self._locks.give_back(self._owner)

    async def check(self) -> None:
        if not self._locks.has(self._owner):
            if self._is_released:
                raise LockLost(lock_name=self.lock_name, reason="it was released")
            raise LockLost(lock_name=self.lock_name, reason="its store was closed")
