"""Runs the match of events and waits; see `statements.matching`."""

from __future__ import annotations

from collections.abc import Iterable

from cascade_state.model.correlations import Delivery
from cascade_state.model.documents import load
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements.matching import KEY_COLUMNS, MATCH, MATCH_UNLOCKED
from cascade_state.postgres.statements.parameters import columns

__all__ = ["match_keys"]


async def match_keys(executor: Executor, keys: Iterable[str], *, patient: bool = True) -> list[Delivery]:
    """Pairs the events and waits of some keys; returns the deliveries made now.

    Under a snapshot that was taken before (REPEATABLE READ and above) what others committed since cannot be
    seen; there nothing is paired, rows stay NEW, and the first `claim_delivered` a second later pairs them.

    Args:
        patient: Whether to wait for keys that somebody else has locked, or to leave them out.
    """
    rows = [(executor.partition_of_key(key), key, executor.lock_key("correlation", key)) for key in dict.fromkeys(keys)]
    values = {**columns("key", tuple(KEY_COLUMNS), rows), "now": executor.now()}
    deliveries = [
        Delivery(
            correlation_key=record["correlation_key"],
            flow_instance_id=record["flow_instance_id"],
            step_id=record["step_id"],
            event_id=record["event_id"],
            payload=load(record["payload"]),
            delivered_at=record["delivered_at"],
        )
        for record in await executor.fetch(MATCH if patient else MATCH_UNLOCKED, values)
    ]
    for delivery in deliveries:
        executor.hint(executor.partition_of(delivery.flow_instance_id))
    return deliveries
