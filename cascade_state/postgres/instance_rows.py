"""From a record to a flow instance."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from cascade_state.errors import SerializationError
from cascade_state.model.documents import load
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus, StepStatus
from cascade_state.model.leases import Lease
from cascade_state.model.step_results import StepResult
from cascade_state.postgres.direct import Record

__all__ = ["instance_from_record", "lease_from_record", "load_optional"]


def instance_from_record(record: Record) -> FlowInstance:
    """Returns the flow instance of a record with `statements.flow_instances.instance_columns`.

    Raises:
        SerializationError: The row holds what this version cannot read.
    """
    try:
        return _instance(record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SerializationError(
            entity="flow instance",
            key=record["flow_instance_id"],
            reason=f"{type(error).__name__} while decoding",
        ) from error


def _instance(record: Record) -> FlowInstance:
    waits, pending_timers, results = record["waits"], record["pending_timers"], record["results"]
    search_attributes = record["search_attributes"]
    return FlowInstance(
        flow_instance_id=record["flow_instance_id"],
        root_id=record["root_id"],
        parent_id=record["parent_id"],
        flow_id=record["flow_id"],
        flow_version=record["flow_version"],
        status=FlowStatus(record["status"]),
        business_key=record["business_key"],
        trigger_data=load(record["trigger_data"]),
        step_results={} if results is None else dict(map(_result, load(results))),
        pending_timers={}
        if pending_timers is None
        else {step_id: UUID(timer_id) for step_id, timer_id in load(pending_timers).items()},
        waits={} if waits is None else _checked_waits(load(waits)),
        error=load_optional(record["error"]),
        search_attributes={} if search_attributes == "{}" else load(search_attributes),
        created_at=record["created_at"],
        updated_at=record["updated_at"],
        completed_at=record["completed_at"],
        version=record["version"],
        lease=lease_from_record(record),
    )


def _result(row: list[Any]) -> tuple[str, StepResult]:
    step_id, status, outputs, error, attempt, completed_at = row
    return step_id, StepResult(
        step_id=step_id,
        status=StepStatus(status),
        outputs=outputs,
        error=error,
        attempt=attempt,
        completed_at=datetime.fromisoformat(completed_at).astimezone(UTC),
    )


def _checked_waits(waits: Any) -> dict[str, str]:
    if not isinstance(waits, dict) or not all(isinstance(key, str) for key in waits.values()):
        raise TypeError("waits must map steps to keys")
    return waits


def lease_from_record(record: Record) -> Lease | None:
    """Returns the lease of a record with `lease_holder`, `lease_token`, `lease_expires_at`; None: nobody holds it."""
    holder = record["lease_holder"]
    if holder is None:
        return None
    return Lease(holder=holder, token=record["lease_token"], expires_at=record["lease_expires_at"])


def load_optional(text: str | None) -> Any:
    """Returns the document, or None for an SQL NULL."""
    return None if text is None else load(text)
