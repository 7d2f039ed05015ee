"""The effects of a consumer in the caller's own tables: a row for each event, and a sum for each flow."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import text

from cascade_state import Backoff, FlowEvent, UnitOfWork

__all__ = ["QUICK", "Effects", "keep_effects"]

QUICK: dict[str, Any] = {
    "batch_size": 5,
    "heartbeat_interval": timedelta(milliseconds=200),
    "stale_after": timedelta(seconds=1),
    "poll_interval": timedelta(milliseconds=500),
    "backoff": Backoff(initial=timedelta(milliseconds=50), maximum=timedelta(milliseconds=200)),
}

_TABLES = """
CREATE TABLE effects (
    number bigserial, flow uuid, sequence bigint, worker text, PRIMARY KEY (flow, sequence)
);
CREATE TABLE totals (flow uuid PRIMARY KEY, events bigint NOT NULL, checksum bigint NOT NULL)
"""
_EFFECT = text("INSERT INTO effects (flow, sequence, worker) VALUES (:flow, :sequence, :worker)")
_TOTAL = text(
    "INSERT INTO totals VALUES (:flow, 1, :sequence) ON CONFLICT (flow) DO UPDATE "
    "SET events = totals.events + 1, checksum = totals.checksum + excluded.checksum"
)


async def keep_effects(uow: UnitOfWork, events: list[FlowEvent], worker: str) -> None:
    """Writes the effects of a batch in its unit of work. The key refuses an event that has had its effect."""
    for event in events:
        values = {"flow": event.flow_instance_id, "sequence": event.sequence}
        await uow.connection.execute(_EFFECT, {**values, "worker": worker})
        await uow.connection.execute(_TOTAL, values)


class Effects:
    """Looks at what was done."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def make(self) -> None:
        await self._run("execute", _TABLES)

    async def workers(self) -> dict[str, int]:
        """Returns how many effects each worker had."""
        rows = await self._run("fetch", "SELECT worker, count(*) FROM effects GROUP BY worker")
        return {row[0]: row[1] for row in rows}

    async def check(self, expected: dict[UUID, int]) -> None:
        """Checks that each flow's events had their effect once, in order, and that the sums agree."""
        in_order: dict[UUID, list[int]] = defaultdict(list)
        for row in await self._run("fetch", "SELECT flow, sequence FROM effects ORDER BY number"):
            in_order[row["flow"]].append(row["sequence"])
        assert in_order == {flow: list(range(1, count + 1)) for flow, count in expected.items()}
        totals = {row[0]: (row[1], row[2]) for row in await self._run("fetch", "SELECT * FROM totals")}
        assert totals == {flow: (count, count * (count + 1) // 2) for flow, count in expected.items()}

    async def _run(self, method: str, sql: str) -> Any:
        connection = await asyncpg.connect(self._url)
        try:
            return await getattr(connection, method)(sql)
        finally:
            await connection.close()
