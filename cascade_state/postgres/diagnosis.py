"""Why a guarded write wrote nothing: the read that turns a missing record into a typed error."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from cascade_state.errors import (
    AlreadyExists,
    CascadeStateError,
    FlowDefinitionNotFound,
    FlowInstanceNotFound,
    LeaseLost,
    TransactionAborted,
    VersionConflict,
)
from cascade_state.model.advance import AdvancePlan, HeldDelivery, HeldTimer
from cascade_state.postgres.advance_values import BUSINESS_KEY_SCOPE
from cascade_state.postgres.direct import Record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements import deliveries as delivery_statements
from cascade_state.postgres.statements import flow_instances as statements
from cascade_state.postgres.statements import timers as timer_statements
from cascade_state.postgres.statements.parameters import columns
from cascade_state.postgres.statements.waits import held_values

__all__ = [
    "free_stale_key",
    "id_exists",
    "raise_lost_delivery",
    "raise_lost_timer",
    "raise_why_not_advanced",
    "why_not_added",
]


async def raise_why_not_advanced(executor: Executor, plan: AdvancePlan) -> None:
    """Raises the reason why a stored flow was not advanced; returns if it was a race that a repetition decides."""
    identity = plan.instance.flow_instance_id
    records = await executor.fetch(
        statements.DIAGNOSE, {"partition_id": executor.partition_of(identity), "flow_instance_id": identity}
    )
    if not records:
        raise FlowInstanceNotFound(key=identity)
    row = records[0]
    await _raise_lost_leases(executor, plan)
    lease = plan.lease
    if lease is not None and (row["lease_token"] != lease.token or row["lease_holder"] is None):
        raise LeaseLost(entity="flow instance", key=identity, token=lease.token, holder=lease.holder)
    if row["version"] != plan.instance.version:
        raise VersionConflict(
            entity="flow instance",
            key=identity,
            expected_version=plan.instance.version,
            actual_version=row["version"],
        )
    if not plan.is_terminal:
        raise TransactionAborted(reason="the flow changed and changed back while it was advanced")


async def why_not_added(executor: Executor, plan: AdvancePlan) -> CascadeStateError | None:
    """Returns the reason why a new flow was not inserted; None: it is gone, and adding it again decides."""
    await _raise_lost_leases(executor, plan)
    instance = plan.instance
    key = instance.business_key
    values = {
        "partition_id": executor.partition_of(instance.flow_instance_id),
        "flow_instance_id": instance.flow_instance_id,
        "flow_id": instance.flow_id,
        "flow_version": instance.flow_version,
        "key_partition_id": None if key is None else executor.partition_of_key(key),
        "key_scope": BUSINESS_KEY_SCOPE + instance.flow_id,
        "business_key": key,
    }
    row = (await executor.fetch(statements.DIAGNOSE_NEW, values))[0]
    if row["is_stored"]:
        if key is not None and row["key_holder"] == instance.flow_instance_id:
            # Usually its own. But whoever lost a race for the id took the key before it lost.
            await free_stale_key(executor, instance.flow_id, key, instance.flow_instance_id)
        return id_exists(plan)
    if not row["is_deployed"]:
        return FlowDefinitionNotFound(key=f"{instance.flow_id} version {instance.flow_version}")
    holder = row["key_holder"]
    if key is None or holder is None or await free_stale_key(executor, instance.flow_id, key, holder):
        return None
    return AlreadyExists(entity="business key", key=key, existing_id=holder)


async def free_stale_key(executor: Executor, flow_id: str, business_key: str, holder: UUID) -> bool:
    """Frees a business key whose holder was stored without it; returns whether it did.

    Whoever loses a race for a flow's id has taken the flow's key before, and frees it afterwards. If it dies in
    between, the next one who wants the key finds it here.
    """
    values = {
        "partition_id": executor.partition_of(holder),
        "flow_instance_id": holder,
        "key_partition_id": executor.partition_of_key(business_key),
        "key_scope": BUSINESS_KEY_SCOPE + flow_id,
        "business_key": business_key,
    }
    return bool(await executor.fetch(statements.FREE_KEY, values))


def id_exists(plan: AdvancePlan) -> AlreadyExists:
    """Returns the error for an id that is taken."""
    identity = plan.instance.flow_instance_id
    return AlreadyExists(entity="flow instance", key=str(identity), existing_id=identity)


async def _raise_lost_leases(executor: Executor, plan: AdvancePlan) -> None:
    """Raises for the first acknowledged timer or delivery whose lease is not current."""
    timers, deliveries = plan.complete_timers, plan.complete_deliveries
    if timers:
        rows = [(executor.partition_of(held.timer_id), held.timer_id, held.token) for held in timers]
        values = columns("held", tuple(timer_statements.HELD_COLUMNS), rows)
        raise_lost_timer(timers, await executor.fetch(timer_statements.HELD, values))
    if deliveries:
        values = held_values(executor, deliveries)
        raise_lost_delivery(deliveries, await executor.fetch(delivery_statements.HELD, values))


def raise_lost_timer(wanted: Iterable[HeldTimer], records: Iterable[Record]) -> None:
    """Raises `LeaseLost` for the first timer that is not among the records of those held; if there is one."""
    current = {(record["timer_id"], record["lease_token"]) for record in records}
    for held in wanted:
        if (held.timer_id, held.token) not in current:
            raise LeaseLost(entity="timer", key=held.timer_id, token=held.token, holder=held.holder)


def raise_lost_delivery(wanted: Iterable[HeldDelivery], records: Iterable[Record]) -> None:
    """Raises `LeaseLost` for the first delivery that is not among the records of those held; if there is one."""
    names = ("correlation_key", "flow_instance_id", "step_id", "lease_token")
    current = {tuple(record[name] for name in names) for record in records}
    for held in wanted:
        if (held.correlation_key, held.flow_instance_id, held.step_id, held.token) not in current:
            raise LeaseLost(entity="delivery", key=held.correlation_key, token=held.token, holder=held.holder)
