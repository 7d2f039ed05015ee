"""Flow instances: the consistency boundary of a flow, and its transitions.

A `FlowInstance` is a value. Each transition returns a new one that remembers what changed; `store.advance`
writes exactly that. A forbidden transition raises `InvalidTransition` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from cascade_state.errors import InvalidArgument, InvalidTransition
from cascade_state.ids import DEFAULT_PARTITION_COUNT, new_flow_instance_id, new_timer_id, partition_of
from cascade_state.model.arguments import (
    check_duration,
    check_instant,
    check_key,
    check_kind,
    check_optional_instant,
    check_optional_key,
    check_uuid,
)
from cascade_state.model.changes import NOTHING_PENDING, Changes, NewWait
from cascade_state.model.documents import normalize
from cascade_state.model.events import NewEvent
from cascade_state.model.flow_definitions import FlowDefinition, StepDefinition
from cascade_state.model.flow_status import TERMINAL_STATUSES, TRANSITIONS, FlowStatus, StepStatus
from cascade_state.model.leases import Lease
from cascade_state.model.step_results import StepResult
from cascade_state.model.timers import ScheduleTimer
from cascade_state.types import JsonObject, JsonValue

__all__ = ["FlowInstance"]

_EMPTY: JsonObject = {}  # what is kept when nothing was given; None that was given stays None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowInstance:
    """One run of a flow definition.

    `waits` maps each step that waits for an event to its correlation key, `pending_timers` each step that
    waits for a timer to the timer's id. `version` counts the commits; 0 means that it was never stored, and
    then `created_at` and `updated_at` are None. `lease` is set on an instance that was claimed.
    """

    flow_instance_id: UUID
    root_id: UUID
    parent_id: UUID | None = None
    flow_id: str
    flow_version: int
    status: FlowStatus = FlowStatus.INITIALIZING
    business_key: str | None = None
    trigger_data: JsonValue = None
    step_results: Mapping[str, StepResult] = field(default_factory=dict)
    pending_timers: Mapping[str, UUID] = field(default_factory=dict)
    waits: Mapping[str, str] = field(default_factory=dict)
    error: JsonValue = None
    search_attributes: JsonObject = field(default_factory=dict)
    created_at: datetime | None = None
    updated_at: datetime | None = None
    completed_at: datetime | None = None
    version: int = 0
    lease: Lease | None = field(default=None, compare=False)
    changes: Changes = field(default=NOTHING_PENDING, compare=False, repr=False)

    def __repr__(self) -> str:
        # No payload, result or error: a repr ends up in logs.
        return (
            f"FlowInstance(flow_instance_id={self.flow_instance_id}, flow_id={self.flow_id!r}, "
            f"flow_version={self.flow_version}, status={self.status.value}, version={self.version})"
        )

    # Making one

    @classmethod
    def create(
        cls,
        definition: FlowDefinition,
        *,
        trigger_data: JsonValue = _EMPTY,
        business_key: str | None = None,
        search_attributes: JsonObject | None = None,
        flow_instance_id: UUID | None = None,
    ) -> FlowInstance:
        """Returns a new flow of a deployed definition, INITIALIZING and pinned to the definition's version.

        Args:
            business_key: Unique among all flows of this flow id; at most 512 bytes of UTF-8.
            flow_instance_id: A UUID of the caller's own; None mints one (version 7).

        Raises:
            InvalidArgument: The definition has no version (deploy it first), or a value cannot be stored.
        """
        identity = (
            new_flow_instance_id() if flow_instance_id is None else check_uuid(flow_instance_id, "flow_instance_id")
        )
        return cls._made(definition, identity, identity, None, trigger_data, business_key, search_attributes)

    def child(
        self,
        definition: FlowDefinition,
        *,
        trigger_data: JsonValue = _EMPTY,
        business_key: str | None = None,
        search_attributes: JsonObject | None = None,
    ) -> FlowInstance:
        """Returns a new flow with this one as its parent, in the same partition; otherwise like `create`."""
        identity = new_flow_instance_id(self.root_id)
        return self._made(
            definition,
            identity,
            self.root_id,
            self.flow_instance_id,
            trigger_data,
            business_key,
            search_attributes,
        )

    @classmethod
    def _made(
        cls,
        definition: FlowDefinition,
        identity: UUID,
        root_id: UUID,
        parent_id: UUID | None,
        trigger_data: JsonValue,
        business_key: str | None,
        search_attributes: JsonObject | None,
    ) -> FlowInstance:
        check_kind(definition, FlowDefinition, "definition")
        if definition.version is None:
            raise InvalidArgument(argument="definition", reason="has no version; deploy it first")
        created = NewEvent("flow_instance.created", {"flow_id": definition.flow_id, "flow_version": definition.version})
        return cls(
            flow_instance_id=identity,
            root_id=root_id,
            parent_id=parent_id,
            flow_id=definition.flow_id,
            flow_version=definition.version,
            business_key=check_optional_key(business_key, "business_key"),
            trigger_data=normalize(trigger_data, "trigger_data"),
            search_attributes=normalize(search_attributes or {}, "search_attributes"),
            changes=Changes(events=(created,)),
        )

    # Looking at it

    @property
    def partition_id(self) -> int:
        """The partition at the default partition count; `ids.partition_of` gives it for any other."""
        return partition_of(self.flow_instance_id, DEFAULT_PARTITION_COUNT)

    @property
    def is_terminal(self) -> bool:
        """Whether the flow has ended: no transition is allowed any more."""
        return self.status in TERMINAL_STATUSES

    @property
    def completed_steps(self) -> frozenset[str]:
        """The ids of the steps that completed."""
        return self._steps_with(StepStatus.COMPLETED)

    @property
    def failed_steps(self) -> frozenset[str]:
        """The ids of the steps that failed."""
        return self._steps_with(StepStatus.FAILED)

    def step_output(self, step_id: str, name: str, default: Any = None) -> Any:
        """Returns the named output of a step, or `default` when the step has not ended or has no such output."""
        result = self.step_results.get(step_id)
        outputs = None if result is None else result.outputs
        return outputs.get(name, default) if isinstance(outputs, Mapping) else default

    def ready_steps(self, definition: FlowDefinition) -> tuple[StepDefinition, ...]:
        """Returns the steps that may run now, in the definition's order.

        Ready is a step that has neither ended nor waits, and whose `run_after` steps have all completed.
        Conditions are the engine's to evaluate. A flow that has ended has no ready steps.

        Raises:
            InvalidArgument: It is another definition, or another version, than the one this flow is pinned
                to.
        """
        if (definition.flow_id, definition.version) != (self.flow_id, self.flow_version):
            raise InvalidArgument(argument="definition", reason="is not the one this flow is pinned to")
        if self.is_terminal:
            return ()
        completed = self.completed_steps
        return tuple(
            step
            for step in definition.steps
            if step.step_id not in self.step_results
            and not self._is_waiting(step.step_id)
            and completed.issuperset(step.run_after)
        )

    def _steps_with(self, status: StepStatus) -> frozenset[str]:
        return frozenset(step_id for step_id, result in self.step_results.items() if result.status is status)

    def _is_waiting(self, step_id: str) -> bool:
        return step_id in self.waits or step_id in self.pending_timers

    # Transitions

    def start(self) -> FlowInstance:
        """INITIALIZING → RUNNING."""
        self._require("start", FlowStatus.RUNNING)
        return self._changed("flow_instance.started", {}, status=FlowStatus.RUNNING)

    def complete_step(self, step_id: str, outputs: JsonValue = _EMPTY) -> FlowInstance:
        """Records that a step completed with `outputs`, any JSON value. RUNNING; what it waited for goes."""
        clean = normalize(outputs, "outputs")
        return self._ended_step("complete_step", step_id, StepStatus.COMPLETED, outputs=clean)

    def fail_step(self, step_id: str, error: JsonValue) -> FlowInstance:
        """Records that a step failed. RUNNING, and stays RUNNING; what the step waited for is dropped."""
        return self._ended_step("fail_step", step_id, StepStatus.FAILED, error=normalize(error, "error"))

    def suspend_for_timer(
        self, step_id: str, *, due_at: datetime | None = None, after: timedelta | None = None
    ) -> FlowInstance:
        """RUNNING or WAITING_* → WAITING_*: the step waits until `due_at`, or for `after` by the database's clock.

        A timer that the step already waits for is replaced.
        """
        self._require("suspend_for_timer", FlowStatus.WAITING_FOR_TIMER)
        check_key(step_id, "step_id")
        timer = checked_schedule(ScheduleTimer(step_id, due_at=due_at, after=after))
        timer_id = new_timer_id(self.flow_instance_id)
        before = self._without_timer(step_id)
        pending_timers = {**before.pending_timers, step_id: timer_id}
        return before._changed(
            "flow_instance.suspended_for_timer",
            {"step_id": step_id, "timer_id": str(timer_id)},
            status=_waiting_status(before.waits),
            pending_timers=pending_timers,
            added_timers={**before.changes.added_timers, timer_id: timer},
        )

    def suspend_for_event(
        self, step_id: str, correlation_key: str, *, expires_at: datetime | None = None
    ) -> FlowInstance:
        """RUNNING or WAITING_* → WAITING_FOR_EVENT: the step waits for an event under `correlation_key`.

        A step waits for one key at a time; another key replaces the one before. Suspending again for the same
        key without `expires_at` keeps the wait, and a delivery that was already made for it.

        Args:
            expires_at: When the wait ends in a delivery with `timed_out`; None waits for ever.
        """
        self._require("suspend_for_event", FlowStatus.WAITING_FOR_EVENT)
        check_key(step_id, "step_id")
        check_key(correlation_key, "correlation_key")
        wait = NewWait(correlation_key, check_optional_instant(expires_at, "expires_at"))
        payload = {"step_id": step_id, "correlation_key": correlation_key}
        event_type = "flow_instance.suspended_for_event"
        if self.waits.get(step_id) == correlation_key and expires_at is None:
            return self._changed(event_type, payload, status=FlowStatus.WAITING_FOR_EVENT)
        before = self._without_wait(step_id)
        return before._changed(
            event_type,
            payload,
            status=FlowStatus.WAITING_FOR_EVENT,
            waits={**before.waits, step_id: correlation_key},
            added_waits={**before.changes.added_waits, step_id: wait},
        )

    def resume(self, step_id: str | None = None) -> FlowInstance:
        """WAITING_* → RUNNING: clears what `step_id` waited for, or (None) what any step waited for.

        Unless the delivery or timer is acknowledged in the same advance (`completes=`), it is dropped with
        the wait.
        """
        still_waits = self._is_waiting(step_id) if step_id is not None else bool(self.waits or self.pending_timers)
        if not (self.status is FlowStatus.RUNNING and still_waits):
            self._require("resume", FlowStatus.RUNNING)
        resumed = self._without_waiting(None if step_id is None else check_key(step_id, "step_id"))
        return resumed._changed("flow_instance.resumed", {"step_id": step_id}, status=FlowStatus.RUNNING)

    def complete(self) -> FlowInstance:
        """RUNNING → COMPLETED, for good; whatever still waited is dropped."""
        return self._ended("complete", FlowStatus.COMPLETED, "flow_instance.completed", None)

    def fail(self, error: JsonValue) -> FlowInstance:
        """Any status that is not terminal → FAILED, for good; whatever waited is dropped."""
        return self._ended("fail", FlowStatus.FAILED, "flow_instance.failed", error)

    def cancel(self, reason: JsonValue = None) -> FlowInstance:
        """Any status that is not terminal → CANCELLED, for good, with `reason` as its error; what waited is dropped."""
        return self._ended("cancel", FlowStatus.CANCELLED, "flow_instance.cancelled", reason)

    # Storing

    def as_stored(self, now: datetime) -> FlowInstance:
        """Returns the flow instance as it is once its changes were stored at `now`: a version later, nothing pending.

        For back ends; a caller gets it from `advance`.
        """
        ended = self.is_terminal
        updates: dict[str, Any] = {
            "updated_at": now,
            "completed_at": now if ended else None,
            "version": self.version + 1,
            "changes": NOTHING_PENDING,
        }
        if self.created_at is None:
            updates["created_at"] = now
        if ended:
            updates["lease"] = None
        changed = self.changes.results
        if changed:
            stored = {
                step_id: _copied(result, _RESULT_FIELDS, {"completed_at": now}) for step_id, result in changed.items()
            }
            updates["step_results"] = {**self.step_results, **stored}
        return self._with(**updates)

    # How transitions are made

    def _require(self, transition: str, to_status: FlowStatus) -> None:
        if self.status not in TRANSITIONS[transition]:
            raise InvalidTransition(from_status=self.status, to_status=to_status)

    def _ended_step(
        self,
        transition: str,
        step_id: str,
        status: StepStatus,
        *,
        outputs: JsonValue = None,
        error: JsonValue = None,
    ) -> FlowInstance:
        self._require(transition, FlowStatus.RUNNING)
        earlier = self.step_results.get(check_key(step_id, "step_id"))
        attempt = 1 if earlier is None else earlier.attempt + 1
        result = StepResult(step_id=step_id, status=status, outputs=outputs, error=error, attempt=attempt)
        before = self._without_waiting(step_id) if self._is_waiting(step_id) else self
        return before._changed(
            f"step.{status.value.lower()}",
            {"step_id": step_id, "attempt": attempt},
            step_results={**before.step_results, step_id: result},
            results={**before.changes.results, step_id: result},
        )

    def _ended(self, transition: str, status: FlowStatus, event_type: str, error: JsonValue) -> FlowInstance:
        self._require(transition, status)
        return self._without_waiting(None)._changed(
            event_type, {}, status=status, error=None if error is None else normalize(error, "error")
        )

    def _without_waiting(self, step_id: str | None) -> FlowInstance:
        """Drops what one step waits for, or (None) what any step waits for."""
        instance = self
        for waiting in tuple(self.waits) if step_id is None else (step_id,):
            instance = instance._without_wait(waiting)
        for waiting in tuple(self.pending_timers) if step_id is None else (step_id,):
            instance = instance._without_timer(waiting)
        return instance

    def _without_wait(self, step_id: str) -> FlowInstance:
        correlation_key = self.waits.get(step_id)
        if correlation_key is None:
            return self
        changes = self.changes
        stored = () if step_id in changes.added_waits else ((step_id, correlation_key),)
        return self._with(
            waits=_without(self.waits, step_id),
            added_waits=_without(changes.added_waits, step_id),
            dropped_waits=changes.dropped_waits + stored,
        )

    def _without_timer(self, step_id: str) -> FlowInstance:
        timer_id = self.pending_timers.get(step_id)
        if timer_id is None:
            return self
        changes = self.changes
        stored = () if timer_id in changes.added_timers else (timer_id,)
        return self._with(
            pending_timers=_without(self.pending_timers, step_id),
            added_timers=_without(changes.added_timers, timer_id),
            dropped_timers=changes.dropped_timers + stored,
        )

    def _changed(self, event_type: str, payload: JsonObject, **updates: Any) -> FlowInstance:
        return self._with(events=(*self.changes.events, NewEvent(event_type, payload)), **updates)

    def _with(self, **updates: Any) -> FlowInstance:
        """Returns a copy with some fields of the instance, or of its changes, replaced."""
        changed = {name: updates.pop(name) for name in _CHANGE_FIELDS if name in updates}
        if changed:
            updates["changes"] = _copied(self.changes, _CHANGE_FIELDS, changed)
        copy: FlowInstance = _copied(self, _INSTANCE_FIELDS, updates)
        return copy


_CHANGE_FIELDS = tuple(item.name for item in fields(Changes))
_RESULT_FIELDS = tuple(item.name for item in fields(StepResult))
_INSTANCE_FIELDS = tuple(item.name for item in fields(FlowInstance))


def _copied(value: Any, names: tuple[str, ...], updates: Mapping[str, Any]) -> Any:
    # dataclasses.replace() without its look at every field's definition: a transition is on the hot path.
    copy = object.__new__(type(value))
    assign = object.__setattr__
    for name in names:
        assign(copy, name, updates[name] if name in updates else getattr(value, name))
    return copy


def _without(mapping: Mapping[Any, Any], key: Any) -> dict[Any, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def _waiting_status(waits: Mapping[str, str]) -> FlowStatus:
    return FlowStatus.WAITING_FOR_EVENT if waits else FlowStatus.WAITING_FOR_TIMER


def checked_schedule(timer: ScheduleTimer) -> ScheduleTimer:
    """Returns `timer` with its times checked: exactly one of `due_at` and `after`."""
    if (timer.due_at is None) == (timer.after is None):
        raise InvalidArgument(argument="due_at", reason="give exactly one of due_at and after")
    if timer.due_at is not None:
        due_at = check_instant(timer.due_at, "due_at")
        return ScheduleTimer(timer.step_id, due_at, None, timer.payload, timer.max_attempts)
    check_duration(timer.after, "after", allow_zero=True)
    return timer
