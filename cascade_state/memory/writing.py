"""Executes an advance plan: everything that one step of a flow writes.

What can be refused is checked first, on what is visible; then the locks are taken; then it is written.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cascade_state.errors import AlreadyExists, FlowDefinitionNotFound, FlowInstanceNotFound, LeaseLost, VersionConflict
from cascade_state.memory.matching import match_key
from cascade_state.memory.rows import (
    BusinessKeyRow,
    FlowKey,
    FlowRow,
    HistoryRow,
    ResultRow,
    StateRow,
    TimerRow,
    WaitRow,
)
from cascade_state.memory.schema import wait_key
from cascade_state.memory.transaction import View
from cascade_state.model.advance import AdvancePlan, HeldDelivery, HeldTimer, PlannedTimer
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import StepStatus
from cascade_state.model.timers import TimerStatus

__all__ = ["drop_timer", "drop_wait", "held_delivery_row", "held_timer_row", "is_alive", "new_timer_row", "write_plan"]


def write_plan(view: View, plan: AdvancePlan) -> FlowInstance:
    """Writes a plan; returns the flow as it is stored then."""
    now = view.now()
    if plan.is_new:
        _insert(view, plan, now)
        before = 0
    else:
        before = _update(view, plan, now)
    _write_parts(view, plan, before, now)
    return plan.stored(now)


# The flow itself


def _insert(view: View, plan: AdvancePlan, now: datetime) -> None:
    instance = plan.instance
    flow_key = instance.flow_instance_id.int
    _check_held(view, plan)
    if view.flow_instances.get(flow_key) is not None:
        raise _id_exists(plan)
    _require_definition(view, instance)
    view.lock("flow_instances", flow_key)
    _take_business_key(view, instance)
    view.flow_instances.put(
        flow_key,
        FlowRow(
            flow_instance_id=instance.flow_instance_id,
            root_id=instance.root_id,
            parent_id=instance.parent_id,
            flow_id=instance.flow_id,
            flow_version=instance.flow_version,
            status=instance.status,
            business_key=instance.business_key,
            trigger_data=plan.trigger_data,
            error=plan.error,
            search_attributes=plan.search_attributes,
            waits=plan.waits,
            pending_timers=plan.pending_timers,
            version=1,
            event_count=len(plan.events),
            created_at=now,
            updated_at=now,
            completed_at=now if plan.is_terminal else None,
        ),
    )


def _require_definition(view: View, instance: FlowInstance) -> None:
    key = (instance.flow_id, instance.flow_version)
    view.share("flow_definitions", key)  # an undeployment under way is waited for and then seen
    definition = view.flow_definitions.get(key)
    if definition is None or definition.undeployed_at is not None:
        raise FlowDefinitionNotFound(key=f"{instance.flow_id} version {instance.flow_version}")


def _take_business_key(view: View, instance: FlowInstance) -> None:
    if instance.business_key is None:
        return
    key = (instance.flow_id, instance.business_key)
    view.lock("business_keys", key)
    holder = view.business_keys.get(key)
    if holder is not None:
        raise AlreadyExists(entity="business key", key=instance.business_key, existing_id=holder.flow_instance_id)
    view.business_keys.put(key, BusinessKeyRow(instance.flow_instance_id))


def _id_exists(plan: AdvancePlan) -> AlreadyExists:
    identity = plan.instance.flow_instance_id
    return AlreadyExists(entity="flow instance", key=str(identity), existing_id=identity)


def _update(view: View, plan: AdvancePlan, now: datetime) -> int:
    """Updates the flow's row if all that the plan relies on is current; returns how many events the flow had before."""
    flow_key = plan.instance.flow_instance_id.int
    row = view.flow_instances.get(flow_key)
    if row is None:
        raise FlowInstanceNotFound(key=plan.instance.flow_instance_id)
    _check_held(view, plan)
    _check_lease(plan, row)
    if row.version != plan.instance.version:
        raise VersionConflict(
            entity="flow instance",
            key=row.flow_instance_id,
            expected_version=plan.instance.version,
            actual_version=row.version,
        )
    view.lock("flow_instances", flow_key)
    ends = plan.is_terminal
    view.flow_instances.put(
        flow_key,
        row._replace(
            status=plan.instance.status,
            error=plan.error,
            search_attributes=plan.search_attributes,
            waits=plan.waits,
            pending_timers=plan.pending_timers,
            version=row.version + 1,
            event_count=row.event_count + len(plan.events),
            updated_at=now,
            completed_at=now if ends else None,
            lease_holder=None if ends else row.lease_holder,
            lease_expires_at=None if ends else row.lease_expires_at,
        ),
    )
    return row.event_count


def _check_lease(plan: AdvancePlan, row: FlowRow) -> None:
    lease = plan.lease
    if lease is not None and (row.lease_token != lease.token or row.lease_holder is None):
        raise LeaseLost(entity="flow instance", key=row.flow_instance_id, token=lease.token, holder=lease.holder)


# What is acknowledged


def _check_held(view: View, plan: AdvancePlan) -> None:
    for timer in plan.complete_timers:
        held_timer_row(view, timer)
    for delivery in plan.complete_deliveries:
        held_delivery_row(view, delivery)


def held_timer_row(view: View, held: HeldTimer) -> TimerRow:
    """Returns the row of a claimed timer, locked.

    Raises:
        LeaseLost: The lease is not current.
    """
    key = held.timer_id.int
    row = view.timers.get(key)
    if row is None or row.lease_token != held.token or row.lease_holder is None:
        raise LeaseLost(entity="timer", key=held.timer_id, token=held.token, holder=held.holder)
    view.lock("timers", key)
    return row


def held_delivery_row(view: View, held: HeldDelivery) -> WaitRow:
    """Returns the row of a claimed delivery, locked.

    Raises:
        LeaseLost: The lease is not current.
    """
    key = (held.correlation_key, held.flow_instance_id.int, held.step_id)
    row = view.correlations.get(key)
    if row is None or row.lease_token != held.token or row.lease_holder is None:
        raise LeaseLost(entity="delivery", key=held.correlation_key, token=held.token, holder=held.holder)
    view.lock("correlations", key)
    return row


# What goes with it


def _write_parts(view: View, plan: AdvancePlan, event_base: int, now: datetime) -> None:
    flow_key = plan.instance.flow_instance_id.int
    if plan.results:
        _write_results(view, plan, flow_key, now)
    if plan.put_states or plan.remove_states:
        _write_states(view, plan, flow_key, now)
    for timer in plan.schedule:
        view.timers.put(timer.timer_id.int, new_timer_row(timer, now))
    for timer_id in plan.cancel:
        drop_timer(view, timer_id.int)
    for held in plan.complete_timers:
        view.timers.remove(held.timer_id.int)
    for delivery in plan.complete_deliveries:
        key = (delivery.correlation_key, delivery.flow_instance_id.int, delivery.step_id)
        view.correlations.remove(key)
    for step_id, correlation_key in plan.drop_waits:
        drop_wait(view, (correlation_key, flow_key, step_id))
    if plan.is_terminal:
        _drop_everything(view, flow_key)
    if plan.add_waits:
        _add_waits(view, plan, now)
    _append_events(view, plan, event_base, now)


def _write_results(view: View, plan: AdvancePlan, flow_key: FlowKey, now: datetime) -> None:
    for result in plan.results:
        view.step_results.put(
            (flow_key, result.step_id),
            ResultRow(
                flow_key, result.step_id, StepStatus(result.status), result.outputs, result.error, result.attempt, now
            ),
        )


def _write_states(view: View, plan: AdvancePlan, flow_key: FlowKey, now: datetime) -> None:
    for step_id, text in plan.put_states:
        key = (flow_key, step_id)
        view.lock("component_states", key)
        row = view.component_states.get(key)
        version = row.version + 1 if row is not None and is_alive(row, now) else 1
        view.component_states.put(key, StateRow(plan.instance.flow_instance_id, step_id, text, version, None, now))
    for step_id in plan.remove_states:
        key = (flow_key, step_id)
        if view.component_states.get(key) is not None:
            view.lock("component_states", key)
            view.component_states.remove(key)


def is_alive(row: StateRow, now: datetime) -> bool:
    """Tells whether a component state has not expired."""
    return row.expires_at is None or row.expires_at > now


def new_timer_row(timer: PlannedTimer, now: datetime) -> TimerRow:
    """Returns the row of a timer that is scheduled now."""
    due_at = timer.due_at if timer.due_at is not None else now + (timer.after or timedelta(0))
    return TimerRow(
        timer_id=timer.timer_id,
        flow_instance_id=timer.flow_instance_id,
        step_id=timer.step_id,
        due_at=due_at,
        status=TimerStatus.PENDING,
        attempts=0,
        max_attempts=timer.max_attempts,
        payload=timer.payload,
    )


def drop_timer(view: View, key: int) -> bool:
    """Removes a timer; returns whether there was one."""
    if view.timers.get(key) is None:
        return False
    view.lock("timers", key)
    view.timers.remove(key)
    return True


def drop_wait(view: View, key: tuple[str, FlowKey, str]) -> None:
    """Removes a wait and what was delivered to it, if it is there."""
    if view.correlations.get(key) is not None:
        view.lock("correlations", key)
        view.correlations.remove(key)


def _drop_everything(view: View, flow_key: FlowKey) -> None:
    """Removes all timers and waits of a flow that ends, whoever made them."""
    for entry in list(view.timers.entries("flow", flow_key)):
        drop_timer(view, entry[-1])
    for entry in list(view.correlations.entries("flow", flow_key)):
        drop_wait(view, entry[-1])


def _add_waits(view: View, plan: AdvancePlan, now: datetime) -> None:
    keys = sorted({wait.correlation_key for wait in plan.add_waits})  # everybody takes several keys in one order
    for correlation_key in keys:
        view.lock("correlation key", correlation_key)
    for wait in plan.add_waits:
        row = WaitRow(
            correlation_key=wait.correlation_key,
            flow_instance_id=plan.instance.flow_instance_id,
            step_id=wait.step_id,
            created_at=now,
            expires_at=wait.expires_at,
            # Above every token of an earlier wait of the same key, flow and step: it came with a lower version.
            lease_token=(plan.instance.version + 1) << 32,
        )
        key = wait_key(row)
        view.lock("correlations", key)
        view.correlations.put(key, row)
    for correlation_key in keys:
        match_key(view, correlation_key, now)


def _append_events(view: View, plan: AdvancePlan, base: int, now: datetime) -> None:
    identity = plan.instance.flow_instance_id
    for sequence, event in enumerate(plan.events, start=base + 1):
        view.flow_events.put(
            (identity.int, sequence),
            HistoryRow(identity, sequence, event.event_type, event.payload, now, view.feed_position()),
        )
