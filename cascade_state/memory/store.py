"""The memory store: the entry object of the second back end."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING

from cascade_state.abc.capabilities import Capabilities
from cascade_state.abc.guards import Stage
from cascade_state.abc.hints import HintListener, HintTopic
from cascade_state.abc.locks import Locks
from cascade_state.abc.options import StoreOptions
from cascade_state.abc.store import Isolation, Store
from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.clock import SystemClock
from cascade_state.errors import InvalidArgument
from cascade_state.memory.advisory_locks import MemoryLocks
from cascade_state.memory.data import MemoryData, close_data, open_data
from cascade_state.memory.hints import MemoryHintListener
from cascade_state.memory.repositories import attach_repositories
from cascade_state.memory.runners import StoreRunner
from cascade_state.memory.statistics import statistics_of
from cascade_state.memory.transaction import Transaction
from cascade_state.memory.unit_of_work import MemoryUnitOfWork, refuse_sql
from cascade_state.model.arguments import check_instant
from cascade_state.model.statistics import Statistics

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

__all__ = ["MemoryStore"]

_CAPABILITIES = Capabilities(durable=False, cross_process=False, caller_sql=False, notify=False)


class MemoryStore(Store):
    """See `Store`. `memory://` is private to one opening, `memory://name` shared by all in this process.

    What it holds vanishes with the last opening. All openings of one name must be in one event loop.
    `transaction` says what its isolation levels give.
    """

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(options)
        scheme, separator, name = url.partition("://")
        if scheme.lower() != "memory" or not separator:
            raise InvalidArgument(argument="url", reason="must be memory:// or memory://name")
        self._name = name
        self._clock = options.clock or SystemClock()
        self._data: MemoryData
        self._runner = StoreRunner(self._clock)
        self.open_transactions: set[Transaction] = set()
        self._advisory_locks = MemoryLocks(self._guard, options)
        self.locks: Locks = self._advisory_locks
        attach_repositories(self, self._runner, self._guard, self._limits)

    @property
    def url(self) -> str:
        """`memory://` and the name, if there is one."""
        return f"memory://{self._name}"

    @property
    def capabilities(self) -> Capabilities:
        """Nothing outlives the process, nothing leaves it, and there is no SQL."""
        return _CAPABILITIES

    @property
    def is_open(self) -> bool:
        """Whether the store was entered and not left yet."""
        return self._guard.stage is Stage.OPEN

    async def now(self) -> datetime:
        self._guard.call(writes=False)
        return check_instant(self._clock.now(), "clock")

    async def migrate(self) -> None:
        """Does nothing: there is no schema to bring up."""
        self._guard.call(writes=True)

    async def check_schema(self) -> None:
        """Does nothing: there is no schema that could be another one."""
        self._guard.call(writes=False)

    async def statistics(self, *, exact: bool = False) -> Statistics:
        """Returns figures of the store."""
        self._guard.call(writes=False)
        return await self._runner.run(statistics_of)

    async def _open(self) -> None:
        self._data = open_data(self._name, self.options.partition_count)
        self._runner.open(self._data)
        self._advisory_locks.open(self._data)

    async def _close(self) -> None:
        self._runner.close()
        self._advisory_locks.close()
        # As when a connection closes: what was not committed is gone, and nobody waits for it any longer.
        for transaction in tuple(self.open_transactions):
            transaction.close()
        self.open_transactions.clear()
        close_data(self._name, self._data)

    def _listener(self, topic: HintTopic) -> HintListener:
        return MemoryHintListener(self._data.hints, topic)

    def _unit_of_work(self, isolation: Isolation | None, read_only: bool) -> UnitOfWork:
        transaction = Transaction(
            self._data, self._clock, isolation=isolation, application_name=self.options.application_name
        )
        return MemoryUnitOfWork(self, self._data, transaction, self._limits, read_only=read_only)

    def _enlist(self, session_or_connection: AsyncSession | AsyncConnection) -> AbstractAsyncContextManager[UnitOfWork]:
        raise refuse_sql()
