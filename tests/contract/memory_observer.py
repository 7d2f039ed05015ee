"""Sees a memory store from outside: what it still has open, and a way to damage it."""

from __future__ import annotations

from uuid import UUID

from cascade_state import Store
from cascade_state.memory.store import MemoryStore
from cascade_state.testing.contracts import Observer


class MemoryObserver(Observer):
    def __init__(self) -> None:
        self.stores: list[MemoryStore] = []

    async def open_transactions(self) -> list[str]:
        return [repr(transaction) for store in self.stores for transaction in store.open_transactions]

    async def make_undecodable(self, store: Store, flow_instance_id: UUID) -> None:
        assert isinstance(store, MemoryStore)
        rows = store._data.tables["flow_instances"]
        row = rows.get(flow_instance_id.int)
        assert row is not None
        rows.set(flow_instance_id.int, row._replace(trigger_data="{broken"))
