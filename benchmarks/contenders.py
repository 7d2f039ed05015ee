"""The three contenders of every benchmark: the store, its own SQL on bare asyncpg, and a plain SQLAlchemy ORM unit of work.

Bare asyncpg gets the very statements that the store sends, with arguments prepared beforehand, on connections
that it
holds: that is the round trip and the server's work, and nothing else. The ORM unit of work does the same job
in the way its documentation shows: a session a step, rows loaded, changed and committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from cascade_state.abc.options import StoreOptions
from cascade_state.ids import partition_of
from cascade_state.postgres import tables
from cascade_state.postgres.direct import CompiledStatement, Statement, StatementCache
from cascade_state.postgres.engine import connect_arguments
from cascade_state.postgres.executor import ConnectionExecutor

__all__ = ["Bare", "Base", "FlowRow", "Orm", "StateRow", "TimerRow"]


class Bare:
    """Held asyncpg connections, and the store's statements ready to be sent."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.connections: list[asyncpg.Connection[Any]] = []
        self._texts: dict[Statement, CompiledStatement] = {}
        # Prepares values as the store does; never sends anything.
        self.executor = ConnectionExecutor(StoreOptions(), StatementCache(None), None)  # type: ignore[arg-type]

    async def open(self, count: int) -> None:
        """Opens connections until there are `count`."""
        while len(self.connections) < count:
            arguments = connect_arguments(self._url, StoreOptions(application_name="bare"))
            self.connections.append(await asyncpg.connect(**arguments))

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close()

    def ready(self, statement: Statement, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Returns a statement's text and arguments."""
        compiled = self._texts.get(statement)
        if compiled is None:
            compiled = self._texts[statement] = CompiledStatement(statement, None)
        return compiled.text, compiled.arguments(values)


class Base(DeclarativeBase):
    """Mapped classes over the store's tables, as an application without the store would write them."""

    metadata = tables.metadata


class FlowRow(Base):
    __table__ = tables.flow_instances
    __mapper_args__ = {"version_id_col": tables.flow_instances.c.version}  # noqa: RUF012 - SQLAlchemy's way


class ResultRow(Base):
    __table__ = tables.step_results


class StateRow(Base):
    __table__ = tables.component_states


class TimerRow(Base):
    __table__ = tables.timers


class EventRow(Base):
    __table__ = tables.flow_events
    __mapper_args__ = {"exclude_properties": ["recorded_xid"]}  # noqa: RUF012 - the server fills it


class Orm:
    """A SQLAlchemy engine with its default pool, and sessions on it."""

    def __init__(self, url: str) -> None:
        self._engine: AsyncEngine = create_async_engine(
            url.replace("postgresql://", "postgresql+asyncpg://"), pool_size=20
        )
        self.session = async_sessionmaker(self._engine, expire_on_commit=False)

    async def close(self) -> None:
        await self._engine.dispose()


def identity(flow_instance_id: Any) -> tuple[int, Any]:
    """Returns the primary key of a flow's row."""
    return partition_of(flow_instance_id, 256), flow_instance_id
