"""From a record to a timer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cascade_state.errors import SerializationError
from cascade_state.model.advance import PlannedTimer
from cascade_state.model.documents import load
from cascade_state.model.timers import Timer, TimerStatus
from cascade_state.postgres.direct import Record
from cascade_state.postgres.instance_rows import lease_from_record

__all__ = ["scheduled_timer", "timer_from_record", "timers_from_records"]


def timer_from_record(record: Record) -> Timer:
    """Returns the timer of a record with `statements.timers.timer_columns`.

    Raises:
        SerializationError: The row holds what this version cannot read.
    """
    try:
        return Timer(
            timer_id=record["timer_id"],
            flow_instance_id=record["flow_instance_id"],
            step_id=record["step_id"],
            due_at=record["due_at"],
            status=TimerStatus(record["status"]),
            attempts=record["attempts"],
            max_attempts=record["max_attempts"],
            payload=load(record["payload"]),
            last_error=record["last_error"],
            lease=lease_from_record(record),
        )
    except (ValueError, RecursionError) as error:
        raise SerializationError(
            entity="timer", key=record["timer_id"], reason=f"{type(error).__name__} while decoding"
        ) from error


def timers_from_records(records: Iterable[Record]) -> list[Timer]:
    """Returns the timers of records, in their order."""
    return [timer_from_record(record) for record in records]


def scheduled_timer(planned: PlannedTimer, due_at: Any) -> Timer:
    """Returns the timer that was just inserted, due at `due_at`."""
    return Timer(
        timer_id=planned.timer_id,
        flow_instance_id=planned.flow_instance_id,
        step_id=planned.step_id,
        due_at=due_at,
        max_attempts=planned.max_attempts,
        payload=load(planned.payload),
    )
