from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cascade_state import Store, open_store
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts import OpenStore
from tests.contract.binding import bound_to
from tests.contract.postgres_observer import PostgresObserver

pytestmark = pytest.mark.postgres


class PostgresBackEnd:
    @pytest.fixture
    def open_store_again(self, database_url: str, clock: FrozenClock) -> OpenStore:
        def open_again(**options: Any) -> Store:
            return open_store(database_url, **{"clock": clock, **options})

        return open_again

    @pytest.fixture
    async def store(self, open_store_again: OpenStore) -> AsyncIterator[Store]:
        async with open_store_again() as store:
            yield store

    @pytest.fixture(name="observer")
    def make_observer(self, database_url: str) -> PostgresObserver:
        return PostgresObserver(database_url)


globals().update(bound_to(PostgresBackEnd, __name__))
