"""Two stores under one clock: the same done to both, and everything that they answer compared."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from hypothesis.stateful import RuleBasedStateMachine

from cascade_state.abc import Store, UnitOfWork
from cascade_state.errors import CascadeStateError
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.comparing import difference

__all__ = ["Operation", "Pair", "SideBySide", "Target"]

T = TypeVar("T")
Target: TypeAlias = Store | UnitOfWork
Operation: TypeAlias = Callable[[Any, int], Awaitable[T]]
Pair: TypeAlias = tuple[T, T]

_PATIENCE = 30.0  # seconds of real time for one operation on both stores


class SideBySide(RuleBasedStateMachine):
    """What the machine knows of the two stores; its rules are in `rule_machine`."""

    def __init__(self) -> None:
        super().__init__()
        self.clock: FrozenClock = FrozenClock()
        self.flows: dict[UUID, Pair[FlowInstance]] = {}  # as last returned
        self.stale: list[Pair[FlowInstance]] = []
        self.definitions: list[FlowDefinition] = []
        self.timers: list[UUID] = []
        self.held: dict[str, list[Pair[Any]]] = {"flow_instances": [], "timers": [], "correlations": []}
        self.units: Pair[UnitOfWork] | None = None
        self._runner = asyncio.Runner()
        self._scope = AsyncExitStack()
        self.unit_scope: AsyncExitStack = AsyncExitStack()
        self.savepoints: list[Pair[AbstractAsyncContextManager[UnitOfWork]]] = []
        self.stores: Pair[Store] = self.run(self._entered())

    def open_stores(self, clock: FrozenClock) -> Pair[AbstractAsyncContextManager[Store]]:
        """Returns the two stores, to be entered: both empty, both with this clock and `max_attempts=3`."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Compares the stores one last time and closes them."""
        try:
            if self.units is not None:
                self.run(self.leave(commit=True))
            self.compare_all()
        finally:
            self.run(self._close())
            self._runner.close()

    async def _entered(self) -> Pair[Store]:
        one, another = self.open_stores(self.clock)
        return await self._scope.enter_async_context(one), await self._scope.enter_async_context(another)

    async def _close(self) -> None:
        while self.savepoints:
            await self.leave_savepoints(keep=False)
        await self.unit_scope.aclose()
        await self._scope.aclose()

    # Doing the same to both

    def run(self, work: Awaitable[T]) -> T:
        async def within() -> T:
            async with asyncio.timeout(_PATIENCE):
                return await work

        return self._runner.run(within())

    def both(self, operation: Operation[T], *, outside: bool = False) -> Pair[T] | None:
        """Does `operation(target, side)` to both; returns both results, or None when both raised the same error.

        Args:
            outside: On the stores themselves, even while a unit of work is open.
        """
        targets: Pair[Any] = self.stores if self.units is None or outside else self.units
        one, another = (self.run(_outcome(operation, target, side)) for side, target in enumerate(targets))
        found = difference(one, another)
        assert found is None, f"the stores differ at {found}"
        if isinstance(one, BaseException):
            return None
        return one, another

    def flow(self, number: int) -> Pair[FlowInstance]:
        return tuple(self.flows.values())[number % len(self.flows)]

    def flow_id(self, number: int) -> UUID:
        return self.flow(number)[0].flow_instance_id

    def remember(self, results: Pair[FlowInstance] | None) -> None:
        if results is not None:
            earlier = self.flows.get(results[0].flow_instance_id)
            if earlier is not None:
                self.stale.append(earlier)
            self.flows[results[0].flow_instance_id] = results

    def remember_held(self, repository: str, results: Pair[Sequence[Any]] | None) -> None:
        if results is not None:
            self.held[repository].extend(zip(*results, strict=True))

    def some_held(self, repository: str, numbers: Iterable[int]) -> list[Pair[Any]]:
        """Returns some of what was claimed, number 0 being the latest."""
        held = self.held[repository]
        return [held[-1 - number % len(held)] for number in dict.fromkeys(numbers)] if held else []

    # Transactions

    async def enter(self) -> None:
        """Begins a unit of work on each store."""
        one, another = (store.begin() for store in self.stores)
        self.units = (
            await self.unit_scope.enter_async_context(one),
            await self.unit_scope.enter_async_context(another),
        )

    async def leave(self, *, commit: bool) -> None:
        """Ends the units of work."""
        assert self.units is not None
        while self.savepoints:
            await self.leave_savepoints(keep=commit)
        if not commit:
            for uow in self.units:
                await uow.rollback()
        await self.unit_scope.aclose()
        self.units = None

    async def enter_savepoints(self) -> None:
        """Opens a nested scope in each unit of work."""
        assert self.units is not None
        one, another = (uow.savepoint() for uow in self.units)
        await one.__aenter__()
        await another.__aenter__()
        self.savepoints.append((one, another))

    async def leave_savepoints(self, *, keep: bool) -> None:
        """Leaves the innermost scopes, as they are left by an exception unless they are to be kept."""
        for savepoint in self.savepoints.pop():
            if keep:
                await savepoint.__aexit__(None, None, None)
            else:
                reason = _Undone()
                assert not await savepoint.__aexit__(type(reason), reason, None)

    def compare_all(self, *, outside: bool = False) -> None:
        """Compares everything that the stores show."""
        raise NotImplementedError


class _Undone(Exception):
    """What leaves a savepoint that is to be undone."""


async def _outcome(operation: Operation[Any], target: Target, side: int) -> Any:
    try:
        return await operation(target, side)
    except CascadeStateError as error:
        return error
