"""Errors: each with its facts, picklable, and harmless.

That only errors of the tree are raised is shown in `hostile_arguments`, that none shows anybody's data in `secrecy`.
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    AlreadyExists,
    CascadeStateError,
    ComponentStateNotFound,
    FlowDefinitionInUse,
    FlowDefinitionNotFound,
    FlowInstanceNotFound,
    InvalidArgument,
    InvalidDefinition,
    InvalidTransition,
    LeaseLost,
    TimerNotFound,
    VersionConflict,
)
from cascade_state.ids import new_flow_instance_id, new_timer_id
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.claiming import claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = ["ErrorsContract"]

_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class _Expected:
    """A call that fails, and the facts that its error must carry."""

    error: type[CascadeStateError]
    facts: Mapping[str, object]
    call: Callable[[], Awaitable[object]]


Provoke: TypeAlias = Callable[[Store], Awaitable[_Expected]]


async def _invalid_transition(store: Store) -> _Expected:
    flow = await store.advance((await factories.add_flow(store)).complete())
    facts = {"from_status": "COMPLETED", "to_status": "WAITING_FOR_TIMER"}
    schedule = store.timers.schedule
    return _Expected(InvalidTransition, facts, lambda: schedule(flow.flow_instance_id, "ship", after=_HOUR))


async def _invalid_argument(store: Store) -> _Expected:
    call = store.component_states.put
    payload = {"items": [{"price": float("nan")}]}
    facts = {"argument": "state", "path": "$.items[0].price"}
    return _Expected(InvalidArgument, facts, lambda: call(new_flow_instance_id(), "ship", payload))


async def _invalid_definition(store: Store) -> _Expected:
    definition = factories.flow_definition("order", steps=("charge", "ship", "charge"))
    facts = {"flow_id": "order", "step_id": "charge"}
    return _Expected(InvalidDefinition, facts, lambda: store.flow_definitions.deploy(definition))


async def _flow_definition_not_found(store: Store) -> _Expected:
    return _Expected(
        FlowDefinitionNotFound, {"entity": "flow definition"}, lambda: store.flow_definitions.get("nobody's")
    )


async def _flow_instance_not_found(store: Store) -> _Expected:
    unknown = new_flow_instance_id()
    facts = {"entity": "flow instance", "key": unknown}
    return _Expected(FlowInstanceNotFound, facts, lambda: store.flow_instances.get(unknown))


async def _component_state_not_found(store: Store) -> _Expected:
    flow = await factories.add_flow(store)
    call = store.component_states.get
    return _Expected(ComponentStateNotFound, {"entity": "component state"}, lambda: call(flow.flow_instance_id, "ship"))


async def _timer_not_found(store: Store) -> _Expected:
    unknown = new_timer_id(new_flow_instance_id())
    return _Expected(TimerNotFound, {"entity": "timer", "key": unknown}, lambda: store.timers.get(unknown))


async def _id_exists(store: Store) -> _Expected:
    definition = await factories.deploy_flow_definition(store)
    flow = factories.running_flow(definition)
    await store.flow_instances.add(flow)
    identity = flow.flow_instance_id
    facts = {"entity": "flow instance", "key": str(identity), "existing_id": identity}
    return _Expected(AlreadyExists, facts, lambda: store.flow_instances.add(flow))


async def _business_key_exists(store: Store) -> _Expected:
    definition = await factories.deploy_flow_definition(store)
    first = await factories.add_flow(store, definition, business_key="order-1")
    second = factories.running_flow(definition, business_key="order-1")
    facts = {"entity": "business key", "key": "order-1", "existing_id": first.flow_instance_id}
    return _Expected(AlreadyExists, facts, lambda: store.flow_instances.add(second))


async def _version_conflict(store: Store) -> _Expected:
    stale = await factories.add_flow(store)
    await store.advance(stale.complete_step("charge"))
    facts = {
        "expected_version": 1,
        "actual_version": 2,
        "entity": "flow instance",
        "key": stale.flow_instance_id,
    }
    return _Expected(VersionConflict, facts, lambda: store.advance(stale.complete_step("ship")))


async def _lease_lost(store: Store) -> _Expected:
    flow = await factories.add_flow(store)
    timer = await store.timers.schedule(flow.flow_instance_id, "ship", after=timedelta(0))
    (claimed,) = await claim_timers(store, "worker-7")
    assert claimed.lease is not None
    await store.timers.release([claimed])
    facts = {"entity": "timer", "key": timer.timer_id, "token": claimed.lease.token, "holder": "worker-7"}
    return _Expected(LeaseLost, facts, lambda: store.timers.complete([claimed]))


async def _definition_in_use(store: Store) -> _Expected:
    definition = await factories.deploy_flow_definition(store)
    for _ in range(2):
        await factories.add_flow(store, definition)
    facts = {"flow_id": definition.flow_id, "instance_count": 2}
    return _Expected(FlowDefinitionInUse, facts, lambda: store.flow_definitions.undeploy(definition.flow_id))


_PROVOKED: dict[str, Provoke] = {
    "AlreadyExists (business key)": _business_key_exists,
    "AlreadyExists (id)": _id_exists,
    "ComponentStateNotFound": _component_state_not_found,
    "FlowDefinitionInUse": _definition_in_use,
    "FlowDefinitionNotFound": _flow_definition_not_found,
    "FlowInstanceNotFound": _flow_instance_not_found,
    "InvalidArgument": _invalid_argument,
    "InvalidDefinition": _invalid_definition,
    "InvalidTransition": _invalid_transition,
    "LeaseLost": _lease_lost,
    "TimerNotFound": _timer_not_found,
    "VersionConflict": _version_conflict,
}


class ErrorsContract(StoreContract):
    """An error is of the tree and carries its facts."""

    @rule("Errors")
    @pytest.mark.parametrize("name", sorted(_PROVOKED))
    async def test_an_error_carries_its_facts(self, store: Store, name: str) -> None:
        expected = await _PROVOKED[name](store)
        with pytest.raises(expected.error) as caught:
            await expected.call()
        assert type(caught.value) is expected.error
        assert {fact: getattr(caught.value, fact) for fact in expected.facts} == expected.facts
        assert "\n" not in str(caught.value)

    @rule("Errors")
    @pytest.mark.parametrize("name", sorted(_PROVOKED))
    async def test_an_error_pickles_with_its_facts(self, store: Store, name: str) -> None:
        expected = await _PROVOKED[name](store)
        with pytest.raises(expected.error) as caught:
            await expected.call()
        copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
        assert type(copy) is expected.error
        assert str(copy) == str(caught.value)
        assert {fact: getattr(copy, fact) for fact in expected.facts} == expected.facts

    @rule("Errors", "C-04")
    @pytest.mark.parametrize("name", sorted(_PROVOKED))
    async def test_an_error_leaves_the_store_as_it_was(self, store: Store, name: str) -> None:
        expected = await _PROVOKED[name](store)
        before = await self._everything(store)
        for _ in range(2):
            with pytest.raises(expected.error):
                await expected.call()
        assert await self._everything(store) == before

    async def _everything(self, store: Store) -> tuple[object, ...]:
        """Returns what a call that failed must not have changed."""
        flows = (await store.flow_instances.list_page()).items
        identities = [flow.flow_instance_id for flow in flows]
        return (
            flows,
            await store.flow_definitions.list_latest(),
            await store.statistics(),
            [await store.flow_instances.history(identity) for identity in identities],
            [await store.component_states.list_for_instance(identity) for identity in identities],
            [await store.timers.list_for_instance(identity) for identity in identities],
        )
