"""Hints: NOTIFY with a partition number when something in it may have become claimable.

A hint is never the guarantee, only a shorter wait; whoever listens polls as well. It is sent outside the transaction
that wrote, after its commit, and hints of about ten milliseconds travel together: a NOTIFY inside a transaction takes a
lock of the whole server at commit, and was measured to cost sixteen committers 40 % of their rate. Inside a caller's
own transaction (`enlist`) nobody here knows when it commits, so no hint is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from sqlalchemy import Select, func, select

from cascade_state.errors import StoreError, StoreNotOpen
from cascade_state.ids import hash_key
from cascade_state.postgres.connections import KeptConnections
from cascade_state.postgres.direct import Statement, StatementCache
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.statements.parameters import TEXT, columns, param, relation

__all__ = ["HintSender", "hint_channel"]

_log = logging.getLogger("cascade_state.hints")

_COALESCING_SECONDS = 0.01


def hint_channel(schema: str | None) -> str:
    """Returns the channel of an installation: two schemas of one database do not wake each other."""
    return "cascade_state_hints" if schema is None else f"cascade_state_hints_{hash_key(schema):016x}"


def _notify() -> Select[tuple[None]]:
    partitions = relation("partition", {"number": TEXT}).subquery("partitions")
    return select(func.pg_notify(param("channel", TEXT), partitions.c.number))


_NOTIFY = Statement("hints.notify", _notify)


class HintSender:
    """Collects partitions and notifies them together."""

    def __init__(self, statements: StatementCache, kept: KeptConnections) -> None:
        self._statements = statements
        self._kept = kept
        self._channel = hint_channel(statements.schema)
        self._partitions: set[int] = set()
        self._sending: asyncio.Task[None] | None = None

    def touch(self, partitions: Iterable[int]) -> None:
        """Notes partitions in which something was committed; returns at once."""
        self._partitions.update(partitions)
        if self._partitions and (self._sending is None or self._sending.done()):
            self._sending = asyncio.get_running_loop().create_task(self._send_soon())

    async def close(self) -> None:
        """Sends what is left."""
        if self._sending is not None:
            await asyncio.wait({self._sending})

    async def _send_soon(self) -> None:
        while self._partitions:
            await asyncio.sleep(_COALESCING_SECONDS)
            partitions, self._partitions = self._partitions, set()
            try:
                await self._send(partitions)
            except (StoreError, StoreNotOpen) as error:
                _log.info("hint lost partitions=%d reason=%s", len(partitions), error)

    async def _send(self, partitions: set[int]) -> None:
        values = columns("partition", ("number",), [(str(partition),) for partition in sorted(partitions)])
        kept = await self._kept.take()
        try:
            with translated():
                await self._statements.fetch(kept[1], _NOTIFY, {**values, "channel": self._channel})
        finally:
            self._kept.put_back(kept)
