"""The plan of an advance: one flow's changes and extras, validated and encoded, ready to be written all or nothing.

Both back ends execute plans and nothing else, so what is refused, and in which words, is the same on both. A
plan holds JSON as text and times in UTC. `AdvancePlan.stored` tells what the flow instance is once the plan
is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from cascade_state.errors import InvalidArgument, InvalidTransition, LeaseLost
from cascade_state.ids import DEFAULT_PARTITION_COUNT, new_timer_id
from cascade_state.model import documents
from cascade_state.model.arguments import check_count, check_items, check_key, check_kind, check_uuid
from cascade_state.model.changes import Changes
from cascade_state.model.correlations import Delivery
from cascade_state.model.events import NewEvent
from cascade_state.model.flow_instances import FlowInstance, checked_schedule
from cascade_state.model.leases import Lease
from cascade_state.model.step_results import StepResult
from cascade_state.model.timers import ScheduleTimer, Timer
from cascade_state.types import JsonValue

__all__ = [
    "AdvancePlan",
    "HeldDelivery",
    "HeldTimer",
    "Limits",
    "PlannedEvent",
    "PlannedResult",
    "PlannedTimer",
    "PlannedWait",
    "held_deliveries",
    "held_delivery",
    "held_timer",
    "held_timers",
    "plan_advance",
    "plan_timer",
]


_MAXIMUM_VERSION = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a store was opened with that decides how a call is validated and encoded."""

    max_document_bytes: int = documents.DEFAULT_MAXIMUM_BYTES
    max_attempts: int = 20
    partition_count: int = DEFAULT_PARTITION_COUNT


class PlannedResult(NamedTuple):
    """A step result to be written (over an earlier one of the same step, if there is one)."""

    step_id: str
    status: str
    outputs: str
    error: str | None
    attempt: int


@dataclass(frozen=True, slots=True)
class PlannedTimer:
    """A timer to be inserted; exactly one of `due_at` and `after` is set."""

    timer_id: UUID
    flow_instance_id: UUID
    step_id: str
    due_at: datetime | None
    after: timedelta | None
    payload: str
    max_attempts: int


@dataclass(frozen=True, slots=True)
class PlannedWait:
    """A wait to be stored; it replaces a row of the same key, flow and step, delivery included."""

    step_id: str
    correlation_key: str
    expires_at: datetime | None


class PlannedEvent(NamedTuple):
    """A history event to be appended; the store gives it the flow's next sequence number."""

    event_type: str
    payload: str


@dataclass(frozen=True, slots=True)
class HeldTimer:
    """A claimed timer to be acknowledged, if its token is still current."""

    timer_id: UUID
    token: int
    holder: str = field(compare=False)  # for the error: the token decides


@dataclass(frozen=True, slots=True)
class HeldDelivery:
    """A claimed delivery to be acknowledged, if its token is still current."""

    correlation_key: str
    flow_instance_id: UUID
    step_id: str
    token: int
    holder: str = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvancePlan:
    """Everything one advance writes.

    `instance` is the value that is being advanced (its `version` is the expected one; 0 inserts). When
    `is_terminal`, all timers of the flow go, whoever scheduled them, and `drop_waits` names all of its waits.
    """

    instance: FlowInstance
    is_terminal: bool
    lease: Lease | None
    trigger_data: str
    search_attributes: str
    error: str | None
    waits: str | None  # the instance's waits as JSON; None when there are none, which keeps the row small
    pending_timers: str | None
    results: tuple[PlannedResult, ...]
    schedule: tuple[PlannedTimer, ...]
    cancel: tuple[UUID, ...]
    add_waits: tuple[PlannedWait, ...]
    drop_waits: tuple[tuple[str, str], ...]  # (step id, correlation key)
    put_states: tuple[tuple[str, str], ...]  # (step id, JSON text)
    remove_states: tuple[str, ...]
    complete_timers: tuple[HeldTimer, ...]
    complete_deliveries: tuple[HeldDelivery, ...]
    events: tuple[PlannedEvent, ...]

    @property
    def is_new(self) -> bool:
        """Whether the flow is inserted."""
        return self.instance.version == 0

    def acknowledging(self, item: Timer | Delivery) -> AdvancePlan | None:
        """Returns the plan that acknowledges a claimed item where this one only removes it; None: it does not."""
        if isinstance(item, Timer):
            if item.timer_id not in self.cancel:
                return None
            cancel = tuple([timer_id for timer_id in self.cancel if timer_id != item.timer_id])
            return replace(self, cancel=cancel, complete_timers=(*self.complete_timers, held_timer(item)))
        wait = (item.step_id, item.correlation_key)
        if item.flow_instance_id != self.instance.flow_instance_id or wait not in self.drop_waits:
            return None
        drop_waits = tuple([dropped for dropped in self.drop_waits if dropped != wait])
        held = held_delivery(item)
        return replace(self, drop_waits=drop_waits, complete_deliveries=(*self.complete_deliveries, held))

    def stored(self, now: datetime) -> FlowInstance:
        """Returns the flow instance as it is once this plan was written at `now`: a version later, nothing pending."""
        return self.instance.as_stored(now)


def plan_advance(
    instance: FlowInstance,
    *,
    limits: Limits,
    lease: Lease | None = None,
    put_states: Mapping[str, JsonValue] | None = None,
    remove_states: Iterable[str] = (),
    schedule: Iterable[ScheduleTimer] = (),
    cancel: Iterable[UUID] = (),
    completes: Iterable[Timer | Delivery] = (),
    events: Iterable[NewEvent] = (),
) -> AdvancePlan:
    """Returns the plan that writes `instance`'s pending changes and the extras.

    Raises:
        InvalidArgument: Naming the argument, and the path inside a document.
        InvalidTransition: A timer is scheduled on a flow that has ended.
        LeaseLost: Something in `completes` was never claimed, or was released.
    """
    check_kind(instance, FlowInstance, "instance")
    changes = instance.changes
    timers, deliveries = _held(completes) if completes else ((), ())
    put, remove = _planned_states(put_states, remove_states, limits)
    is_terminal = instance.is_terminal
    waits, pending_timers = instance.waits, instance.pending_timers
    return AdvancePlan(
        instance=_checked_instance(instance),
        is_terminal=is_terminal,
        lease=_checked_lease(lease),
        trigger_data=_dump(instance.trigger_data, "trigger_data", limits) if instance.version == 0 else "null",
        search_attributes=documents.dump_search_attributes(
            instance.search_attributes, "search_attributes", maximum_bytes=limits.max_document_bytes
        )
        if instance.search_attributes
        else "{}",
        error=None if instance.error is None else _dump(instance.error, "error", limits),
        waits=_dump(waits, "waits", limits) if waits else None,
        pending_timers=_dump({step: str(timer) for step, timer in pending_timers.items()}, "timers", limits)
        if pending_timers
        else None,
        results=tuple([_planned_result(result, limits) for result in changes.results.values()]),
        schedule=_planned_timers(instance, schedule, limits),
        cancel=_cancelled(changes, cancel, timers),
        add_waits=tuple(
            [
                PlannedWait(step_id, wait.correlation_key, wait.expires_at)
                for step_id, wait in changes.added_waits.items()
            ]
        ),
        drop_waits=_dropped_waits(instance, deliveries) if changes.dropped_waits else (),
        put_states=put,
        remove_states=remove,
        complete_timers=timers,
        complete_deliveries=deliveries,
        events=tuple([_planned_event(event, limits) for event in (*changes.events, *events)]),
    )


def _cancelled(changes: Changes, cancel: Iterable[UUID], completed: Sequence[HeldTimer]) -> tuple[UUID, ...]:
    wanted = dict.fromkeys((*changes.dropped_timers, *[check_uuid(item, "cancel") for item in cancel]))
    for held in completed if wanted else ():
        wanted.pop(held.timer_id, None)
    return tuple(wanted)


def _dropped_waits(instance: FlowInstance, acknowledged: Sequence[HeldDelivery]) -> tuple[tuple[str, str], ...]:
    """The waits whose rows are to be removed: not those that are replaced, or acknowledged."""
    changes = instance.changes
    dropped = dict.fromkeys(changes.dropped_waits)
    for step_id, wait in changes.added_waits.items():
        dropped.pop((step_id, wait.correlation_key), None)  # the insert replaces the row
    for held in acknowledged:
        if held.flow_instance_id == instance.flow_instance_id:
            dropped.pop((held.step_id, held.correlation_key), None)
    return tuple(dropped)


def plan_timer(
    flow_instance_id: UUID,
    timer: ScheduleTimer,
    limits: Limits,
    *,
    timer_id: UUID | None = None,
    key: str | None = None,
) -> PlannedTimer:
    """Returns the timer that is to be inserted, under `timer_id`, or an id made from the idempotency key, or a new one.

    Raises:
        InvalidArgument: Naming the argument.
    """
    if not isinstance(timer, ScheduleTimer):
        raise InvalidArgument(argument="schedule", reason=f"must hold ScheduleTimer, not {type(timer).__name__}")
    checked = checked_schedule(timer)
    attempts = limits.max_attempts if timer.max_attempts is None else check_count(timer.max_attempts, "max_attempts")
    return PlannedTimer(
        new_timer_id(flow_instance_id, key) if timer_id is None else timer_id,
        flow_instance_id,
        check_key(timer.step_id, "step_id"),
        checked.due_at,
        checked.after,
        _dump(timer.payload, "payload", limits),
        attempts,
    )


def held_timers(timers: Iterable[Timer]) -> tuple[HeldTimer, ...]:
    """Returns what proves that each timer is held; see `held_timer`."""
    return tuple([held_timer(timer, "timers") for timer in check_items(timers, "timers")])


def held_timer(timer: Timer, argument: str = "timer") -> HeldTimer:
    """Returns what proves that a timer is held.

    Raises:
        InvalidArgument: It is no timer.
        LeaseLost: It was never claimed.
    """
    check_kind(timer, Timer, argument)
    if timer.lease is None:
        raise LeaseLost(entity="timer", key=timer.timer_id)
    return HeldTimer(timer.timer_id, timer.lease.token, timer.lease.holder)


def held_deliveries(deliveries: Iterable[Delivery]) -> tuple[HeldDelivery, ...]:
    """Returns what proves that each delivery is held; see `held_delivery`."""
    return tuple([held_delivery(delivery, "deliveries") for delivery in check_items(deliveries, "deliveries")])


def held_delivery(delivery: Delivery, argument: str = "delivery") -> HeldDelivery:
    """Returns what proves that a delivery is held.

    Raises:
        InvalidArgument: It is no delivery.
        LeaseLost: It was never claimed.
    """
    check_kind(delivery, Delivery, argument)
    if delivery.lease is None:
        raise LeaseLost(entity="delivery", key=delivery.correlation_key)
    return HeldDelivery(
        delivery.correlation_key,
        delivery.flow_instance_id,
        delivery.step_id,
        delivery.lease.token,
        delivery.lease.holder,
    )


def _held(completes: Iterable[Timer | Delivery]) -> tuple[tuple[HeldTimer, ...], tuple[HeldDelivery, ...]]:
    timers: dict[HeldTimer, None] = {}
    deliveries: dict[HeldDelivery, None] = {}
    for item in completes:
        if isinstance(item, Timer):
            timers[held_timer(item)] = None
        elif isinstance(item, Delivery):
            deliveries[held_delivery(item)] = None
        else:
            raise InvalidArgument(
                argument="completes",
                reason=f"must hold claimed timers and deliveries, not {type(item).__name__}",
            )
    return tuple(timers), tuple(deliveries)


def _checked_instance(instance: FlowInstance) -> FlowInstance:
    """Checks what a caller may have set without a transition."""
    check_uuid(instance.flow_instance_id, "flow_instance_id")
    check_key(instance.flow_id, "flow_id")
    check_count(instance.version, "version", minimum=0, maximum=_MAXIMUM_VERSION)
    if instance.business_key is not None:
        check_key(instance.business_key, "business_key")
    return instance


def _checked_lease(lease: Lease | None) -> Lease | None:
    if lease is not None and not isinstance(lease, Lease):
        raise InvalidArgument(argument="lease", reason=f"must be a Lease, not {type(lease).__name__}")
    return lease


def _planned_timers(
    instance: FlowInstance, schedule: Iterable[ScheduleTimer], limits: Limits
) -> tuple[PlannedTimer, ...]:
    own = instance.changes.added_timers
    if not own and not schedule:
        return ()
    flow = instance.flow_instance_id
    extra = tuple([plan_timer(flow, timer, limits) for timer in schedule])
    if instance.is_terminal and extra:
        raise InvalidTransition(from_status=instance.status, to_status="WAITING_FOR_TIMER")
    return tuple([plan_timer(flow, timer, limits, timer_id=timer_id) for timer_id, timer in own.items()]) + extra


def _planned_result(result: StepResult, limits: Limits) -> PlannedResult:
    return PlannedResult(
        result.step_id,
        result.status.value,
        _dump(result.outputs, "outputs", limits),
        None if result.error is None else _dump(result.error, "error", limits),
        result.attempt,
    )


def _planned_states(
    put_states: Mapping[str, JsonValue] | None, remove_states: Sequence[str] | Iterable[str], limits: Limits
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    if put_states is not None and not isinstance(put_states, Mapping):
        raise InvalidArgument(argument="put_states", reason=f"must be a mapping, not {type(put_states).__name__}")
    put = tuple(
        [
            (check_key(step_id, "put_states"), _dump(state, "put_states", limits, step_id))
            for step_id, state in (put_states or {}).items()
        ]
    )
    if not remove_states:
        return put, ()
    if isinstance(remove_states, str):
        raise InvalidArgument(argument="remove_states", reason="must be step ids, not one str")
    remove = tuple(dict.fromkeys([check_key(step_id, "remove_states") for step_id in remove_states]))
    both = {step_id for step_id, _ in put}.intersection(remove)
    if both:
        raise InvalidArgument(argument="remove_states", reason=f"names a step that put_states names too: {min(both)!r}")
    return put, remove


def _planned_event(event: NewEvent, limits: Limits) -> PlannedEvent:
    if not isinstance(event, NewEvent):
        raise InvalidArgument(argument="events", reason=f"must hold NewEvent, not {type(event).__name__}")
    event_type = check_key(event.event_type, "event_type")
    return PlannedEvent(event_type, _dump(event.payload, "events", limits))


def _dump(value: JsonValue, argument: str, limits: Limits, prefix: str = "") -> str:
    try:
        return documents.dump(value, argument, maximum_bytes=limits.max_document_bytes)
    except InvalidArgument as error:
        if not prefix:
            raise
        # `put_states` maps steps to documents: the path starts with the step.
        path = f"$.{prefix}{error.path.removeprefix('$')}"
        raise InvalidArgument(argument=argument, path=path, reason=error.reason) from None
