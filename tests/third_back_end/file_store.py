"""A third back end, written against `cascade_state.abc` alone: flows in a JSON file, worked on in memory.

A toy. The file is read by the first opening of a store and written when the last one closes, so it is as durable as a
text editor; definitions without flows, events that nobody waits for, and what replica sets know are not in it.

What it shows is how little a back end has to know: checks, guards and the order of a unit of work are the contract's
own, in the public methods of the abstract classes. A back end fills in the protected ones, and here all of them pass
the call on to the store beneath. `Flaw` puts a mistake in, which the contract suite has to find.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from typing import Any, NoReturn

from cascade_state import Capabilities, Statistics, Store, UnitOfWork, UsageError
from cascade_state.abc import Locks, StoreOptions
from cascade_state.abc.hints import HintListener, HintTopic
from cascade_state.abc.locks import Patience
from cascade_state.abc.store import Isolation
from cascade_state.memory.store import MemoryStore
from cascade_state.model.locks import LockName
from cascade_state.testing.contracts.calls import REPOSITORIES

__all__ = ["FileStore", "Flaw"]


class Flaw(Enum):
    """A mistake that somebody could make."""

    KEEPS_WHAT_WAS_ROLLED_BACK = auto()
    OVERWRITES_NEWER_STATES = auto()
    CLAIMS_WITHOUT_A_LEASE = auto()
    SEES_NO_LOCKS = auto()


def passing_on(kind: type[Any]) -> type[Any]:
    """Returns an implementation of a repository: each abstract method calls the same one of `beneath`."""

    def passed_on(name: str) -> Callable[..., Any]:
        return lambda self, *args, **options: getattr(self.beneath, name)(*args, **options)

    return type(f"File{kind.__name__}", (kind,), {name: passed_on(name) for name in kind.__abstractmethods__})


IMPLEMENTED: dict[str, type[Any]] = {name: passing_on(kind) for name, kind in REPOSITORIES.items()}


_FileStates: Any = IMPLEMENTED["component_states"]
_FileTimers: Any = IMPLEMENTED["timers"]
_FileLocks: Any = passing_on(Locks)


class FlawedStates(_FileStates):  # type: ignore[misc]
    """Does not look at the version that a writer started from."""

    async def _put(self, flow_instance_id: Any, step_id: Any, state: Any, expected: Any, expires_at: Any) -> Any:
        return await self.beneath._put(flow_instance_id, step_id, state, None, expires_at)


class FlawedTimers(_FileTimers):  # type: ignore[misc]
    """Hands out timers, and leaves them for others to claim."""

    async def _claim_due(self, *args: Any, **options: Any) -> Any:
        claimed = await self.beneath._claim_due(*args, **options)
        for timer in claimed:
            await self.beneath._reschedule(timer.timer_id, timer.due_at)
        return claimed


FLAWED = {
    Flaw.OVERWRITES_NEWER_STATES: {"component_states": FlawedStates},
    Flaw.CLAIMS_WITHOUT_A_LEASE: {"timers": FlawedTimers},
}


def attach_repositories(owner: Store | UnitOfWork, beneath: Store | UnitOfWork, limits: Any, flaw: Flaw | None) -> None:
    """Gives a store or unit of work its repositories, over those of another one."""
    for name, kind in {**IMPLEMENTED, **(FLAWED.get(flaw, {}) if flaw else {})}.items():
        repository = kind(owner._guard, limits)
        repository.beneath = getattr(beneath, name)
        setattr(owner, name, repository)


class FileStore(Store):
    """A store in a file: `FileStore("file:///srv/flows.json", StoreOptions())`."""

    def __init__(self, url: str, options: StoreOptions, *, flaw: Flaw | None = None) -> None:
        super().__init__(options)
        self._url = url
        self._path = Path(url.removeprefix("file://"))
        self._flaw = flaw
        self._beneath: Store = MemoryStore(f"memory://{self._path}", options)  # the same for all openings of a file

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return replace(self._beneath.capabilities, durable=True)

    async def now(self) -> datetime:
        return await self._beneath.now()

    async def migrate(self) -> None:
        await self._beneath.migrate()

    async def check_schema(self) -> None:
        await self._beneath.check_schema()

    async def statistics(self, *, exact: bool = False) -> Statistics:
        self._guard.call(writes=False)
        return await self._beneath.statistics(exact=exact)

    async def _open(self) -> None:
        await self._beneath.__aenter__()
        attach_repositories(self, self._beneath, self._limits, self._flaw)
        self.locks = FileLocks(self, self._beneath, self._flaw)
        if self._path not in _openings:
            await self._load()
        _openings.append(self._path)

    async def _close(self) -> None:
        _openings.remove(self._path)
        if self._path not in _openings:
            await self._save()
        await self._beneath.__aexit__(None, None, None)

    async def _load(self) -> None:
        if self._path.exists():
            for document in json.loads(self._path.read_text(encoding="utf-8")):
                await self._beneath.flow_instances.import_(document)

    async def _save(self) -> None:
        flows = self._beneath.flow_instances
        documents = [await flows.export(flow.flow_instance_id) async for flow in flows.iterate() if not flow.parent_id]
        self._path.write_text(json.dumps(documents), encoding="utf-8")

    def _listener(self, topic: HintTopic) -> HintListener:
        return self._beneath._listener(topic)

    def _unit_of_work(self, isolation: Isolation | None, read_only: bool) -> UnitOfWork:
        return FileUnitOfWork(self, self._beneath._unit_of_work(isolation, read_only), read_only, self._flaw)

    def _enlist(self, session_or_connection: Any) -> AbstractAsyncContextManager[UnitOfWork]:
        raise UsageError("a file has no SQL")


_openings: list[Path] = []  # in this process; nobody else may have the file open


class FileUnitOfWork(UnitOfWork):
    """A transaction: that of the store beneath."""

    def __init__(self, store: FileStore, beneath: UnitOfWork, read_only: bool, flaw: Flaw | None) -> None:
        super().__init__(store.options.limits, read_only=read_only)
        self._beneath = beneath
        self._flaw = flaw
        attach_repositories(self, beneath, store.options.limits, flaw)

    async def _begin(self) -> None:
        await self._beneath.__aenter__()

    async def _commit(self) -> None:
        await self._beneath._commit()

    async def _rollback(self) -> None:
        keeps = self._flaw is Flaw.KEEPS_WHAT_WAS_ROLLED_BACK
        await (self._beneath._commit() if keeps else self._beneath._rollback())

    async def _lock(self, name: LockName, shared: bool, patience: Patience) -> bool:
        return await self._beneath._lock(name, shared, patience)

    async def _limit_idle(self, duration: timedelta) -> None:
        await self._beneath._limit_idle(duration)

    async def _set_savepoint(self) -> object:
        return await self._beneath._set_savepoint()

    async def _release_savepoint(self, mark: Any) -> None:
        await self._beneath._release_savepoint(mark)

    async def _rollback_to_savepoint(self, mark: Any) -> None:
        await self._beneath._rollback_to_savepoint(mark)

    def _sql_connection(self) -> NoReturn:
        raise UsageError("a file has no SQL")

    def _sql_session(self, **options: Any) -> NoReturn:
        raise UsageError("a file has no SQL")


class FileLocks(_FileLocks):  # type: ignore[misc]
    """Locks between the tasks of this process."""

    def __init__(self, store: Store, beneath: Store, flaw: Flaw | None) -> None:
        super().__init__(store._guard, store.options.schema)
        self.beneath = beneath.locks
        self._flaw = flaw

    async def _is_held(self, name: LockName) -> bool:
        is_held: bool = await self.beneath._is_held(name)
        return is_held and self._flaw is not Flaw.SEES_NO_LOCKS
