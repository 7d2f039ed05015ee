"""Hearing hints: one connection of a store that listens, for all of its listeners.

The connection lives as long as somebody listens, and is made again when it breaks; whatever was committed meanwhile is
made up for by a hint of every partition. Two things look like silence and are not: a connection that died without a
word, which a small query now and then finds out; and a transaction pooler in between, which takes LISTEN and never
hands a notification on. So every new connection is tried with a hint of our own, sent on another connection.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from cascade_state.abc.hints import HintListener, HintTopic
from cascade_state.errors import StoreError, StoreNotOpen
from cascade_state.postgres.direct import DriverConnection
from cascade_state.postgres.error_translation import translated
from cascade_state.postgres.hints import HintSender, read_hint

__all__ = ["HintReceiver", "PostgresHintListener"]

_log = logging.getLogger("cascade_state.hints")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_DEAF_PAUSE_SECONDS = 60.0  # a pooler that swallows notifications is not gone in a second
_PROBE_SECONDS = 5.0  # a notification takes milliseconds; a loaded machine some hundreds
_SIGN_OF_LIFE_SECONDS = 30.0


class HintReceiver:
    """The listeners of one store and the connection that they share.

    Args:
        connect: Opens a driver connection that leads to the server directly.
        sender: Sends the hint of our own, on another connection.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[DriverConnection]],
        sender: HintSender,
        partition_count: int,
    ) -> None:
        self.is_listening: bool = False
        self._connect = connect
        self._sender = sender
        self._everything = range(partition_count)
        self._listeners: dict[PostgresHintListener, HintTopic] = {}
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._answered = asyncio.Event()
        self._probe = ""

    async def add(self, listener: PostgresHintListener, topic: HintTopic) -> None:
        """Tells a listener from now on; returns when the connection listens, or could not be made at the first try."""
        self._listeners[listener] = topic
        if self._task is None:
            self._tried.clear()
            self._task = asyncio.get_running_loop().create_task(self._keep_listening())
        await self._tried.wait()

    async def remove(self, listener: PostgresHintListener) -> None:
        """Tells it no more; the last one closes the connection."""
        self._listeners.pop(listener, None)
        if not self._listeners:
            await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _keep_listening(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        try:
            while True:
                try:
                    await self._listen_once()
                    pause = _FIRST_PAUSE_SECONDS
                    _log.info("the connection that listens for hints broke")
                except StoreNotOpen:
                    return
                except _Deaf:
                    _log.warning(
                        "not listening for hints reason=%r",
                        "notifications do not arrive; a transaction pooler needs pooler= and direct_url=",
                    )
                    pause = _DEAF_PAUSE_SECONDS
                except (StoreError, TimeoutError) as error:
                    _log.warning("not listening for hints reason=%s", error)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._tried.set()
                await asyncio.sleep(pause)
        finally:
            self._tried.set()

    async def _listen_once(self) -> None:
        """Listens until the connection breaks.

        Raises:
            _Deaf: It hears nothing.
            StoreError, TimeoutError: It could not be made, or broke.
        """
        with translated():
            connection = await self._connect()
            try:
                await self._listen(connection)
                self._tried.set()
                await self._until_broken(connection)
            finally:
                self.is_listening = False
                connection.terminate()

    async def _listen(self, connection: DriverConnection) -> None:
        """Returns when the connection is known to hear.

        Raises:
            _Deaf: It is not.
        """
        self._answered.clear()
        self._probe = f"probe {secrets.token_hex(8)}"
        await connection.add_listener(self._sender.channel, self._on_notification)
        await self._sender.send([self._probe])
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._answered.wait()
        except TimeoutError:
            raise _Deaf from None
        self.is_listening = True
        if self._tried.is_set():  # not the first time: what was missed meanwhile?
            self._tell_everything()

    async def _until_broken(self, connection: DriverConnection) -> None:
        broken = asyncio.Event()
        connection.add_termination_listener(lambda *_: broken.set())
        while not connection.is_closed():
            with suppress(TimeoutError):
                async with asyncio.timeout(_SIGN_OF_LIFE_SECONDS):
                    await broken.wait()
            if not broken.is_set():
                await connection.fetchval("SELECT 1", timeout=_PROBE_SECONDS)

    def _on_notification(self, _connection: Any, _process: int, _channel: str, payload: object) -> None:
        text = str(payload)
        if text == self._probe:
            self._answered.set()
        hint = read_hint(text)
        if hint is not None:
            partition_id, topic = hint
            for listener, wanted in self._listeners.items():
                if wanted == topic:
                    listener.hear((partition_id,))

    def _tell_everything(self) -> None:
        for listener in self._listeners:
            listener.hear(self._everything)


class PostgresHintListener(HintListener):
    """See `HintListener`. Without a receiver it hears nothing."""

    def __init__(self, receiver: HintReceiver | None, topic: HintTopic) -> None:
        super().__init__()
        self._receiver = receiver
        self._topic = topic

    @property
    def is_listening(self) -> bool:
        return self._is_entered and self._receiver is not None and self._receiver.is_listening

    async def _start(self) -> None:
        if self._receiver is None:
            return
        try:
            await self._receiver.add(self, self._topic)
        except BaseException:
            await self._receiver.remove(self)
            raise

    async def _stop(self) -> None:
        if self._receiver is not None:
            await self._receiver.remove(self)


class _Deaf(Exception):
    """Notifications do not arrive on a connection that listens."""
