"""Every place where a JSON document of the caller's is stored: how it is written there, and how it is read back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from cascade_state.abc import Store
from cascade_state.model.events import NewEvent
from cascade_state.model.flow_definitions import FlowDefinition, StepDefinition, Trigger
from cascade_state.model.timers import ScheduleTimer
from cascade_state.testing import factories

__all__ = ["PLACES", "Place"]

_LEASE = timedelta(seconds=30)
Read = Callable[[Store], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document is stored.

    `write(store, document)` stores it and returns the document as the call returned it (None where the call returns no
    such thing), with a function that reads it from a store. `argument` and `prefix` are how a refusal names it.
    """

    write: Callable[[Store, Any], Awaitable[tuple[Any, Read]]]
    argument: str
    prefix: str = "$"
    objects_only: bool = False


async def _trigger_data(store: Store, document: Any) -> tuple[Any, Read]:
    definition = await factories.deploy_flow_definition(store)
    flow = await store.advance(factories.flow_instance(definition, trigger_data=document))

    async def read(on: Store) -> Any:
        return (await on.flow_instances.get(flow.flow_instance_id)).trigger_data

    return flow.trigger_data, read


async def _search_attributes(store: Store, document: Any) -> tuple[Any, Read]:
    definition = await factories.deploy_flow_definition(store)
    flow = await store.advance(factories.flow_instance(definition, search_attributes=document))

    async def read(on: Store) -> Any:
        return (await on.flow_instances.get(flow.flow_instance_id)).search_attributes

    return flow.search_attributes, read


async def _outputs(store: Store, document: Any) -> tuple[Any, Read]:
    flow = await factories.add_flow(store)
    stored = await store.advance(flow.complete_step("charge", document))

    async def read(on: Store) -> Any:
        return (await on.flow_instances.get(flow.flow_instance_id)).step_results["charge"].outputs

    return stored.step_results["charge"].outputs, read


async def _step_error(store: Store, document: Any) -> tuple[Any, Read]:
    flow = await factories.add_flow(store)
    stored = await store.advance(flow.fail_step("charge", document))

    async def read(on: Store) -> Any:
        return (await on.flow_instances.get(flow.flow_instance_id)).step_results["charge"].error

    return stored.step_results["charge"].error, read


async def _flow_error(store: Store, document: Any) -> tuple[Any, Read]:
    flow = await factories.add_flow(store)
    stored = await store.advance(flow.fail(document))

    async def read(on: Store) -> Any:
        return (await on.flow_instances.get(flow.flow_instance_id)).error

    return stored.error, read


async def _cancel_reason(store: Store, document: Any) -> tuple[Any, Read]:
    flow = await factories.add_flow(store)
    stored = await store.advance(flow.cancel(document))

    async def read(on: Store) -> Any:
        (found,) = (await on.flow_instances.list_page()).items[-1:]
        return found.error

    return stored.error, read


async def _state(store: Store, document: Any) -> tuple[Any, Read]:
    flow = await factories.add_flow(store)
    stored = await store.component_states.put(flow.flow_instance_id, "charge", document)

    async def read(on: Store) -> Any:
        return (await on.component_states.get(flow.flow_instance_id, "charge")).state

    return stored.state, read


async def _put_states(store: Store, document: Any) -> tuple[Any, Read]:
    flow = await factories.add_flow(store)
    await store.advance(flow.complete_step("charge"), put_states={"charge": document})

    async def read(on: Store) -> Any:
        (state,) = await on.component_states.list_for_instance(flow.flow_instance_id)
        return state.state

    return None, read


async def _timer(store: Store, document: Any) -> tuple[Any, Read]:
    flow = await factories.add_flow(store)
    timer = await store.timers.schedule(flow.flow_instance_id, "charge", after=_LEASE, payload=document)

    async def read(on: Store) -> Any:
        return (await on.timers.get(timer.timer_id)).payload

    return timer.payload, read


async def _scheduled(store: Store, document: Any) -> tuple[Any, Read]:
    flow = await factories.add_flow(store)
    timer = ScheduleTimer("charge", after=_LEASE, payload=document)
    await store.advance(flow.complete_step("charge"), schedule=[timer])

    async def read(on: Store) -> Any:
        (found,) = await on.timers.list_for_instance(flow.flow_instance_id)
        return found.payload

    return None, read


async def _published(store: Store, document: Any) -> tuple[Any, Read]:
    key = factories.unique("key")
    await factories.add_flow(store, waits_for=key)
    (delivery,) = await store.correlations.publish(key, document)

    async def read(on: Store) -> Any:
        async with on.begin() as uow:
            claimed = await uow.correlations.claim_delivered("worker-1", limit=1000, lease_duration=_LEASE)
            await uow.rollback()  # so that it can be read again
        return next(item.payload for item in claimed if item.correlation_key == key)

    return delivery.payload, read


async def _kept(store: Store, document: Any) -> tuple[Any, Read]:
    key = factories.unique("key")
    assert await store.correlations.publish(key, document) == []
    await factories.add_flow(store, waits_for=key)

    async def read(on: Store) -> Any:
        async with on.begin() as uow:
            claimed = await uow.correlations.claim_delivered("worker-1", limit=1000, lease_duration=_LEASE)
            await uow.rollback()
        return next(item.payload for item in claimed if item.correlation_key == key)

    return None, read


async def _worker(store: Store, document: Any) -> tuple[Any, Read]:
    worker_id = factories.unique("worker")
    await store.replica_sets.join("shipping", worker_id, stale_after=_LEASE, metadata=document)

    async def read(on: Store) -> Any:
        workers = await on.replica_sets.list_workers("shipping", limit=1000)
        return next(worker.metadata for worker in workers if worker.worker_id == worker_id)

    return None, read


async def _event(store: Store, document: Any) -> tuple[Any, Read]:
    flow = await factories.add_flow(store)
    await store.advance(flow, events=[NewEvent("noted", document)])

    async def read(on: Store) -> Any:
        history = await on.flow_instances.history(flow.flow_instance_id)
        return history[-1].payload

    return None, read


def _definition_with(
    change: Callable[[FlowDefinition, Any], FlowDefinition], pick: Callable[[FlowDefinition], Any]
) -> Callable[[Store, Any], Awaitable[tuple[Any, Read]]]:
    async def write(store: Store, document: Any) -> tuple[Any, Read]:
        deployed = await store.flow_definitions.deploy(change(factories.flow_definition(), document))

        async def read(on: Store) -> Any:
            return pick(await on.flow_definitions.get(deployed.flow_id))

        return pick(deployed), read

    return write


def _with_step(definition: FlowDefinition, **changes: Any) -> FlowDefinition:
    return replace(definition, steps=(StepDefinition(step_id="charge", component_type="http", **changes),))


PLACES: Mapping[str, Place] = {
    "cancel.reason": Place(_cancel_reason, "error"),
    "complete_step.outputs": Place(_outputs, "outputs"),
    "component_states.put.state": Place(_state, "state"),
    "correlations.publish.payload": Place(_published, "payload"),
    "correlations.publish.payload, kept": Place(_kept, "payload"),
    "create.search_attributes": Place(_search_attributes, "search_attributes", objects_only=True),
    "create.trigger_data": Place(_trigger_data, "trigger_data"),
    "definition.document": Place(
        _definition_with(lambda definition, value: replace(definition, document=value), lambda found: found.document),
        "definition",
        "$.document",
        objects_only=True,
    ),
    "fail.error": Place(_flow_error, "error"),
    "fail_step.error": Place(_step_error, "error"),
    "new_event.payload": Place(_event, "events"),
    "put_states": Place(_put_states, "put_states", "$.charge"),
    "schedule.payload": Place(_scheduled, "payload"),
    "replica_sets.join.metadata": Place(_worker, "metadata", objects_only=True),
    "step.config": Place(
        _definition_with(
            lambda definition, value: _with_step(definition, config=value), lambda found: found.steps[0].config
        ),
        "definition",
        "$.steps[0].config",
        objects_only=True,
    ),
    "step.input_mapping": Place(
        _definition_with(
            lambda definition, value: _with_step(definition, input_mapping=value),
            lambda found: found.steps[0].input_mapping,
        ),
        "definition",
        "$.steps[0].input_mapping",
        objects_only=True,
    ),
    "timers.schedule.payload": Place(_timer, "payload"),
    "trigger.config": Place(
        _definition_with(
            lambda definition, value: replace(definition, trigger=Trigger(trigger_type="manual", config=value)),
            lambda found: None if found.trigger is None else found.trigger.config,
        ),
        "definition",
        "$.trigger.config",
        objects_only=True,
    ),
}
