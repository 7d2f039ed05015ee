from __future__ import annotations

from collections.abc import AsyncIterator
from secrets import token_hex
from typing import Any

import pytest

from cascade_state import Store, open_store
from cascade_state.memory.store import MemoryStore
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts import OpenStore
from tests.contract.binding import bound_to
from tests.contract.memory_observer import MemoryObserver


class MemoryBackEnd:
    @pytest.fixture(name="observer")
    def make_observer(self) -> MemoryObserver:
        return MemoryObserver()

    @pytest.fixture
    def open_store_again(self, clock: FrozenClock, observer: MemoryObserver) -> OpenStore:
        url = f"memory://{token_hex(8)}"

        def open_again(**options: Any) -> Store:
            store = open_store(url, **{"clock": clock, **options})
            assert isinstance(store, MemoryStore)
            observer.stores.append(store)
            return store

        return open_again

    @pytest.fixture
    async def store(self, open_store_again: OpenStore) -> AsyncIterator[Store]:
        async with open_store_again() as store:
            yield store


globals().update(bound_to(MemoryBackEnd, __name__))
