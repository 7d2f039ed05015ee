"""The third back end passes the contract suite, and what it keeps is there when it is opened again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from cascade_state import FlowInstance, Store, open_store
from cascade_state.abc import StoreOptions
from cascade_state.testing import FrozenClock, factories
from cascade_state.testing.contracts import OpenStore, SideBySideMachine, StoreContract
from cascade_state.testing.contracts.component_states import ComponentStatesContract
from cascade_state.testing.contracts.deliveries import DeliveriesContract
from cascade_state.testing.contracts.exporting import ExportingContract
from cascade_state.testing.contracts.flow_definitions import FlowDefinitionsContract
from cascade_state.testing.contracts.guards import GuardsContract
from cascade_state.testing.contracts.lock_sharing import LockSharingContract
from cascade_state.testing.contracts.lock_waits import LockWaitsContract
from cascade_state.testing.contracts.locks import LocksContract
from cascade_state.testing.contracts.removing import RemovingContract
from cascade_state.testing.contracts.timer_claims import TimerClaimsContract
from cascade_state.testing.contracts.transaction_locks import TransactionLocksContract
from cascade_state.testing.contracts.transactions import TransactionsContract
from tests.third_back_end.file_store import FileStore

# A back end of yours is bound to `every_contract()`. These are enough to show that the suite runs on another one.
_CONTRACTS = (
    ComponentStatesContract,
    DeliveriesContract,
    ExportingContract,
    FlowDefinitionsContract,
    GuardsContract,
    LockSharingContract,
    LockWaitsContract,
    LocksContract,
    RemovingContract,
    TimerClaimsContract,
    TransactionLocksContract,
    TransactionsContract,
)


class FileBackEnd:
    """What a back end gives to the contract classes."""

    @pytest.fixture
    def open_store_again(self, tmp_path: Path, clock: FrozenClock) -> OpenStore:
        def open_again(**options: Any) -> Store:
            return FileStore(f"file://{tmp_path / 'flows.json'}", StoreOptions(**{"clock": clock, **options}))

        return open_again

    @pytest.fixture
    async def store(self, open_store_again: OpenStore) -> AsyncIterator[Store]:
        async with open_store_again() as store:
            yield store


def _bound() -> dict[str, type[StoreContract]]:
    bound = {}
    for contract in _CONTRACTS:
        name = f"Test{contract.__name__.removesuffix('Contract')}"
        bound[name] = type(name, (FileBackEnd, contract), {"__module__": __name__})
    return bound


globals().update(_bound())


async def test_flows_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'flows.json'}"
    async with FileStore(url, StoreOptions()) as store:
        assert store.capabilities == replace(store.capabilities, durable=True)
        flow = await factories.add_flow(store, waits_for="parcel-77")
        await store.component_states.put(flow.flow_instance_id, "charge", {"attempts": 1})
    async with FileStore(url, StoreOptions()) as store:
        found = await store.flow_instances.get(flow.flow_instance_id)
        assert found == flow
        (delivery,) = await store.correlations.publish("parcel-77", {})
        assert delivery.flow_instance_id == flow.flow_instance_id
        assert (await store.component_states.get(flow.flow_instance_id, "charge")).state == {"attempts": 1}
        assert isinstance(found, FlowInstance)


def test_the_rule_machine_finds_no_difference_to_memory(tmp_path: Path) -> None:
    class FileBesideMemory(SideBySideMachine):
        def open_stores(
            self, clock: FrozenClock
        ) -> tuple[AbstractAsyncContextManager[Store], AbstractAsyncContextManager[Store]]:
            number = factories.unique("flows")
            options = StoreOptions(clock=clock, max_attempts=3)
            return open_store("memory://", clock=clock, max_attempts=3), FileStore(
                f"file://{tmp_path}/{number}", options
            )

    few = settings(max_examples=3, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    run_state_machine_as_test(FileBesideMemory, settings=few)
