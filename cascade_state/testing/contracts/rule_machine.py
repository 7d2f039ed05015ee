"""A Hypothesis rule machine that does the same to two stores and compares everything they answer.

Subclass it with `open_stores`, and run its `TestCase`:

    class SideBySide(SideBySideMachine):
        def open_stores(self, clock):
            return open_store("memory://", clock=clock, max_attempts=3), MyStore(clock=clock, max_attempts=3)

    TestSideBySide = SideBySide.TestCase

Both stores must be empty and take their time from `clock`. Whatever Hypothesis chooses goes to both: flows have the
same ids, timers come from idempotency keys, events bring their ids. Results and errors must be equal, tokens and feed
positions apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from cascade_state.errors import InvalidTransition
from cascade_state.model.events import NewEvent
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.testing import factories
from cascade_state.testing.contracts.feed_rules import FeedRules
from cascade_state.testing.contracts.lease_rules import LeaseRules
from cascade_state.testing.contracts.replica_set_rules import ReplicaSetRules
from cascade_state.testing.contracts.side_by_side import Operation, Target

__all__ = ["SideBySideMachine"]

_NUMBERS = st.integers(0, 30)  # which of the things made so far, modulo how many there are
_FLOW_IDS = st.sampled_from(["order", "invoice"])
_STEPS = st.sampled_from(["charge", "ship"])
_KEYS = st.sampled_from(["parcel-1", "parcel-2"])
_BUSINESS_KEYS = st.sampled_from([None, "order-1", "order-2"])
_SECONDS = st.sampled_from([0, 1, 30, 31, 3600]).map(lambda seconds: timedelta(seconds=seconds))
_EXPIRIES = st.sampled_from([None, 0, 10, 40]).map(lambda value: None if value is None else timedelta(seconds=value))
_LIMITS = st.sampled_from([1, 2, 100])
_NESTED = 2  # savepoints at a time
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


class SideBySideMachine(FeedRules, LeaseRules, ReplicaSetRules):
    """Drives two stores side by side under one clock."""

    # Time and transactions

    @initialize(keys=st.lists(_KEYS, min_size=1, max_size=3))
    def begin_with_some_flows(self, keys: list[str]) -> None:
        """Most operations do nothing to an empty store."""
        for flow_id in ("order", "invoice"):
            self.change_definitions(flow_id, "A", "deploy", None)
        for key in keys:
            waiting = factories.running_flow(self.definitions[0]).suspend_for_event("ship", key)
            self.remember(self.both(lambda on, side, waiting=waiting: on.advance(waiting)))  # type: ignore[misc]

    @rule(duration=_SECONDS)
    def time_passes(self, duration: timedelta) -> None:
        self.clock.advance(duration)

    @precondition(lambda self: self.units is None)
    @rule()
    def begin(self) -> None:
        self.run(self.enter())

    @precondition(lambda self: self.units is not None)
    @rule(commit=st.sampled_from([True, True, False]))
    def end(self, commit: bool) -> None:
        self.run(self.leave(commit=commit))

    @precondition(lambda self: self.units is not None and len(self.savepoints) < _NESTED)
    @rule()
    def set_savepoint(self) -> None:
        self.run(self.enter_savepoints())

    @precondition(lambda self: self.savepoints)
    @rule(keep=st.booleans())
    def end_savepoint(self, keep: bool) -> None:
        self.run(self.leave_savepoints(keep=keep))

    # Definitions

    @rule(
        flow_id=_FLOW_IDS,
        name=st.sampled_from("AB"),
        what=st.sampled_from(["deploy", "deploy", "deploy", "undeploy", "force"]),
        version=st.sampled_from([None, 1, 2]),
    )
    def change_definitions(self, flow_id: str, name: str, what: str, version: int | None) -> None:
        if what != "deploy":
            self.both(lambda on, side: on.flow_definitions.undeploy(flow_id, version, force=what == "force"))
            return
        definition = factories.flow_definition(flow_id, name=name)
        deployed = self.both(lambda on, side: on.flow_definitions.deploy(definition))
        assert deployed is not None
        self.definitions.append(deployed[0])

    # Flows

    @rule(number=_NUMBERS, business_key=_BUSINESS_KEYS, steps=_STEPS_TAKEN, document=_DOCUMENTS, is_child=st.booleans())
    def add(
        self, number: int, business_key: str | None, steps: list[tuple[str, int]], document: Any, is_child: bool
    ) -> None:
        definition = self.definitions[-1 - number % 2]
        make = self.flow(number)[0].child if is_child and self.flows else partial(FlowInstance.create)
        flow = _stepped(make(definition, business_key=business_key, trigger_data=document).start(), steps)
        self.remember(self.both(lambda on, side: on.flow_instances.add(flow)))

    @rule(keys=st.lists(_BUSINESS_KEYS, max_size=3))
    def add_many(self, keys: list[str | None]) -> None:
        flows = [factories.flow_instance(self.definitions[-1], business_key=key) for key in keys]
        results = self.both(lambda on, side: on.flow_instances.add_many(flows))
        assert results is not None
        for one, another in zip(*results, strict=True):
            if one.instance is not None:
                self.remember((one.instance, another.instance))

    @precondition(lambda self: self.flows)
    @rule(
        number=_NUMBERS,
        steps=_STEPS_TAKEN,
        states=st.dictionaries(_STEPS, _DOCUMENTS),
        removed=st.lists(_STEPS, max_size=1),
        numbers=st.lists(_NUMBERS, max_size=1),
        under_lease=st.booleans(),
        is_stale=st.sampled_from([False] * 7 + [True]),
    )
    def advance(
        self,
        number: int,
        steps: list[tuple[str, int]],
        states: dict[str, Any],
        removed: list[str],
        numbers: list[int],
        under_lease: bool,
        is_stale: bool,
    ) -> None:
        pair = self.stale[number % len(self.stale)] if is_stale and self.stale else self.flow(number)
        flow = _stepped(pair[0], steps)  # one step for both: a timer that is made in it has one id
        completes = [*self.some_held("timers", numbers), *self.some_held("correlations", numbers)]
        extras = {
            "put_states": {step: state for step, state in states.items() if step not in removed},
            "remove_states": removed,
            "events": [NewEvent("noted", {"steps": len(steps)})],
        }
        self.remember(
            self.both(
                lambda on, side: on.advance(
                    flow,
                    lease=pair[side].lease if under_lease else None,
                    completes=[item[side] for item in completes],
                    **extras,
                )
            )
        )

    @precondition(lambda self: self.held["timers"] or self.held["correlations"])
    @rule(
        repository=st.sampled_from(["timers", "correlations"]),
        number=_NUMBERS,
        ends=st.booleans(),
    )
    def work_off(self, repository: str, number: int, ends: bool) -> None:
        """What a worker does: reads the flow of what it claimed, and advances it."""
        for item in self.some_held(repository, [number % 2]):
            flows = self.both(lambda on, side: on.flow_instances.get(item[0].flow_instance_id))  # noqa: B023 - called at once
            if flows is not None:
                flow = _stepped(flows[0], [("resume", 0), ("complete_step", 0), ("complete" if ends else "wait", 0)])
                self.remember(self.both(lambda on, side: on.advance(flow, completes=[item[side]])))  # noqa: B023 - as above

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS)
    def read_again(self, number: int) -> None:
        self.remember(self.both(lambda on, side: on.flow_instances.get(self.flow_id(number))))

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS, what=st.sampled_from(["remove", "purge", "dry purge", "move", "move"]), limit=_LIMITS)
    def remove(self, number: int, what: str, limit: int) -> None:
        identity, now = self.flow_id(number), self.clock.now()
        if what == "remove":
            self.both(lambda on, side: on.flow_instances.remove(identity))
        elif what == "move":
            self._move(identity)
        else:
            self.both(lambda on, side: on.flow_instances.purge(now, limit=limit, dry_run=what == "dry purge"))

    def _move(self, identity: UUID) -> None:
        """Exports a flow, removes it and its descendants, and imports what the other store has exported."""
        documents = self.both(lambda on, side: _exported(on, identity))
        if documents is None:
            return
        for flow in documents[0]["flows"]:
            exported = UUID(flow["instance"]["flow_instance_id"])
            self.both(lambda on, side, exported=exported: on.flow_instances.remove(exported))  # type: ignore[misc]
        self.remember(self.both(lambda on, side: on.flow_instances.import_(documents[1 - side])))

    # Component states

    @precondition(lambda self: self.flows)
    @rule(
        number=_NUMBERS,
        step_id=_STEPS,
        state=_DOCUMENTS,
        expected_version=st.sampled_from([None, 0, 1, 2]),
        expires=_EXPIRIES,
        removes=st.sampled_from([False, False, False, True]),
    )
    def put(
        self,
        number: int,
        step_id: str,
        state: Any,
        expected_version: int | None,
        expires: timedelta | None,
        removes: bool,
    ) -> None:
        expires_at = None if expires is None else self.clock.now() + expires
        key = (self.flow_id(number), step_id)
        if removes:
            self.both(lambda on, side: on.component_states.remove(*key))
            return
        options = {"expected_version": expected_version, "expires_at": expires_at}
        self.both(lambda on, side: on.component_states.put(*key, state, **options))

    # Timers

    @precondition(lambda self: self.flows)
    @rule(
        number=_NUMBERS, step_id=_STEPS, after=_SECONDS, key=st.sampled_from("xyz"), attempts=st.sampled_from([None, 1])
    )
    def schedule(self, number: int, step_id: str, after: timedelta, key: str, attempts: int | None) -> None:
        identity = self.flow_id(number)
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
        event_id=st.sampled_from(["e1", "e2", "e3", "e4", "e5", "e6"]),
        payload=_DOCUMENTS,
        expires=_EXPIRIES,
    )
    def publish(self, key: str, mode: Any, event_id: str, payload: Any, expires: timedelta | None) -> None:
        expires_at = None if expires is None else self.clock.now() + expires
        self.both(
            lambda on, side: on.correlations.publish(key, payload, event_id=event_id, mode=mode, expires_at=expires_at)
        )

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS, key=_KEYS, step_id=_STEPS, expires=_EXPIRIES)
    def wait(self, number: int, key: str, step_id: str, expires: timedelta | None) -> None:
        expires_at = None if expires is None else self.clock.now() + expires
        flow = self.flow(number)[0]
        with suppress(InvalidTransition):
            waiting = flow.suspend_for_event(step_id, key, expires_at=expires_at)
            self.remember(self.both(lambda on, side: on.advance(waiting)))

    @precondition(lambda self: self.flows)
    @rule(number=_NUMBERS, step_id=_STEPS, republishes=st.booleans())
    def tidy_up(self, number: int, step_id: str, republishes: bool) -> None:
        if not republishes:
            self.both(lambda on, side: on.correlations.cancel(self.flow_id(number), step_id))
            return
        letters = self.both(lambda on, side: on.correlations.list_dead_letters())
        assert letters is not None
        for letter in letters[0][:1]:
            self.both(lambda on, side: on.correlations.republish(letter))  # noqa: B023 - called at once

    # Looking

    @rule(
        statuses=st.none() | st.lists(st.sampled_from(FlowStatus), max_size=3),
        flow_id=st.none() | _FLOW_IDS,
        version=st.sampled_from([None, None, 1, 2]),
        prefix=st.sampled_from([None, "order"]),
        child_of=st.none() | _NUMBERS,
        ranged=st.sampled_from([None, None, "created", "updated", "completed"]),
        outside=st.booleans(),
    )
    def look_around(
        self,
        statuses: list[FlowStatus] | None,
        flow_id: str | None,
        version: int | None,
        prefix: str | None,
        child_of: int | None,
        ranged: str | None,
        outside: bool,
    ) -> None:
        ranges: dict[str, Any] = {}
        if ranged is not None:
            ranges = {f"{ranged}_from": self.clock.now() - timedelta(hours=1), f"{ranged}_to": self.clock.now()}
        chosen = FlowInstanceFilter(
            statuses=statuses,
            flow_id=flow_id,
            flow_version=version,
            business_key_prefix=prefix,
            parent_id=None if child_of is None or not self.flows else self.flow_id(child_of),
            **ranges,
        )
        self.both(lambda on, side: _page_by_page(on, chosen), outside=outside)
        self.both(lambda on, side: on.flow_instances.count(chosen), outside=outside)
        self.compare_all(outside=outside)

    def compare_all(self, *, outside: bool = False) -> None:
        looks: list[Operation[Any]] = [
            lambda on, side: on.flow_instances.list_page(limit=1000),
            lambda on, side: on.flow_definitions.list_latest(),
            lambda on, side: on.flow_definitions.list_versions("order"),
            lambda on, side: on.flow_definitions.list_versions("invoice"),
            lambda on, side: on.correlations.list_dead_letters(),
            lambda on, side: on.timers.list_dead(),
            *self.lease_looks(),
            *self.replica_set_looks(),
        ]
        for key in ("parcel-1", "parcel-2"):
            looks.append(lambda on, side, key=key: on.correlations.list_waiting(key))  # type: ignore[misc]
            looks.append(lambda on, side, key=key: on.flow_instances.find_by_correlation(key))  # type: ignore[misc]
        for identity in self.flows:
            looks.append(lambda on, side, flow=identity: on.timers.list_for_instance(flow))  # type: ignore[misc]
            looks.append(lambda on, side, flow=identity: on.component_states.list_for_instance(flow))  # type: ignore[misc]
            looks.append(lambda on, side, flow=identity: on.flow_instances.history(flow))  # type: ignore[misc]
        if self.units is None:
            looks.append(lambda on, side: on.statistics())
        self.settle()
        for look in [*looks, *self.feed_looks()]:
            self.both(look, outside=outside)


async def _page_by_page(on: Target, chosen: FlowInstanceFilter) -> list[FlowInstance]:
    found: list[FlowInstance] = []
    page = await on.flow_instances.list_page(chosen, limit=2)
    found += page.items
    while page.next_cursor is not None:
        page = await on.flow_instances.list_page(chosen, limit=2, cursor=page.next_cursor)
        found += page.items
    return found


async def _exported(target: Target, flow_instance_id: UUID) -> dict[str, Any]:
    document = await target.flow_instances.export(flow_instance_id)
    for flow in document["flows"]:
        for name in ("results", "states", "timers", "waits", "deliveries"):
            flow[name].sort(key=json.dumps)  # a document says nothing by the order of these
    return dict(document)


def _stepped(flow: FlowInstance, steps: Iterable[tuple[str, int]]) -> FlowInstance:
    """Returns the flow after those of the steps that its status allows."""
    for name, value in steps:
        with suppress(InvalidTransition):
            flow = _TRANSITIONS[name](flow, value)
    return flow
