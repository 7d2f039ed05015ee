"""The feed of history events on PostgreSQL."""

from __future__ import annotations

from cascade_state.abc.events import Events
from cascade_state.abc.guards import Guard
from cascade_state.model.advance import Limits
from cascade_state.model.events import FlowEvent
from cascade_state.postgres.event_rows import BEGINNING, decode_feed_position, event_from_record
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.statements.events import READ_BEHIND, READ_FIRST, READ_PARTITION

__all__ = ["PostgresEvents"]


class PostgresEvents(Events):
    """See `Events`. A transaction that runs long, anywhere on the server, holds back what came after it."""

    def __init__(self, executor: Executor, guard: Guard, limits: Limits) -> None:
        super().__init__(guard, limits)
        self._executor = executor

    async def _read(self, after: str | None, limit: int, partition_id: int | None) -> list[FlowEvent]:
        if after is None and partition_id is None:
            records = await self._executor.fetch(READ_FIRST, {"limit": limit})
        else:
            xid, flow_instance_id, sequence = BEGINNING if after is None else decode_feed_position(after)
            values = {"after_xid": xid, "after_id": flow_instance_id, "after_sequence": sequence, "limit": limit}
            if partition_id is None:
                records = await self._executor.fetch(READ_BEHIND, values)
            else:
                records = await self._executor.fetch(READ_PARTITION, {**values, "partition_id": partition_id})
        return [event_from_record(record) for record in records]
