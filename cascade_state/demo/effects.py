"""The books: an application table that is written in the same transaction as the step it belongs to.

Nothing in it is unique. If the store let a step happen twice, its row would be there twice; if it lost one, the
row would be missing. That is what the demo checks at the end.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Protocol

from cascade_state import Store, UnitOfWork

__all__ = ["Effect", "Effects", "ListedEffects", "TableEffects"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Something that a step did: it is `done`, or it `received` one event of several that it waits for."""

    business_key: str
    step_id: str
    what: str
    event_id: str | None = None
    amount: int = 0
    worker: str = ""
    generation: int | None = None  # of the flow's partition, as the worker owned it


class Effects(Protocol):
    """Where effects are recorded."""

    async def record(self, uow: UnitOfWork, effect: Effect) -> None:
        """Records an effect; it commits and rolls back with the unit of work."""

    async def list_all(self) -> list[Effect]:
        """Returns all effects in the order of their recording."""


class TableEffects:
    """Effects in a table of the application's own, beside the store's tables."""

    def __init__(self, store: Store) -> None:
        self._store = store
        schema = store.options.schema
        self._table = "demo_effects" if schema is None else f'"{schema}".demo_effects'

    async def create_table(self) -> None:
        """Makes the table."""
        async with self._store.begin() as uow:
            await uow.connection.exec_driver_sql(
                f"CREATE TABLE {self._table} (effect_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
                "business_key text NOT NULL, step_id text NOT NULL, what text NOT NULL, event_id text, "
                "amount bigint NOT NULL, worker text NOT NULL, generation bigint)"
            )

    async def record(self, uow: UnitOfWork, effect: Effect) -> None:
        """Records an effect in the transaction of `uow`."""
        await uow.connection.exec_driver_sql(
            f"INSERT INTO {self._table} (business_key, step_id, what, event_id, amount, worker, generation) "  # noqa: S608 - the schema is ours
            "VALUES ($1, $2, $3, $4, $5, $6, $7)",
            astuple(effect),
        )

    async def list_all(self) -> list[Effect]:
        """Returns all committed effects."""
        async with self._store.begin(read_only=True) as uow:
            rows = await uow.connection.exec_driver_sql(
                "SELECT business_key, step_id, what, event_id, amount, worker, generation "  # noqa: S608 - the schema is ours
                f"FROM {self._table} ORDER BY effect_id"
            )
            return [Effect(**row) for row in rows.mappings()]


class ListedEffects:
    """Effects in a list, for a store in memory, which runs no SQL. The engine records after it advanced, in one go."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []

    async def record(self, uow: UnitOfWork, effect: Effect) -> None:
        """Appends an effect."""
        self._effects.append(effect)

    async def list_all(self) -> list[Effect]:
        """Returns all effects."""
        return list(self._effects)
