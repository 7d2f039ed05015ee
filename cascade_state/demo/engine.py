"""The engine: takes a claimed flow, delivery or timer, calls components, stores their answers, one commit a step.

Three entrances, one for each kind of claim:

- `drive(flow)` runs a claimed flow step by step until nothing is ready, then gives the claim back;
- `deliver(delivery)` goes on with the step that waited for an event;
- `fire(timer)` goes on with the step that waited for a timer, or for its next attempt.

The last two make one commit that leaves the flow RUNNING if there is more to do; whoever claims flows drives it
on.

Each of them is at least once: the process may die between the component's answer and the commit, and the next
holder calls the component again. The commit is exactly once: status, result, component state, acknowledgement,
child flows, published result and the application's own row are one transaction, and it is refused unless the
claim, the version and, in a replica set, the ownership of the partition are current.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

from cascade_state import (
    Delivery,
    FlowDefinition,
    FlowInstance,
    FlowStatus,
    Lease,
    LeaseLost,
    StepDefinition,
    Store,
    Timer,
    UnitOfWork,
    VersionConflict,
)
from cascade_state.demo.changes import (
    COMPLETE,
    START,
    SUSPEND_AGAIN,
    Change,
    children_key,
    failure_change,
    outcome_change,
    retry_change,
    running_if_ready,
    skip_change,
    timer_again_change,
)
from cascade_state.demo.components import (
    Call,
    Component,
    Outcome,
    PermanentFailure,
    StartChildren,
    TemporaryFailure,
)
from cascade_state.demo.definition_files import condition_holds, resolved_inputs
from cascade_state.demo.effects import Effects

__all__ = ["Engine", "Fence", "Report", "Stage"]

# What is reported: a component is about to be called under a claim; its effect is committed; all is stored and its
# part is over; or the claim was lost and nothing is stored.
Stage = Literal["began", "recorded", "finished", "lost"]
Report = Callable[[Stage, str, FlowInstance, str], None]


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write in a partition: the generation in which a worker of a replica set owns it."""

    replica_set: str
    partition_id: int
    generation: int


# When a delivery or timer whose component failed comes again; counting its attempts is the store's part.
_RETRY_AFTER = timedelta(seconds=0.2)


class Engine:
    """Moves flows forward on one store. Any number of tasks may use it at once.

    Args:
        effects: Where what steps did is recorded, in the same transaction.
        components: By component type.
        worker: The name that effects are recorded under.
        report: Told about each call of a component.
    """

    def __init__(
        self,
        store: Store,
        effects: Effects,
        components: Mapping[str, Component],
        *,
        worker: str,
        report: Report = lambda *_: None,
    ) -> None:
        self._store = store
        self._effects = effects
        self._components = components
        self._worker = worker
        self._report = report
        self._definitions: dict[tuple[str, int | None], FlowDefinition] = {}
        self._fence: Fence | None = None

    def under(self, fence: Fence) -> Engine:
        """Returns this engine, but each of its commits is refused once the partition has another owner."""
        engine = copy(self)
        engine._fence = fence
        return engine

    # The three entrances

    async def drive(self, claimed: FlowInstance) -> None:
        """Runs what is ready in a claimed flow until nothing is, then releases the flow."""
        definition = await self._definition(claimed.flow_id, claimed.flow_version)
        flow = claimed
        while not flow.is_terminal:
            if flow.status is FlowStatus.INITIALIZING:
                flow = await self._commit(flow, START, lease=claimed.lease)
            elif ready := flow.ready_steps(definition):
                flow = await self._run_step(flow, ready[0], claimed.lease)
            elif _all_required_done(flow, definition):
                flow = await self._commit(flow, COMPLETE, lease=claimed.lease)
            elif flow.status is FlowStatus.RUNNING:
                flow = await self._rest(flow, claimed.lease)
            else:
                await self._store.flow_instances.release([claimed])
                return

    async def deliver(self, delivery: Delivery) -> None:
        """Goes on with the step that the event was delivered to."""
        flow = await self._store.flow_instances.get(delivery.flow_instance_id)
        if flow.waits.get(delivery.step_id) != delivery.correlation_key:
            await self._store.correlations.complete([delivery])
            return
        call = await self._call(flow, delivery.step_id)
        component = self._components[call.step.component_type]
        with self._reporting("delivery", call):
            try:
                outcome = await component.on_delivery(call, delivery)
            except TemporaryFailure as failure:
                await self._store.correlations.retry(delivery, after=_RETRY_AFTER, error=str(failure))
                return
            except PermanentFailure as failure:
                change = failure_change(call, failure)
            else:
                change = outcome_change(call, outcome, worker=self._worker, event_id=delivery.event_id)
            await self._commit(flow, change, completes=[delivery])

    async def fire(self, timer: Timer) -> None:
        """Goes on with the step whose timer fired."""
        flow = await self._store.flow_instances.get(timer.flow_instance_id)
        if flow.pending_timers.get(timer.step_id) != timer.timer_id:
            await self._store.timers.complete([timer])
            return
        call = await self._call(flow, timer.step_id)
        component = self._components[call.step.component_type]
        with self._reporting("timer", call):
            try:
                outcome = await component.on_timer(call, timer)
            except TemporaryFailure as failure:
                await self._store.timers.retry(timer, after=_RETRY_AFTER, error=str(failure))
                return
            except PermanentFailure as failure:
                change = failure_change(call, failure)
            else:
                change = outcome_change(call, outcome, worker=self._worker)
            await self._commit(flow, change, completes=[timer])

    # One step

    async def _run_step(self, flow: FlowInstance, step: StepDefinition, lease: Lease | None) -> FlowInstance:
        if not condition_holds(step.condition, _outputs(flow)):
            return await self._commit(flow, skip_change(step.step_id), lease=lease)
        call = await self._call(flow, step.step_id)
        with self._reporting("flow", call):
            try:
                outcome = await self._components[step.component_type].run(call)
            except TemporaryFailure as failure:
                change = retry_change(call, failure)
            except PermanentFailure as failure:
                change = failure_change(call, failure)
            else:
                children = await self._children(call, outcome)
                change = outcome_change(call, outcome, worker=self._worker, children=children)
            return await self._commit(flow, change, lease=lease)

    async def _call(self, flow: FlowInstance, step_id: str) -> Call:
        definition = await self._definition(flow.flow_id, flow.flow_version)
        step = next(step for step in definition.steps if step.step_id == step_id)
        stored = await self._store.component_states.find(flow.flow_instance_id, step_id)
        inputs = resolved_inputs(step, flow.trigger_data, _outputs(flow))
        return Call(flow=flow, step=step, inputs=inputs, state={} if stored is None else stored.state)

    async def _children(self, call: Call, outcome: Outcome) -> tuple[FlowInstance, ...]:
        if not isinstance(outcome, StartChildren):
            return ()
        definition = await self._definition(outcome.flow_id)
        parent = call.flow
        return tuple(
            parent.child(definition, trigger_data=trigger_data, business_key=f"{parent.business_key}/{name}")
            for name, trigger_data in outcome.trigger_data.items()
        )

    # Committing

    async def _commit(
        self,
        flow: FlowInstance,
        change: Change,
        *,
        lease: Lease | None = None,
        completes: Iterable[Timer | Delivery] = (),
    ) -> FlowInstance:
        """Stores a change in one transaction, applied to the newest value of the flow; returns what is stored then.

        A flow can have two commits at once, of different steps: one drives it, an event arrives for another
        step that waits. The second one gets `VersionConflict` and is applied again to what the first one
        stored. If its step has gone on meanwhile (the event and the deadline came together), it has nothing to
        say any more.
        """
        definition = await self._definition(flow.flow_id, flow.flow_version)

        fence = self._fence

        async def write(uow: UnitOfWork) -> FlowInstance:
            if fence is not None:
                await uow.fence(fence.partition_id, fence.generation, fence.replica_set)
            stored = await uow.advance(
                running_if_ready(change.apply(flow), definition),
                lease=lease,
                put_states=change.put_states,
                completes=completes,
                events=change.events,
            )
            for result in await uow.flow_instances.add_many(change.children):
                if result.error is not None:
                    raise result.error
            if stored.is_terminal and stored.parent_id is not None:
                await self._tell_parent(uow, stored)
            if change.effect is not None:
                generation = None if fence is None else fence.generation
                await self._effects.record(uow, replace(change.effect, generation=generation))
            return stored

        while change.is_current(flow):
            try:
                stored = await self._store.run(write)
            except VersionConflict:
                flow = await self._store.flow_instances.get(flow.flow_instance_id)
                continue
            if change.effect is not None:
                self._report("recorded", "", stored, change.effect.step_id)
            return stored
        return flow

    async def _tell_parent(self, uow: UnitOfWork, child: FlowInstance) -> None:
        """Publishes a child's result in the commit that ends it; the child's id makes it one event for ever."""
        definition = await self._definition(child.flow_id, child.flow_version)
        result = _outputs(child).get(definition.document.get("result", ""), {})
        assert child.parent_id is not None  # noqa: S101 - for the type checker
        await uow.correlations.publish(
            children_key(child.parent_id),
            {"business_key": child.business_key, "status": child.status.value, "result": result},
            event_id=str(child.flow_instance_id),
            mode="fifo",
        )

    async def _rest(self, flow: FlowInstance, lease: Lease | None) -> FlowInstance:
        """Suspends a running flow in which nothing is ready, for what its other steps wait for already."""
        if flow.waits:
            return await self._commit(flow, SUSPEND_AGAIN, lease=lease)
        timer = await self._store.timers.find(next(iter(flow.pending_timers.values())))
        if timer is None:  # it fired at this moment
            return await self._store.flow_instances.get(flow.flow_instance_id)
        return await self._commit(flow, timer_again_change(timer), lease=lease)

    async def _definition(self, flow_id: str, version: int | None = None) -> FlowDefinition:
        # A deployed version never changes, so it is read once; the latest one is asked for each time.
        found = self._definitions.get((flow_id, version)) if version is not None else None
        if found is None:
            found = await self._store.flow_definitions.get(flow_id, version)
            self._definitions[flow_id, found.version] = found
        return found

    @contextmanager
    def _reporting(self, claim: str, call: Call) -> Iterator[None]:
        self._report("began", claim, call.flow, call.step.step_id)
        try:
            yield
        except LeaseLost:
            self._report("lost", claim, call.flow, call.step.step_id)
            raise
        self._report("finished", claim, call.flow, call.step.step_id)


def _outputs(flow: FlowInstance) -> dict[str, Any]:
    return {step_id: flow.step_results[step_id].outputs for step_id in flow.completed_steps}


def _all_required_done(flow: FlowInstance, definition: FlowDefinition) -> bool:
    done = flow.completed_steps
    return all(step.step_id in done or step.config.get("optional") for step in definition.steps)
