from __future__ import annotations

from collections.abc import AsyncIterator
from secrets import token_hex
from typing import Any

import pytest

from cascade_state import Store, open_store
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts import OpenStore
from tests.contract.binding import bound_to


class MemoryBackEnd:
    @pytest.fixture
    def open_store_again(self, clock: FrozenClock) -> OpenStore:
        url = f"memory://{token_hex(8)}"

        def open_again(**options: Any) -> Store:
            return open_store(url, **{"clock": clock, **options})

        return open_again

    @pytest.fixture
    async def store(self, open_store_again: OpenStore) -> AsyncIterator[Store]:
        async with open_store_again() as store:
            yield store


globals().update(bound_to(MemoryBackEnd, __name__))
