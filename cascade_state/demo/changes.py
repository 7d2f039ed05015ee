"""What one commit does to a flow: component answers, failures and the engine's own changes, as pure functions.

A change is a function from a flow to a flow, so that it can be applied again to a newer value when somebody
else committed first. Nothing here touches the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from cascade_state import FlowDefinition, FlowInstance, FlowStatus, JsonObject, NewEvent, Timer
from cascade_state.demo.components import (
    Call,
    Done,
    KeepWaiting,
    Outcome,
    RunAgain,
    StartChildren,
    TemporaryFailure,
    WaitForEvent,
    WaitForTimer,
)
from cascade_state.demo.effects import Effect

__all__ = [
    "COMPLETE",
    "START",
    "SUSPEND_AGAIN",
    "Change",
    "children_key",
    "failure_change",
    "outcome_change",
    "retry_change",
    "running_if_ready",
    "skip_change",
    "timer_again_change",
]

_WAITING = (FlowStatus.WAITING_FOR_EVENT, FlowStatus.WAITING_FOR_TIMER)
_MAX_ATTEMPTS = 5
_RETRY_SECONDS = 0.2  # before the second attempt; doubled for each one after it


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one commit does. `is_current` tells whether a newer value of the flow still has a use for it."""

    is_current: Callable[[FlowInstance], bool]
    apply: Callable[[FlowInstance], FlowInstance]
    put_states: Mapping[str, JsonObject] | None = None
    events: tuple[NewEvent, ...] = ()
    children: tuple[FlowInstance, ...] = ()
    effect: Effect | None = None


START = Change(
    is_current=lambda flow: flow.status is FlowStatus.INITIALIZING,
    apply=lambda flow: flow.start(),
)
COMPLETE = Change(
    is_current=lambda flow: not flow.is_terminal,
    # Resuming everything: optional steps may wait still.
    apply=lambda flow: (flow if flow.status is FlowStatus.RUNNING else flow.resume()).complete(),
)
SUSPEND_AGAIN = Change(
    is_current=lambda flow: flow.status is FlowStatus.RUNNING and bool(flow.waits),
    # The same wait again keeps it, with its deadline and a delivery that has come for it.
    apply=lambda flow: flow.suspend_for_event(*next(iter(flow.waits.items()))),
)


def outcome_change(
    call: Call,
    outcome: Outcome,
    *,
    worker: str,
    event_id: str | None = None,
    children: tuple[FlowInstance, ...] = (),
) -> Change:
    """Returns the commit that stores a component's answer.

    Args:
        worker: Who did it.
        event_id: The event that the component was told about.
        children: The child flows of `StartChildren`.
    """
    step_id = call.step.step_id
    is_current = _still_waits(step_id) if _is_waiting(call.flow, step_id) else _has_not_ended(step_id)
    key = call.flow.business_key or ""

    def change(apply: Callable[[FlowInstance], FlowInstance], **extras: Any) -> Change:
        return Change(is_current=is_current, apply=apply, **extras)

    def effect(what: str, amount: int = 0) -> Effect:
        return Effect(business_key=key, step_id=step_id, what=what, event_id=event_id, amount=amount, worker=worker)

    match outcome:
        case Done(outputs=outputs, amount=amount):
            return change(
                lambda flow: _awake(flow, step_id).complete_step(step_id, outputs), effect=effect("done", amount)
            )
        case KeepWaiting(state=state):
            return change(
                lambda flow: flow.resume(step_id).suspend_for_event(step_id, flow.waits[step_id]),
                put_states={step_id: state},
                effect=effect("received"),
            )
        case WaitForEvent():
            return change(lambda flow: _wait(flow, step_id, outcome))
        case WaitForTimer(after=after):
            return change(lambda flow: flow.suspend_for_timer(step_id, after=after))
        case StartChildren():
            return change(
                lambda flow: flow.suspend_for_event(step_id, children_key(flow.flow_instance_id)), children=children
            )
        case RunAgain():
            return change(lambda flow: flow.resume(step_id))


def retry_change(call: Call, failure: TemporaryFailure) -> Change:
    """Counts the failure in the component state and suspends the step for a pause; after the last attempt, fails."""
    config, step_id = call.step.config, call.step.step_id
    if call.attempt >= config.get("max_attempts", _MAX_ATTEMPTS):
        return failure_change(call, failure)
    pause = timedelta(seconds=config.get("retry_seconds", _RETRY_SECONDS) * 2 ** (call.attempt - 1))
    facts = {"step_id": step_id, "attempt": call.attempt, "error": str(failure)}
    return Change(
        is_current=_has_not_ended(step_id),
        apply=lambda flow: flow.suspend_for_timer(step_id, after=pause),
        put_states={step_id: {"failures": call.attempt, "last_error": str(failure)}},
        events=(NewEvent("demo.attempt_failed", facts),),
    )


def failure_change(call: Call, failure: Exception) -> Change:
    """Fails the step and the flow."""
    step_id, error = call.step.step_id, {"step_id": call.step.step_id, "reason": str(failure)}
    return Change(
        is_current=_has_not_ended(step_id),
        apply=lambda flow: _awake(flow, step_id).fail_step(step_id, error).fail(error),
    )


def skip_change(step_id: str) -> Change:
    """Completes a step whose condition is false, without an effect."""
    return Change(
        is_current=_has_not_ended(step_id),
        apply=lambda flow: _awake(flow, step_id).complete_step(step_id, {"skipped": True}),
    )


def timer_again_change(timer: Timer) -> Change:
    """Suspends a running flow for a timer that a step of it waits for already."""
    return Change(
        is_current=lambda flow: flow.pending_timers.get(timer.step_id) == timer.timer_id,
        apply=lambda flow: flow.suspend_for_timer(timer.step_id, due_at=timer.due_at),
    )


def running_if_ready(flow: FlowInstance, definition: FlowDefinition) -> FlowInstance:
    """Returns the flow RUNNING when a step is ready, even if another one waits; else as it is.

    Only running flows are claimed: a suspended one with a ready step would be lost if the process died right now.
    """
    ready = flow.ready_steps(definition)
    return flow.resume(ready[0].step_id) if ready and flow.status in _WAITING else flow


def children_key(parent_id: UUID) -> str:
    """Returns the correlation key under which child flows publish their results."""
    return f"children/{parent_id}"


def _wait(flow: FlowInstance, step_id: str, wait: WaitForEvent) -> FlowInstance:
    expires_at = None
    if wait.expires_after is not None and flow.updated_at is not None:
        expires_at = flow.updated_at + wait.expires_after  # the store's clock, not this machine's
    waiting = flow.suspend_for_event(step_id, wait.correlation_key, expires_at=expires_at)
    if wait.timer_after is not None:
        # The same step waits for the timer too: whichever comes first resumes the step, and that drops the other.
        waiting = waiting.suspend_for_timer(step_id, after=wait.timer_after)
    return waiting


def _awake(flow: FlowInstance, step_id: str) -> FlowInstance:
    """Returns the flow RUNNING: resumed for this step if need be; what other steps wait for stays."""
    sleeps = _is_waiting(flow, step_id) or flow.status is not FlowStatus.RUNNING
    return flow.resume(step_id) if sleeps else flow


def _is_waiting(flow: FlowInstance, step_id: str) -> bool:
    return step_id in flow.waits or step_id in flow.pending_timers


def _still_waits(step_id: str) -> Callable[[FlowInstance], bool]:
    return lambda flow: not flow.is_terminal and _is_waiting(flow, step_id)


def _has_not_ended(step_id: str) -> Callable[[FlowInstance], bool]:
    return lambda flow: not flow.is_terminal and step_id not in flow.step_results
