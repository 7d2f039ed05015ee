"""Valid values for tests: definitions and flows that a store accepts as they are, each under a fresh id.

Every function fills in what a test does not care about. Those that take a store or a unit of work also store the value
and return it as stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

from cascade_state.abc import Store, UnitOfWork
from cascade_state.ids import new_flow_instance_id, new_timer_id
from cascade_state.model.correlations import Delivery
from cascade_state.model.flow_definitions import FlowDefinition, StepDefinition, Trigger
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.leases import Lease
from cascade_state.model.timers import Timer
from cascade_state.types import JsonObject, JsonValue

__all__ = [
    "add_flow",
    "delivery",
    "deploy_flow_definition",
    "flow_definition",
    "flow_instance",
    "lease",
    "running_flow",
    "step_definition",
    "timer",
    "unique",
]

_INSTANT = datetime(2030, 1, 1, tzinfo=UTC)
_EMPTY: JsonObject = {}
_numbers = count(1)


def unique(prefix: str) -> str:
    """Returns `prefix` with a number that no earlier call in this process got."""
    return f"{prefix}-{next(_numbers)}"


def step_definition(step_id: str = "charge", *, run_after: Iterable[str] = ()) -> StepDefinition:
    """Returns a step that runs after the given ones."""
    return StepDefinition(step_id=step_id, component_type="http", run_after=tuple(run_after))


def flow_definition(
    flow_id: str | None = None,
    *,
    name: str = "Order fulfilment",
    steps: Iterable[str] = ("charge", "ship"),
    document: JsonObject | None = None,
    version: int | None = None,
) -> FlowDefinition:
    """Returns a definition whose steps run one after the other; not deployed unless `version` is given.

    Args:
        flow_id: None gives it a fresh one.
        version: Makes a value that looks deployed, for tests without a store.
    """
    step_ids = tuple(steps)
    before = ((), *((step_id,) for step_id in step_ids[:-1]))
    return FlowDefinition(
        flow_id=unique("flow") if flow_id is None else flow_id,
        name=name,
        trigger=Trigger(trigger_type="manual"),
        steps=tuple(
            step_definition(step_id, run_after=after) for step_id, after in zip(step_ids, before, strict=False)
        ),
        document={} if document is None else document,
        version=version,
        deployed_at=None if version is None else _INSTANT,
    )


async def deploy_flow_definition(
    target: Store | UnitOfWork, flow_id: str | None = None, *, name: str = "Order fulfilment"
) -> FlowDefinition:
    """Returns a deployed definition; another `name` makes another version."""
    return await target.flow_definitions.deploy(flow_definition(flow_id, name=name))


def flow_instance(
    definition: FlowDefinition | None = None,
    *,
    trigger_data: JsonValue = _EMPTY,
    business_key: str | None = None,
    search_attributes: JsonObject | None = None,
    flow_instance_id: UUID | None = None,
) -> FlowInstance:
    """Returns a new flow, INITIALIZING; of a definition of its own, which no store has, if none is given."""
    return FlowInstance.create(
        flow_definition(version=1) if definition is None else definition,
        trigger_data=trigger_data,
        business_key=business_key,
        search_attributes=search_attributes,
        flow_instance_id=flow_instance_id,
    )


def running_flow(definition: FlowDefinition | None = None, *, business_key: str | None = None) -> FlowInstance:
    """Returns a new flow, RUNNING."""
    return flow_instance(definition, business_key=business_key).start()


async def add_flow(
    target: Store | UnitOfWork,
    definition: FlowDefinition | None = None,
    *,
    business_key: str | None = None,
    search_attributes: JsonObject | None = None,
    waits_for: str | None = None,
    step_id: str = "ship",
    expires_at: datetime | None = None,
) -> FlowInstance:
    """Returns a stored flow: RUNNING, or with `step_id` waiting for the key `waits_for`.

    Args:
        definition: A deployed one; None deploys one of its own.
    """
    chosen = await deploy_flow_definition(target) if definition is None else definition
    flow = flow_instance(chosen, business_key=business_key, search_attributes=search_attributes).start()
    if waits_for is not None:
        flow = flow.suspend_for_event(step_id, waits_for, expires_at=expires_at)
    return await target.advance(flow)


def lease(holder: str = "worker-1", *, token: int = 1, expires_at: datetime | None = None) -> Lease:
    """Returns a lease of the caller's making; no store ever gave it."""
    return Lease(holder=holder, token=token, expires_at=expires_at or _INSTANT + timedelta(seconds=30))


def timer(flow_instance_id: UUID | None = None, *, step_id: str = "ship", held: Lease | None = None) -> Timer:
    """Returns a timer that no store has, held under `held`."""
    flow = new_flow_instance_id() if flow_instance_id is None else flow_instance_id
    return Timer(
        timer_id=new_timer_id(flow),
        flow_instance_id=flow,
        step_id=step_id,
        due_at=_INSTANT,
        max_attempts=20,
        lease=held,
    )


def delivery(flow_instance_id: UUID | None = None, *, step_id: str = "ship", held: Lease | None = None) -> Delivery:
    """Returns a delivery that no store has, held under `held`."""
    return Delivery(
        correlation_key=unique("key"),
        flow_instance_id=new_flow_instance_id() if flow_instance_id is None else flow_instance_id,
        step_id=step_id,
        event_id=unique("event"),
        delivered_at=_INSTANT,
        lease=held,
    )
