"""The contenders: the store, its own SQL on bare asyncpg, and a plain SQLAlchemy ORM unit of work.

Bare asyncpg gets the very statements that the store sends, with arguments prepared beforehand, on connections that it
holds: that is the round trip and the server's work, and nothing else. The ORM unit of work does the same job in the way
its documentation shows: a session a step, rows loaded, changed and committed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from benchmarks.registry import Operation
from cascade_state import FlowInstance
from cascade_state.abc.advancing import Advancing
from cascade_state.abc.guards import Stage, StoreGuard
from cascade_state.abc.options import StoreOptions
from cascade_state.ids import partition_of
from cascade_state.model.advance import Limits
from cascade_state.postgres import tables
from cascade_state.postgres.direct import CompiledStatement, Statement, StatementCache
from cascade_state.postgres.engine import connect_arguments
from cascade_state.postgres.executor import ConnectionExecutor
from cascade_state.postgres.repositories import attach_repositories

__all__ = [
    "ORM",
    "Bare",
    "EventRow",
    "FlowRow",
    "Orm",
    "ResultRow",
    "StateRow",
    "TimerRow",
    "WaitRow",
    "identity",
    "merge_state",
]

ORM = "ORM"  # a plain SQLAlchemy ORM unit of work


class _Captured(Exception):
    """Everything that a call would send has been seen."""


class _Unsent:
    """A transaction without a connection, for statements that are written and not sent."""

    driver: Any = None
    is_untouched = False
    is_open = True

    async def start(self) -> None:
        raise AssertionError("nothing is sent in this transaction")


class _Recorder(ConnectionExecutor):
    """Notes the statements that a call would send, and sends nothing."""

    def __init__(self, count: int) -> None:
        super().__init__(StoreOptions(), StatementCache(None), _Unsent())
        self.sent: list[tuple[Statement, Mapping[str, Any]]] = []
        self._count = count

    async def fetch(self, statement: Statement, values: Mapping[str, Any]) -> list[Any]:
        self.sent.append((statement, dict(values)))
        if len(self.sent) == self._count:
            raise _Captured
        return [{}]


class Recording(Advancing):
    """The store's repositories, of which one call is recorded: `await recording.sends(lambda r: r.timers.…)`."""

    def __init__(self, count: int) -> None:
        self.recorder = _Recorder(count)
        guard = StoreGuard()
        guard.stage = Stage.OPEN
        self._limits = Limits()
        attach_repositories(self, self.recorder, guard, self._limits)  # type: ignore[arg-type]


class Bare:
    """Held asyncpg connections, and the store's statements ready to be sent."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.connections: list[asyncpg.Connection[Any]] = []
        self._texts: dict[Statement, CompiledStatement] = {}

    async def open(self, count: int) -> None:
        """Opens connections until there are `count`."""
        while len(self.connections) < count:
            arguments = connect_arguments(self._url, StoreOptions(application_name="bare"))
            self.connections.append(await asyncpg.connect(**arguments))

    async def close(self) -> None:
        """Closes the connections."""
        for connection in self.connections:
            await connection.close()

    async def sends(self, call: Callable[[Any], Awaitable[Any]], count: int = 1) -> list[tuple[str, list[Any]]]:
        """Returns the text and arguments of the `count` statements that a call on the store would send."""
        recording = Recording(count)
        try:
            await call(recording)
        except _Captured:
            return [self.ready(statement, values) for statement, values in recording.recorder.sent]
        raise AssertionError(f"the call sends fewer than {count} statements")

    def sending(self, sends: Sequence[Sequence[tuple[str, list[Any]]]], *, items: int = 1) -> Operation:
        """Returns the operation that sends each lane's statements, one a time."""

        async def operation(lane: int, index: int) -> int:
            text, arguments = sends[lane][index]
            records = await self.connections[lane].fetch(text, *arguments)
            assert records
            return items

        return operation

    def ready(self, statement: Statement, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Returns a statement's text and arguments."""
        compiled = self._texts.get(statement)
        if compiled is None:
            compiled = self._texts[statement] = CompiledStatement(statement, None)
        return compiled.text, compiled.arguments(values)


class Base(DeclarativeBase):
    """Mapped classes over the store's tables, as an application without the store would write them."""

    metadata = tables.metadata

    if TYPE_CHECKING:  # the columns come from the tables

        def __init__(self, **columns: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


class FlowRow(Base):
    """A flow instance; the ORM checks its version."""

    __table__ = tables.flow_instances
    __mapper_args__ = {"version_id_col": tables.flow_instances.c.version}  # noqa: RUF012 - SQLAlchemy's way


class ResultRow(Base):
    """A step result."""

    __table__ = tables.step_results


class StateRow(Base):
    """A component state."""

    __table__ = tables.component_states


class TimerRow(Base):
    """A timer."""

    __table__ = tables.timers


class WaitRow(Base):
    """A wait for an event."""

    __table__ = tables.correlations


class EventRow(Base):
    """A history event."""

    __table__ = tables.flow_events
    __mapper_args__ = {"exclude_properties": ["recorded_xid"]}  # noqa: RUF012 - the server fills it


class Orm:
    """A SQLAlchemy engine with its default pool, and sessions on it."""

    def __init__(self, url: str) -> None:
        self._engine: AsyncEngine = create_async_engine(
            url.replace("postgresql://", "postgresql+asyncpg://"), pool_size=64
        )
        self.session = async_sessionmaker(self._engine, expire_on_commit=False)

    async def close(self) -> None:
        """Closes the pool."""
        await self._engine.dispose()


def identity(flow_instance_id: Any) -> tuple[int, Any]:
    """Returns the primary key of a flow's row."""
    return partition_of(flow_instance_id, 256), flow_instance_id


async def merge_state(session: AsyncSession, flow: FlowInstance, step_id: str, state: Any) -> None:
    """Stores a component state over the one before, as a mapped object."""
    partition_id, flow_instance_id = identity(flow.flow_instance_id)
    row = await session.get(StateRow, (partition_id, flow_instance_id, step_id))
    if row is None:
        row = StateRow(partition_id=partition_id, flow_instance_id=flow_instance_id, step_id=step_id, version=0)
        session.add(row)
    row.state, row.updated_at = state, datetime.now(UTC)
    row.version += 1
