"""Arguments of another kind than the one meant: an id for a flow, one timer for a list. The table behind a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import LEASE
from cascade_state.testing.contracts.refusals import Use

__all__ = ["OF_ANOTHER_KIND"]


async def _created(on: Any, flow: UUID, value: Any) -> object:
    return await on.advance(FlowInstance.create(value))


async def _advanced_at_version(on: Any, flow: UUID, value: Any) -> object:
    return await on.advance(replace(await on.flow_instances.get(flow), version=value))


async def _with_states(on: Any, flow: UUID, value: Any) -> object:
    return await on.advance(await on.flow_instances.get(flow), put_states=value)


# By what is given: the name of the argument, the call, and the wrong value.
OF_ANOTHER_KIND: Mapping[str, tuple[str, Use, Any]] = {
    "a filter as a mapping": ("filter", lambda on, flow, value: on.flow_instances.count(value), {"flow_id": "order"}),
    "a filter as a mapping, listed": ("filter", lambda on, flow, value: on.flow_instances.list_page(value), {"a": 1}),
    "a filter as text, claimed": (
        "filter",
        lambda on, flow, value: on.flow_instances.claim("w", filter=value, lease_duration=LEASE),
        "order",
    ),
    "a mapping to deploy": ("definition", lambda on, flow, value: on.flow_definitions.deploy(value), {"flow_id": "a"}),
    "an id for a definition": ("definition", _created, "order"),
    "an id for a delivery": ("deliveries", lambda on, flow, value: on.correlations.complete([value]), "parcel-77"),
    "an id for a delivery, tried again": (
        "delivery",
        lambda on, flow, value: on.correlations.retry(value, after=LEASE, error="boom"),
        "parcel-77",
    ),
    "an id for a flow": ("instance", lambda on, flow, value: on.advance(value), "flow-1"),
    "an id for a flow, added": ("instance", lambda on, flow, value: on.flow_instances.add(value), UUID(int=1)),
    "an id for a flow, among many": ("instance", lambda on, flow, value: on.flow_instances.add_many([value]), "flow-1"),
    "an id for a flow, released": ("instances", lambda on, flow, value: on.flow_instances.release([value]), "flow-1"),
    "an id for a timer": ("timers", lambda on, flow, value: on.timers.complete([value]), UUID(int=1)),
    "an id for a timer, tried again": (
        "timer",
        lambda on, flow, value: on.timers.retry(value, after=LEASE, error="boom"),
        UUID(int=1),
    ),
    "one delivery for a list": (
        "deliveries",
        lambda on, flow, value: on.correlations.release(value),
        factories.delivery(),
    ),
    "one flow for a list": ("instances", lambda on, flow, value: on.flow_instances.renew(value, LEASE), 7),
    "one timer for a list": ("timers", lambda on, flow, value: on.timers.release(value), factories.timer()),
    "states as a list": ("put_states", _with_states, ["charge"]),
    "a version that no database counts to": ("version", _advanced_at_version, 2**63),
    "a version as text": ("version", _advanced_at_version, "1"),
    "a version below 0": ("version", _advanced_at_version, -1),
}
