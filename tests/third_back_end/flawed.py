"""The contract classes bound to back ends that have a mistake in them: `pytest flawed.py` must fail.

Not collected by the suite: `test_flaws.py` runs it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cascade_state import Store
from cascade_state.abc import StoreOptions
from cascade_state.testing import FrozenClock
from cascade_state.testing.contracts import OpenStore, StoreContract
from cascade_state.testing.contracts.component_states import ComponentStatesContract
from cascade_state.testing.contracts.locks import LocksContract
from cascade_state.testing.contracts.timer_claims import TimerClaimsContract
from cascade_state.testing.contracts.transactions import TransactionsContract
from tests.third_back_end.file_store import FileStore, Flaw

WHERE_IT_SHOWS: dict[Flaw, type[StoreContract]] = {
    Flaw.KEEPS_WHAT_WAS_ROLLED_BACK: TransactionsContract,
    Flaw.OVERWRITES_NEWER_STATES: ComponentStatesContract,
    Flaw.CLAIMS_WITHOUT_A_LEASE: TimerClaimsContract,
    Flaw.SEES_NO_LOCKS: LocksContract,
}


class FlawedBackEnd:
    flaw: Flaw | None = None

    @pytest.fixture
    def open_store_again(self, tmp_path: Path, clock: FrozenClock) -> OpenStore:
        def open_again(**options: Any) -> Store:
            whole = StoreOptions(**{"clock": clock, **options})
            return FileStore(f"file://{tmp_path / 'flows.json'}", whole, flaw=self.flaw)

        return open_again

    @pytest.fixture
    async def store(self, open_store_again: OpenStore) -> AsyncIterator[Store]:
        async with open_store_again() as store:
            yield store


for _flaw, _contract in WHERE_IT_SHOWS.items():
    _name = f"Test{_flaw.name}"
    globals()[_name] = type(_name, (FlawedBackEnd, _contract), {"__module__": __name__, "flaw": _flaw})
