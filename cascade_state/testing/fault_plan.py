"""A store that fails where it is told to, for the tests of whoever must survive that.

`FaultPlan(store, …)` is a store of its own around another one, and is handed to the code under test in its place. It
counts the calls that come by, and lets the chosen ones fail. Everything else it passes on, so whatever the store under
it promises still holds. On PostgreSQL a dropped connection is really dropped, beneath the store, and what is raised is
what the store makes of it. A back end that has no connection to drop raises the same error by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from functools import cache
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_type_hints

from cascade_state.abc import Capabilities, Store, UnitOfWork
from cascade_state.abc.hints import HintListener, HintTopic
from cascade_state.abc.locks import Patience
from cascade_state.abc.store import Isolation
from cascade_state.errors import InvalidArgument, StoreUnavailable
from cascade_state.model.arguments import check_kind
from cascade_state.model.locks import LockName
from cascade_state.model.statistics import Statistics
from cascade_state.testing.faults import Fault, FaultKind, FaultSchedule, FiredFault

__all__ = ["FaultPlan"]

T = TypeVar("T")

_CALLED = {("flow_instances", "write"): "advance"}  # the name that callers know, where it is another

# What has a counterpart in a unit of work, where its connection can be dropped.
_IN_UNITS_OF_WORK = frozenset({*UnitOfWork.__annotations__, "advance"})


_BARE_CALLS = frozenset(
    {"advance", "begin", "check_schema", "commit", "limit_idle", "lock", "migrate", "now", "savepoint", "statistics"}
)


class FaultPlan(Store):
    """A store around another one, in which chosen calls fail.

    Calls have the names by which they are made: `advance`, `timers.claim_due`, `locks.hold`, `statistics`; those of a
    unit of work too, and its `begin` and `commit` (the end of an enlisted one is its `commit`). It may wrap a store
    that is open, or one that is entered together with it: `async with FaultPlan(open_store(url), …) as store`.

    Args:
        store: What is to work apart from the faults.
        faults: What goes wrong. Several may count the same calls; the first one that befalls a call wins.
        seed: Besides, faults are drawn at random: the same ones for the same seed, call and number of the call.
        rate: The share of calls that a random fault befalls.
        kinds: What random faults may be.

    Raises:
        InvalidArgument: A fault names a call that there is not, or another argument is out of range.
    """

    def __init__(
        self,
        store: Store,
        *faults: Fault,
        seed: int | None = None,
        rate: float = 0.1,
        kinds: Iterable[FaultKind] = ("before_commit", "after_commit", "drop_connection"),
    ) -> None:
        for fault in faults:
            _check_fault(fault)
        super().__init__(store.options)
        self.store: Store = store
        self._guard = store._guard  # whether it is open is one question for both
        self._schedule = FaultSchedule(faults, seed=seed, rate=rate, kinds=kinds)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name in Store.__annotations__:
                return _FaultyRepository(self, name, getattr(self.store, name))
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def calls(self) -> tuple[str, ...]:
        """Every call that came by, in order."""
        return tuple(self._schedule.calls)

    @property
    def fired(self) -> tuple[FiredFault, ...]:
        """The faults that happened, in order. A test that is about one looks here whether it did."""
        return tuple(self._schedule.fired)

    @property
    def url(self) -> str:
        """The address of the store under it."""
        return self.store.url

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store under it."""
        return self.store.capabilities

    async def now(self) -> datetime:
        """Returns the current instant of the store under it."""
        return await self._make("now", lambda on: on.now())

    async def migrate(self) -> None:
        """Migrates the store under it."""
        await self._make("migrate", lambda on: on.migrate())

    async def check_schema(self) -> None:
        """Checks the schema of the store under it."""
        await self._make("check_schema", lambda on: on.check_schema())

    async def statistics(self, *, exact: bool = False) -> Statistics:
        """Returns figures of the store under it."""
        return await self._make("statistics", lambda on: on.statistics(exact=exact))

    async def _make(self, call: str, run: Callable[[Any], Awaitable[T]]) -> T:
        """Makes a call, `run(store)`, under its name, with what is to befall it."""
        return await _befallen(
            self._next_fault(call), call, lambda: run(self.store), lambda: self._make_unconnected(call, run)
        )

    def _next_fault(self, call: str) -> Fault | None:
        """Notes a call, and returns what is to befall it."""
        return self._schedule.next_fault(call)

    async def _make_unconnected(self, call: str, run: Callable[[Any], Awaitable[T]]) -> T:
        """Makes a call in a transaction whose connection is gone, where there are both."""
        if self.capabilities.caller_sql and call.partition(".")[0] in _IN_UNITS_OF_WORK:
            async with self.store.begin() as uow:
                await _drop_connection(uow)
                await run(uow)
        raise StoreUnavailable(reason=f"injected fault at {call}: the connection failed")

    async def _open(self) -> None:
        await self.store._open()

    async def _close(self) -> None:
        await self.store._close()

    def _listener(self, topic: HintTopic) -> HintListener:
        return self.store._listener(topic)

    def _unit_of_work(self, isolation: Isolation | None, read_only: bool) -> UnitOfWork:
        return _FaultyUnitOfWork(self, self.store._unit_of_work(isolation, read_only))

    def _enlist(self, session_or_connection: Any) -> AbstractAsyncContextManager[UnitOfWork]:
        enlisted = self.store._enlist(session_or_connection)
        return _FaultyUnitOfWork(self, enlisted) if isinstance(enlisted, UnitOfWork) else enlisted


class _FaultyUnitOfWork(UnitOfWork):
    """A unit of work around another one."""

    def __init__(self, plan: FaultPlan, uow: UnitOfWork) -> None:
        super().__init__(uow._limits, read_only=uow._guard.read_only)
        self._guard = uow._guard
        self._plan = plan
        self._uow = uow
        self._is_open = False
        self._is_broken = False  # where there is no connection that could be

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name in UnitOfWork.__annotations__:
                return _FaultyRepository(self, name, getattr(self._uow, name))
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def _make(self, call: str, run: Callable[[Any], Awaitable[T]]) -> T:
        """Makes a call, `run(uow)`, under its name, with what is to befall it."""
        self._check_connected()
        return await _befallen(
            self._plan._next_fault(call), call, lambda: run(self._uow), lambda: self._make_unconnected(run)
        )

    async def _make_unconnected(self, run: Callable[[Any], Awaitable[T]]) -> T:
        await self._drop()
        self._check_connected()
        return await run(self._uow)

    async def _drop(self) -> None:
        if self._plan.capabilities.caller_sql:
            await _drop_connection(self._uow)
        else:
            self._is_broken = True

    def _check_connected(self) -> None:
        if self._is_broken:
            raise StoreUnavailable(reason="injected fault: the connection failed")

    async def _begin(self) -> None:
        async def begin_and_drop() -> None:
            await self._begin_inner()
            await self._drop()
            raise StoreUnavailable(reason="injected fault at begin: the connection failed")

        try:
            await _befallen(self._plan._next_fault("begin"), "begin", self._begin_inner, begin_and_drop)
        except BaseException:
            await self._end()
            raise

    async def _begin_inner(self) -> None:
        if self._idle_limit is None:
            await self._uow._begin()
        else:
            await self._uow._begin_limited(self._idle_limit)
        self._is_open = True

    async def _commit(self) -> None:
        async def commit() -> None:
            self._is_open = False
            await self._uow._commit()

        async def drop_and_commit() -> None:
            await self._drop()
            self._check_connected()
            await commit()

        try:
            self._check_connected()
            await _befallen(self._plan._next_fault("commit"), "commit", commit, drop_and_commit)
        finally:
            await self._end()

    async def _rollback(self) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._uow._rollback()

    async def _lock(self, name: LockName, shared: bool, patience: Patience) -> bool:
        return await self._make("lock", lambda on: on._lock(name, shared, patience))

    async def _begin_limited(self, idle_limit: timedelta) -> None:
        await self._begin()

    async def _limit_idle(self, duration: timedelta) -> None:
        await self._make("limit_idle", lambda on: on._limit_idle(duration))

    async def _set_savepoint(self) -> object:
        return await self._make("savepoint", lambda on: on._set_savepoint())

    async def _release_savepoint(self, mark: Any) -> None:
        self._check_connected()
        await self._uow._release_savepoint(mark)

    async def _rollback_to_savepoint(self, mark: Any) -> None:
        await self._uow._rollback_to_savepoint(mark)

    def _sql_connection(self) -> Any:
        return self._uow._sql_connection()

    def _sql_session(self, **options: Any) -> Any:
        return self._uow._sql_session(**options)


class _Owner(Protocol):
    """Who has repositories: the store or a unit of work."""

    async def _make(self, call: str, run: Callable[[Any], Awaitable[T]]) -> T: ...


class _FaultyRepository:
    """A repository around another one: each of its public calls goes through `_make` of its owner."""

    def __init__(self, owner: _Owner, name: str, repository: Any) -> None:
        self._owner = owner
        self._name = name
        self._repository = repository

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._repository, name)
        if name.startswith("_") or not callable(member):
            return member
        call = _CALLED.get((self._name, name), f"{self._name}.{name}")
        if iscoroutinefunction(member):
            return self._call(call, name)
        if isasyncgenfunction(member):
            return self._iteration(call, member)
        return self._block(call, member)

    def _call(self, call: str, name: str) -> Callable[..., Awaitable[Any]]:
        async def made(*args: Any, **options: Any) -> Any:
            return await self._owner._make(call, lambda on: getattr(getattr(on, self._name), name)(*args, **options))

        return made

    def _iteration(self, call: str, member: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def iterated(*args: Any, **options: Any) -> AsyncIterator[Any]:
            await self._owner._make(call, _nothing)
            async for item in member(*args, **options):
                yield item

        return iterated

    def _block(self, call: str, member: Callable[..., Any]) -> Callable[..., Any]:
        @asynccontextmanager
        async def entered(block: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
            await self._owner._make(call, _nothing)
            async with block as value:
                yield value

        def made(*args: Any, **options: Any) -> Any:
            result = member(*args, **options)
            return entered(result) if isinstance(result, AbstractAsyncContextManager) else result

        return made


def _check_fault(fault: Fault) -> None:
    """Refuses a fault that can befall no call: a test with a misspelt name would be green for ever."""
    name = check_kind(fault, Fault, "faults").call
    if not any(map(fault.matches, _call_names())):
        raise InvalidArgument(argument="faults", reason=f"no call has the name {name!r}")


@cache
def _call_names() -> frozenset[str]:
    repositories = {**get_type_hints(Store), **get_type_hints(UnitOfWork)}
    return _BARE_CALLS.union(
        _CALLED.get((repository, name), f"{repository}.{name}")
        for repository in {*Store.__annotations__, *UnitOfWork.__annotations__}
        for name in dir(repositories[repository])
        if not name.startswith("_")
    )


async def _befallen(
    fault: Fault | None,
    call: str,
    run: Callable[[], Awaitable[T]],
    run_unconnected: Callable[[], Awaitable[T]],
) -> T:
    """Returns what `run` returns, if the fault lets it."""
    if fault is None:
        return await run()
    if fault.kind == "delay":
        await (asyncio.sleep(fault.duration.total_seconds()) if fault.wait is None else fault.wait())
        return await run()
    if fault.kind == "before_commit":
        raise fault.made_error(call)
    if fault.kind == "after_commit":
        await run()
        raise fault.made_error(call)
    try:
        return await run_unconnected()
    except StoreUnavailable as error:
        if fault.error is None:
            raise
        raise fault.made_error(call) from error


async def _nothing(on: object) -> None:
    """What befalls the beginning of an iteration or a block."""


async def _drop_connection(uow: UnitOfWork) -> None:
    """Breaks the connection of a unit of work beneath everybody who uses it."""
    raw = await uow._sql_connection().get_raw_connection()
    driver: Any = raw.driver_connection
    driver.terminate()
