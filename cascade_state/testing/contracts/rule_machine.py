"""A Hypothesis rule machine that does the same to two stores and compares everything they answer.

Subclass it with `open_stores`, and run its `TestCase`:

    class SideBySide(SideBySideMachine):
        def open_stores(self, clock):
            return open_store("memory://", clock=clock, max_attempts=3), MyStore(clock=clock, max_attempts=3)

    TestSideBySide = SideBySide.TestCase

Both stores must be empty and take their time from `clock`. Whatever Hypothesis chooses goes to both: flows have the same ids,
timers come from idempotency keys, events bring their ids. Results and errors must be equal, tokens and feed positions apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from cascade_state.abc import Store, UnitOfWork
from cascade_state.errors import CascadeStateError, InvalidTransition
from cascade_state.model.correlations import DeadLetter
from cascade_state.model.events import NewEvent
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.comparing import comparable

__all__ = ["SideBySideMachine"]

T = TypeVar("T")
Target: TypeAlias = Store | UnitOfWork
Operation: TypeAlias = Callable[[Any, int], Awaitable[T]]
Pair: TypeAlias = tuple[T, T]

_LEASE = timedelta(seconds=30)
_PATIENCE = 30.0  # seconds of real time for one operation on both stores

_NUMBERS = st.integers(0, 30)  # which of the things made so far, modulo how many there are
_FLOW_IDS = st.sampled_from(["order", "invoice"])
_STEPS = st.sampled_from(["charge", "ship"])
_KEYS = st.sampled_from(["parcel-1", "parcel-2"])
_BUSINESS_KEYS = st.sampled_from([None, "order-1", "order-2"])
_HOLDERS = st.sampled_from(["worker-1", "worker-2"])
_SECONDS = st.sampled_from([0, 1, 30, 31, 3600]).map(lambda seconds: timedelta(seconds=seconds))
_EXPIRIES = st.sampled_from([None, 0, 10, 40]).map(lambda value: None if value is None else timedelta(seconds=value))
_LIMITS = st.sampled_from([1, 2, 100])
_DOCUMENTS = st.sampled_from([None, {}, {"n": 1}, [1.0, -0.0, True, None], "é💣"])

# Transitions by name; the second value is drawn with them.
_TRANSITIONS: dict[str, Callable[[FlowInstance, Any], FlowInstance]] = {
    "start": lambda flow, value: flow.start(),
    "complete_step": lambda flow, value: flow.complete_step("charge", {"value": value}),
    "fail_step": lambda flow, value: flow.fail_step("ship", [value]),
    "sleep": lambda flow, value: flow.suspend_for_timer("charge", after=timedelta(seconds=value)),
    "wait": lambda flow, value: flow.suspend_for_event("ship", f"parcel-{value % 2 + 1}"),
    "wait too": lambda flow, value: flow.suspend_for_event("charge", f"parcel-{value % 2 + 1}"),
    "resume": lambda flow, value: flow.resume(),
    "resume one": lambda flow, value: flow.resume("ship"),
    "complete": lambda flow, value: flow.complete(),
    "fail": lambda flow, value: flow.fail({"value": value}),
    "cancel": lambda flow, value: flow.cancel(),
}
_STEPS_TAKEN = st.lists(st.tuples(st.sampled_from(sorted(_TRANSITIONS)), st.sampled_from([0, 1, 31])), max_size=4)


class SideBySideMachine(RuleBasedStateMachine):
    """Drives two stores side by side under one clock."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FrozenClock()
        self.flows: list[Pair[FlowInstance]] = []  # as returned; older versions stay, to be stale
        self.definitions: list[FlowDefinition] = []
        self.timers: list[UUID] = []
        self.held: dict[str, list[Pair[Any]]] = {"flow_instances": [], "timers": [], "correlations": []}
        self.units: Pair[UnitOfWork] | None = None
        self._runner = asyncio.Runner()
        self._scope = AsyncExitStack()
        self._unit_scope = AsyncExitStack()
        self.stores: Pair[Store] = self._run(self._entered())

    def open_stores(self, clock: FrozenClock) -> Pair[AbstractAsyncContextManager[Store]]:
        """Returns the two stores, to be entered: both empty, both with this clock and `max_attempts=3`."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Compares the stores one last time and closes them."""
        try:
            if self.units is not None:
                self._run(self._leave(commit=True))
            self._compare_all()
        finally:
            self._run(self._close())
            self._runner.close()

    async def _entered(self) -> Pair[Store]:
        one, another = self.open_stores(self.clock)
        return await self._scope.enter_async_context(one), await self._scope.enter_async_context(another)

    async def _close(self) -> None:
        await self._unit_scope.aclose()
        await self._scope.aclose()

    # Doing the same to both

    def _run(self, work: Awaitable[T]) -> T:
        async def within() -> T:
            async with asyncio.timeout(_PATIENCE):
                return await work

        return self._runner.run(within())

    def both(self, operation: Operation[T], *, outside: bool = False) -> Pair[T] | None:
        """Does `operation(target, side)` to both; returns both results, or None when both raised the same error.

        Args:
            outside: On the stores themselves, even while a unit of work is open.
        """
        targets = self.stores if self.units is None or outside else self.units
        outcomes = [self._run(_outcome(operation, target, side)) for side, target in enumerate(targets)]
        one, another = outcomes
        assert comparable(one) == comparable(another)
        if isinstance(one, BaseException) or isinstance(another, BaseException):
            return None
        return one, another

    def _flow(self, number: int) -> Pair[FlowInstance]:
        return self.flows[number % len(self.flows)]

    def _flow_id(self, number: int) -> UUID:
        return self._flow(number)[0].flow_instance_id

    def _remember(self, results: Pair[FlowInstance] | None) -> None:
        if results is not None:
            self.flows.append(results)

    def _remember_held(self, repository: str, results: Pair[Sequence[Any]] | None) -> None:
        if results is not None:
            self.held[repository].extend(zip(*results, strict=True))

    def _some_held(self, repository: str, numbers: Iterable[int]) -> list[Pair[Any]]:
        held = self.held[repository]
        return [held[number % len(held)] for number in dict.fromkeys(numbers)] if held else []

    # Time and transactions

    @rule(duration=_SECONDS)
    def time_passes(self, duration: timedelta) -> None:
        self.clock.advance(duration)

    @precondition(lambda self: self.units is None)
    @rule()
    def begin(self) -> None:
        async def enter() -> Pair[UnitOfWork]:
            one, another = (store.begin() for store in self.stores)
            return await self._unit_scope.enter_async_context(one), await self._unit_scope.enter_async_context(another)

        self.units = self._run(enter())

    @precondition(lambda self: self.units is not None)
    @rule(commit=st.booleans())
    def end(self, commit: bool) -> None:
        self._run(self._leave(commit=commit))

    async def _leave(self, *, commit: bool) -> None:
        assert self.units is not None
        if not commit:
            for uow in self.units:
                await uow.rollback()
        await self._unit_scope.aclose()
        self.units = None

    # Definitions

    @rule(flow_id=_FLOW_IDS, name=st.sampled_from("AB"))
    def deploy(self, flow_id: str, name: str) -> None:
        definition = factories.flow_definition(flow_id, name=name)
        deployed = self.both(lambda on, side: on.flow_definitions.deploy(definition))
        if deployed is not None:
            self.definitions.append(deployed[0])

    @rule(flow_id=_FLOW_IDS, version=st.sampled_from([None, 1, 2]), force=st.booleans())
    def undeploy(self, flow_id: str, version: int | None, force: bool) -> None:
        self.both(lambda on, side: on.flow_definitions.undeploy(flow_id, version, force=force))

    # Flows

    @precondition(lambda self: self.definitions)
    @rule(number=_NUMBERS, business_key=_BUSINESS_KEYS, steps=_STEPS_TAKEN, document=_DOCUMENTS)
    def add(self, number: int, business_key: str | None, steps: list[tuple[str, int]], document: Any) -> None:
        definition = self.definitions[-1 - number % len(self.definitions)]
        flow = factories.flow_instance(definition, business_key=business_key, trigger_data=document)
        flow = _stepped(flow.start(), steps)
        self._remember(self.both(lambda on, side: on.flow_instances.add(flow)))

    @precondition(lambda self: self.definitions)
    @rule(keys=st.lists(_BUSINESS_KEYS, max_size=3))
    def add_many(self, keys: list[str | None]) -> None:
        flows = [factories.flow_instance(self.definitions[-1], business_key=key) for key in keys]
        results = self.both(lambda on, side: on.flow_instances.add_many(flows))
        assert results is not None
        for one, another in zip(*results, strict=True):
            if one.instance is not None and another.instance is not None:
                self.flows.append((one.instance, another.instance))

    @precondition(lambda self: self.flows)
    @rule(
        number=_NUMBERS,
        steps=_STEPS_TAKEN,
        states=st.dictionaries(_STEPS, _DOCUMENTS),
        removed=st.lists(_STEPS, max_size=1),
        timers=st.lists(_NUMBERS, max_size=1),
        deliveries=st.lists(_NUMBERS, max_size=1),
        under_lease=st.booleans(),
    )
    def advance(
        self,
        number: int,
        steps: list[tuple[str, int]],
        states: dict[str, Any],
        removed: list[str],
        timers: list[int],
        deliveries: list[int],
        under_lease: bool,
    ) -> None:
        pair = self._flow(-1 - number)
        # One step for both: a timer that is made in it has one id.
        flow = _stepped(pair[0], steps)
        completes = [*self._some_held("timers", timers), *self._some_held("correlations", deliveries)]
        extras = {
            "put_states": {step: state for step, state in states.items() if step not in removed},
            "remove_states": removed,
            "events": [NewEvent("noted", {"steps": len(steps)})],
        }
        self._remember(
            self.both(
                lambda on, side: on.advance(
                    flow,
                    lease=pair[side].lease if under_lease else None,
                    completes=[item[side] for item in completes],
                    **extras,
                )
            )
        )

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS)
    def read_again(self, number: int) -> None:
        self._remember(self.both(lambda on, side: on.flow_instances.get(self._flow_id(number))))

    @precondition(lambda self: self.flows and self.definitions)
    @rule(number=_NUMBERS)
    def add_child(self, number: int) -> None:
        child = self._flow(number)[0].child(self.definitions[-1]).start()
        self._remember(self.both(lambda on, side: on.advance(child)))

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS)
    def remove(self, number: int) -> None:
        self.both(lambda on, side: on.flow_instances.remove(self._flow_id(number)))

    @rule(limit=_LIMITS, dry_run=st.booleans())
    def purge(self, limit: int, dry_run: bool) -> None:
        now = self.clock.now()
        self.both(lambda on, side: on.flow_instances.purge(now, limit=limit, dry_run=dry_run))

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS)
    def move(self, number: int) -> None:
        """Exports a flow, removes it and its descendants, and imports it again."""
        documents = self.both(lambda on, side: on.flow_instances.export(self._flow_id(number)))
        if documents is None:
            return
        for flow in documents[0]["flows"]:
            identity = UUID(flow["instance"]["flow_instance_id"])
            self.both(lambda on, side, identity=identity: on.flow_instances.remove(identity))  # type: ignore[misc]
        self._remember(self.both(lambda on, side: on.flow_instances.import_(documents[1 - side])))

    # Component states

    @precondition(lambda self: self.flows)
    @rule(
        number=_NUMBERS,
        step_id=_STEPS,
        state=_DOCUMENTS,
        expected_version=st.sampled_from([None, 0, 1, 2]),
        expires=_EXPIRIES,
    )
    def put(
        self, number: int, step_id: str, state: Any, expected_version: int | None, expires: timedelta | None
    ) -> None:
        expires_at = None if expires is None else self.clock.now() + expires
        identity = self._flow_id(number)
        self.both(
            lambda on, side: on.component_states.put(
                identity, step_id, state, expected_version=expected_version, expires_at=expires_at
            )
        )

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS, step_id=_STEPS)
    def remove_state(self, number: int, step_id: str) -> None:
        self.both(lambda on, side: on.component_states.remove(self._flow_id(number), step_id))

    # Timers

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS, step_id=_STEPS, after=_SECONDS, key=st.sampled_from("xyz"), attempts=st.sampled_from([None, 1]))
    def schedule(self, number: int, step_id: str, after: timedelta, key: str, attempts: int | None) -> None:
        identity = self._flow_id(number)
        timers = self.both(
            lambda on, side: on.timers.schedule(
                identity, step_id, after=after, idempotency_key=key, payload={"key": key}, max_attempts=attempts
            )
        )
        if timers is not None:
            self.timers.append(timers[0].timer_id)

    @precondition(lambda self: self.timers)
    @rule(number=_NUMBERS, what=st.sampled_from(["cancel", "reschedule", "revive", "get"]), after=_SECONDS)
    def touch_timer(self, number: int, what: str, after: timedelta) -> None:
        timer_id = self.timers[number % len(self.timers)]
        options = [self.clock.now() + after] if what == "reschedule" else []
        self.both(lambda on, side: getattr(on.timers, what)(timer_id, *options))

    # Correlations

    @rule(
        key=_KEYS,
        mode=st.sampled_from(["first", "fifo", "broadcast"]),
        event_id=st.sampled_from(["e1", "e2", "e3", "e4"]),
        payload=_DOCUMENTS,
        expires=_EXPIRIES,
    )
    def publish(self, key: str, mode: Any, event_id: str, payload: Any, expires: timedelta | None) -> None:
        expires_at = None if expires is None else self.clock.now() + expires
        self.both(
            lambda on, side: on.correlations.publish(key, payload, event_id=event_id, mode=mode, expires_at=expires_at)
        )

    @rule()
    def republish(self) -> None:
        letters = self.both(lambda on, side: on.correlations.list_dead_letters())
        assert letters is not None
        letter: DeadLetter | None = next((letter for letter in letters[0] if letter.event_id is not None), None)
        if letter is not None:
            self.both(lambda on, side: on.correlations.republish(letter))

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS, step_id=_STEPS)
    def cancel_wait(self, number: int, step_id: str) -> None:
        self.both(lambda on, side: on.correlations.cancel(self._flow_id(number), step_id))

    # Leases

    @rule(holder=_HOLDERS, limit=_LIMITS)
    def claim_due(self, holder: str, limit: int) -> None:
        claimed = self.both(lambda on, side: on.timers.claim_due(holder, limit=limit, lease_duration=_LEASE))
        self._remember_held("timers", claimed)

    @rule(holder=_HOLDERS, limit=_LIMITS)
    def claim_delivered(self, holder: str, limit: int) -> None:
        claimed = self.both(lambda on, side: on.correlations.claim_delivered(holder, limit=limit, lease_duration=_LEASE))
        self._remember_held("correlations", claimed)

    @rule(holder=_HOLDERS, limit=_LIMITS)
    def claim_flows(self, holder: str, limit: int) -> None:
        claimed = self.both(lambda on, side: on.flow_instances.claim(holder, limit=limit, lease_duration=_LEASE))
        self._remember_held("flow_instances", claimed)
        if claimed is not None:
            self.flows.extend(zip(*claimed, strict=True))

    @rule(
        repository=st.sampled_from(["flow_instances", "timers", "correlations"]),
        what=st.sampled_from(["renew", "release", "complete"]),
        numbers=st.lists(_NUMBERS, min_size=1, max_size=3),
    )
    def use_leases(self, repository: str, what: str, numbers: list[int]) -> None:
        items = self._some_held(repository, numbers)
        if what == "complete" and repository == "flow_instances":
            return
        options = [_LEASE] if what == "renew" else []
        renewed = self.both(
            lambda on, side: getattr(getattr(on, repository), what)([item[side] for item in items], *options)
        )
        if what == "renew":
            self._remember_held(repository, renewed)

    @rule(
        repository=st.sampled_from(["timers", "correlations"]),
        gives_up=st.booleans(),
        number=_NUMBERS,
        after=_SECONDS,
    )
    def fail_work(self, repository: str, gives_up: bool, number: int, after: timedelta) -> None:
        for item in self._some_held(repository, [number]):
            if gives_up:
                self.both(lambda on, side, item=item: getattr(on, repository).give_up(item[side], reason="enough"))  # type: ignore[misc]
            else:
                self.both(
                    lambda on, side, item=item: getattr(on, repository).retry(item[side], after=after, error="late")  # type: ignore[misc]
                )

    # Looking

    @rule(status=st.sampled_from([None, *FlowStatus]), flow_id=st.none() | _FLOW_IDS, prefix=st.sampled_from([None, "order"]))
    def list_flows(self, status: FlowStatus | None, flow_id: str | None, prefix: str | None) -> None:
        chosen = FlowInstanceFilter(
            statuses=None if status is None else [status], flow_id=flow_id, business_key_prefix=prefix
        )
        self.both(lambda on, side: on.flow_instances.list_page(chosen, limit=2))
        self.both(lambda on, side: on.flow_instances.count(chosen))

    @rule(outside=st.booleans())
    def look_around(self, outside: bool) -> None:
        self._compare_all(outside=outside)

    def _compare_all(self, *, outside: bool = False) -> None:
        def same(operation: Operation[Any]) -> None:
            self.both(operation, outside=outside)

        same(lambda on, side: on.flow_instances.list_page(limit=1000))
        same(lambda on, side: on.flow_definitions.list_latest())
        same(lambda on, side: on.correlations.list_dead_letters())
        same(lambda on, side: on.timers.list_dead())
        same(lambda on, side: on.timers.next_due_at())
        for key in ("parcel-1", "parcel-2"):
            same(lambda on, side, key=key: on.correlations.list_waiting(key))  # type: ignore[misc]
            same(lambda on, side, key=key: on.flow_instances.find_by_correlation(key))  # type: ignore[misc]
        for flow_id in ("order", "invoice"):
            same(lambda on, side, flow_id=flow_id: on.flow_definitions.list_versions(flow_id))  # type: ignore[misc]
        for identity in dict.fromkeys(flow.flow_instance_id for flow, _ in self.flows):
            same(lambda on, side, identity=identity: on.timers.list_for_instance(identity))  # type: ignore[misc]
            same(lambda on, side, identity=identity: on.component_states.list_for_instance(identity))  # type: ignore[misc]
            same(lambda on, side, identity=identity: on.flow_instances.history(identity))  # type: ignore[misc]
        if self.units is None:
            same(lambda on, side: on.statistics())


async def _outcome(operation: Operation[Any], target: Target, side: int) -> Any:
    try:
        return await operation(target, side)
    except CascadeStateError as error:
        return error


def _stepped(flow: FlowInstance, steps: Iterable[tuple[str, int]]) -> FlowInstance:
    """Returns the flow after those of the steps that its status allows."""
    for name, value in steps:
        with suppress(InvalidTransition):
            flow = _TRANSITIONS[name](flow, value)
    return flow
