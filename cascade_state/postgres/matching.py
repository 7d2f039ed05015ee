"""Runs the match of events and waits; see `statements.matching`."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

from cascade_state.model.correlations import Delivery
from cascade_state.model.documents import load
from cascade_state.postgres.direct import Statement
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.operations import Operation
from cascade_state.postgres.statements.matching import KEY_COLUMNS, MATCH, MATCH_UNLOCKED
from cascade_state.postgres.statements.parameters import columns

__all__ = ["match_keys"]


class _Matching(Operation[tuple[str, ...]]):
    """Matches some keys, of several callers at once."""

    def keys(self, item: tuple[str, ...]) -> Collection[Hashable]:
        return item

    def prepare(self, items: Sequence[tuple[str, ...]], executor: Executor) -> tuple[Statement, Mapping[str, Any]]:
        return MATCH, _values(items, executor)


_MATCHING = _Matching()


def _values(items: Sequence[tuple[str, ...]], executor: Executor) -> dict[str, Any]:
    rows = [
        (position, executor.partition_of_key(key), key, executor.lock_key("correlation", key))
        for position, keys in enumerate(items)
        for key in keys
    ]
    return {**columns("key", tuple(KEY_COLUMNS), rows), "now": executor.now()}


async def match_keys(executor: Executor, keys: Iterable[str], *, patient: bool = True) -> list[Delivery]:
    """Pairs the events and waits of some keys; returns the deliveries made now.

    Under a snapshot that was taken before (REPEATABLE READ and above) what others committed since cannot be
    seen; there nothing is paired, rows stay NEW, and the first `claim_delivered` a second later pairs them.

    Args:
        patient: Whether to wait for keys that somebody else has locked, or to leave them out.
    """
    item = tuple(dict.fromkeys(keys))
    if patient:
        records = await executor.each(_MATCHING, item)
    else:
        records = await executor.fetch(MATCH_UNLOCKED, _values((item,), executor))
    deliveries = [
        Delivery(
            correlation_key=record["correlation_key"],
            flow_instance_id=record["flow_instance_id"],
            step_id=record["step_id"],
            event_id=record["event_id"],
            payload=load(record["payload"]),
            delivered_at=record["delivered_at"],
        )
        for record in records
    ]
    for delivery in deliveries:
        executor.hint(executor.partition_of(delivery.flow_instance_id))
    return deliveries
