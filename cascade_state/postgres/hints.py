"""Hints: NOTIFY with a partition number when something in it may have become claimable, or has changed.

A hint is never the guarantee, only a shorter wait; whoever listens polls as well. It is sent outside the transaction
that wrote, after its commit: a NOTIFY inside a transaction takes a lock of the whole server at commit, and was measured
to cost sixteen committers 40 % of their rate. The first hint leaves at once, so that whoever waits is woken without
delay; those of the ten milliseconds behind it travel together, so that many commits cost few notifications. Inside a
caller's own transaction (`enlist`) nobody here knows when it commits, so no hint is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress

from sqlalchemy import Select, func, select

from cascade_state.abc.hints import HintTopic
from cascade_state.errors import StoreError, StoreNotOpen
from cascade_state.ids import hash_key
from cascade_state.postgres.direct import Statement, StatementCache
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.kept_connections import KeptConnections
from cascade_state.postgres.statements.parameters import TEXT, columns, param, relation

__all__ = ["HintSender", "hint_channel", "hint_payload", "read_hint"]

_log = logging.getLogger("cascade_state.hints")

_COALESCING_SECONDS = 0.01
_PREFIXES: dict[HintTopic, str] = {"work": "", "events": "e", "members": "m"}
_TOPICS = {prefix: topic for topic, prefix in _PREFIXES.items()}
_LETTERS = "".join(_TOPICS)


def hint_channel(schema: str | None) -> str:
    """Returns the channel of an installation: two schemas of one database do not wake each other."""
    return "cascade_state_hints" if schema is None else f"cascade_state_hints_{hash_key(schema):016x}"


def hint_payload(partition_id: int, topic: HintTopic = "work") -> str:
    """Returns what a notification carries: the number of the partition, after a letter for the topic."""
    return f"{_PREFIXES[topic]}{partition_id}"


def read_hint(payload: str) -> tuple[int, HintTopic] | None:
    """Returns what a notification says, None for one that is no hint."""
    number = payload.lstrip(_LETTERS)
    topic = _TOPICS.get(payload[: len(payload) - len(number)])
    if topic is None or not (number.isascii() and number.isdigit()):
        return None
    return int(number), topic


def _notify() -> Select[tuple[None]]:
    hints = relation("hint", {"payload": TEXT}).subquery("hints")
    return select(func.pg_notify(param("channel", TEXT), hints.c.payload))


_NOTIFY = Statement("hints.notify", _notify)


class HintSender:
    """Collects hints and sends them together."""

    def __init__(self, statements: StatementCache, kept: KeptConnections) -> None:
        self._statements = statements
        self._kept = kept
        self.channel: str = hint_channel(statements.schema)
        self._payloads: set[str] = set()
        self._sending: asyncio.Task[None] | None = None
        self._is_closing = asyncio.Event()

    def touch(self, payloads: Iterable[str]) -> None:
        """Notes what was committed where (`hint_payload`); returns at once."""
        self._payloads.update(payloads)
        if self._payloads and (self._sending is None or self._sending.done()):
            self._sending = asyncio.get_running_loop().create_task(self._send_all())

    async def close(self) -> None:
        """Sends what is left."""
        self._is_closing.set()
        if self._sending is not None:
            await asyncio.wait({self._sending})

    async def _send_all(self) -> None:
        while self._payloads:
            payloads, self._payloads = self._payloads, set()
            try:
                await self.send(sorted(payloads))
            except (StoreError, StoreNotOpen) as error:
                _log.info("hints lost count=%d reason=%s", len(payloads), error)
            with suppress(TimeoutError):
                async with asyncio.timeout(_COALESCING_SECONDS):
                    await self._is_closing.wait()

    async def send(self, payloads: Iterable[str]) -> None:
        """Sends notifications now."""
        values = columns("hint", ("payload",), [(payload,) for payload in payloads])
        kept = await self._kept.take()
        try:
            with translated():
                await self._statements.fetch(kept[1], _NOTIFY, {**values, "channel": self.channel})
        finally:
            self._kept.put_back(kept)
