"""The public face as a table: every call of a store or a unit of work, with arguments that pass all checks.

Guards are tested with it: a finished unit of work refuses every call, a read-only one every write. The arguments name
nothing that is stored, so on an open store most of the calls find nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, TypeAlias

from cascade_state.abc import (
    ComponentStates,
    Correlations,
    Events,
    Feeds,
    FlowDefinitions,
    FlowInstances,
    ReplicaSets,
    Store,
    Timers,
    UnitOfWork,
)
from cascade_state.model.advance import Limits, plan_advance
from cascade_state.model.correlations import DeadLetter
from cascade_state.model.events import FlowEvent
from cascade_state.model.export import ExportDocument, ExportedFlow, export_document
from cascade_state.model.feeds import FeedBatch
from cascade_state.testing import factories

__all__ = ["CALLS", "REPOSITORIES", "Call", "public_methods"]

Target: TypeAlias = Store | UnitOfWork

REPOSITORIES: Mapping[str, type] = {
    "flow_definitions": FlowDefinitions,
    "flow_instances": FlowInstances,
    "component_states": ComponentStates,
    "correlations": Correlations,
    "timers": Timers,
    "events": Events,
    "replica_sets": ReplicaSets,
    "feeds": Feeds,
}

_AT = datetime(2030, 1, 1, tzinfo=UTC)
_LEASE = timedelta(seconds=30)
_DEFINITION = factories.flow_definition("calls", version=1)
_FLOW = factories.running_flow(_DEFINITION)
_ID = _FLOW.flow_instance_id
_STORED = replace(_FLOW, version=1, created_at=_AT, updated_at=_AT)
_HELD = replace(_STORED, lease=factories.lease())
_TIMER = factories.timer(_ID, held=factories.lease())
_DELIVERY = factories.delivery(_ID, held=factories.lease())
_EVENT = FlowEvent(
    flow_instance_id=_ID, sequence=1, event_type="flow_instance.created", recorded_at=_AT, position="position"
)
_BATCH = FeedBatch(consumer="invoices", partition_id=1, after="position", events=(_EVENT,))
_DEAD_LETTER = DeadLetter(correlation_key="key", event_id="event", payload={}, published_at=_AT, reason="expired")
_EXPORT = export_document(ExportDocument(definitions=(_DEFINITION,), flows=(ExportedFlow(instance=_STORED),)))


@dataclass(frozen=True, slots=True)
class Call:
    """One public call; `writes` says whether a read-only unit of work refuses it."""

    writes: bool
    run: Callable[[Any], Awaitable[object]]


def _reads(run: Callable[[Any], Awaitable[object]]) -> Call:
    return Call(False, run)


def _writes(run: Callable[[Any], Awaitable[object]]) -> Call:
    return Call(True, run)


async def _listed(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def public_methods() -> Iterator[str]:
    """Yields the name of every public coroutine or asynchronous generator of the repositories, and `advance`."""
    yield "advance"
    for repository, kind in REPOSITORIES.items():
        for name, member in vars(kind).items():
            if not name.startswith("_") and (iscoroutinefunction(member) or isasyncgenfunction(member)):
                yield f"{repository}.{name}"


CALLS: Mapping[str, Call] = {
    "advance": _writes(lambda on: on.advance(_FLOW)),
    "component_states.find": _reads(lambda on: on.component_states.find(_ID, "ship")),
    "component_states.get": _reads(lambda on: on.component_states.get(_ID, "ship")),
    "component_states.list_for_instance": _reads(lambda on: on.component_states.list_for_instance(_ID)),
    "component_states.put": _writes(lambda on: on.component_states.put(_ID, "ship", {})),
    "component_states.remove": _writes(lambda on: on.component_states.remove(_ID, "ship")),
    "correlations.cancel": _writes(lambda on: on.correlations.cancel(_ID, "ship")),
    "correlations.claim_delivered": _writes(lambda on: on.correlations.claim_delivered("w", lease_duration=_LEASE)),
    "correlations.complete": _writes(lambda on: on.correlations.complete([_DELIVERY])),
    "correlations.give_up": _writes(lambda on: on.correlations.give_up(_DELIVERY, reason="enough")),
    "correlations.list_dead_letters": _reads(lambda on: on.correlations.list_dead_letters()),
    "correlations.list_waiting": _reads(lambda on: on.correlations.list_waiting("key")),
    "correlations.next_delivery_at": _reads(lambda on: on.correlations.next_delivery_at()),
    "correlations.publish": _writes(lambda on: on.correlations.publish("key", {})),
    "correlations.release": _writes(lambda on: on.correlations.release([_DELIVERY])),
    "correlations.renew": _writes(lambda on: on.correlations.renew([_DELIVERY], _LEASE)),
    "correlations.republish": _writes(lambda on: on.correlations.republish(_DEAD_LETTER)),
    "correlations.retry": _writes(lambda on: on.correlations.retry(_DELIVERY, after=_LEASE, error="late")),
    "events.read": _reads(lambda on: on.events.read()),
    "feeds.complete": _writes(lambda on: on.feeds.complete(_BATCH)),
    "feeds.find": _reads(lambda on: on.feeds.find("invoices")),
    "feeds.find_news": _reads(lambda on: on.feeds.find_news("invoices", [1])),
    "feeds.get": _reads(lambda on: on.feeds.get("invoices")),
    "feeds.lag": _reads(lambda on: on.feeds.lag("invoices")),
    "feeds.list_consumers": _reads(lambda on: on.feeds.list_consumers()),
    "feeds.list_failing": _reads(lambda on: on.feeds.list_failing()),
    "feeds.pause": _writes(lambda on: on.feeds.pause("invoices")),
    "feeds.purge_events": _writes(lambda on: on.feeds.purge_events(_AT)),
    "feeds.read_batch": _writes(lambda on: on.feeds.read_batch("invoices", 1)),
    "feeds.register": _writes(lambda on: on.feeds.register("invoices")),
    "feeds.remove": _writes(lambda on: on.feeds.remove("invoices")),
    "feeds.reset": _writes(lambda on: on.feeds.reset("invoices")),
    "feeds.resume": _writes(lambda on: on.feeds.resume("invoices")),
    "feeds.retry": _writes(lambda on: on.feeds.retry("invoices", 1, error="late")),
    "flow_definitions.deploy": _writes(lambda on: on.flow_definitions.deploy(_DEFINITION)),
    "flow_definitions.find": _reads(lambda on: on.flow_definitions.find("calls")),
    "flow_definitions.get": _reads(lambda on: on.flow_definitions.get("calls")),
    "flow_definitions.list_latest": _reads(lambda on: on.flow_definitions.list_latest()),
    "flow_definitions.list_versions": _reads(lambda on: on.flow_definitions.list_versions("calls")),
    "flow_definitions.undeploy": _writes(lambda on: on.flow_definitions.undeploy("calls")),
    "flow_instances.add": _writes(lambda on: on.flow_instances.add(_FLOW)),
    "flow_instances.add_many": _writes(lambda on: on.flow_instances.add_many([_FLOW])),
    "flow_instances.claim": _writes(lambda on: on.flow_instances.claim("w", lease_duration=_LEASE)),
    "flow_instances.count": _reads(lambda on: on.flow_instances.count()),
    "flow_instances.export": _reads(lambda on: on.flow_instances.export(_ID)),
    "flow_instances.find": _reads(lambda on: on.flow_instances.find(_ID)),
    "flow_instances.find_by_business_key": _reads(lambda on: on.flow_instances.find_by_business_key("calls", "key")),
    "flow_instances.find_by_correlation": _reads(lambda on: on.flow_instances.find_by_correlation("key")),
    "flow_instances.get": _reads(lambda on: on.flow_instances.get(_ID)),
    "flow_instances.history": _reads(lambda on: on.flow_instances.history(_ID)),
    "flow_instances.import_": _writes(lambda on: on.flow_instances.import_(_EXPORT)),
    "flow_instances.iterate": _reads(lambda on: _listed(on.flow_instances.iterate())),
    "flow_instances.list_page": _reads(lambda on: on.flow_instances.list_page()),
    "flow_instances.purge": _writes(lambda on: on.flow_instances.purge(_AT)),
    "flow_instances.release": _writes(lambda on: on.flow_instances.release([_HELD])),
    "flow_instances.remove": _writes(lambda on: on.flow_instances.remove(_ID)),
    "flow_instances.renew": _writes(lambda on: on.flow_instances.renew([_HELD], _LEASE)),
    "flow_instances.save": _writes(lambda on: on.flow_instances.save(_FLOW)),
    "flow_instances.write": _writes(lambda on: on.flow_instances.write(plan_advance(_FLOW, limits=Limits()))),
    "replica_sets.beat": _writes(lambda on: on.replica_sets.beat("shipping", "w", stale_after=_LEASE)),
    "replica_sets.join": _writes(lambda on: on.replica_sets.join("shipping", "w", stale_after=_LEASE)),
    "replica_sets.leave": _writes(lambda on: on.replica_sets.leave("shipping", "w")),
    "replica_sets.list_assignments": _reads(lambda on: on.replica_sets.list_assignments("shipping")),
    "replica_sets.list_workers": _reads(lambda on: on.replica_sets.list_workers()),
    "timers.cancel": _writes(lambda on: on.timers.cancel(_TIMER.timer_id)),
    "timers.claim_due": _writes(lambda on: on.timers.claim_due("w", lease_duration=_LEASE)),
    "timers.complete": _writes(lambda on: on.timers.complete([_TIMER])),
    "timers.find": _reads(lambda on: on.timers.find(_TIMER.timer_id)),
    "timers.get": _reads(lambda on: on.timers.get(_TIMER.timer_id)),
    "timers.give_up": _writes(lambda on: on.timers.give_up(_TIMER, reason="enough")),
    "timers.list_dead": _reads(lambda on: on.timers.list_dead()),
    "timers.list_for_instance": _reads(lambda on: on.timers.list_for_instance(_ID)),
    "timers.next_due_at": _reads(lambda on: on.timers.next_due_at()),
    "timers.release": _writes(lambda on: on.timers.release([_TIMER])),
    "timers.renew": _writes(lambda on: on.timers.renew([_TIMER], _LEASE)),
    "timers.reschedule": _writes(lambda on: on.timers.reschedule(_TIMER.timer_id, _AT)),
    "timers.retry": _writes(lambda on: on.timers.retry(_TIMER, after=_LEASE, error="late")),
    "timers.revive": _writes(lambda on: on.timers.revive(_TIMER.timer_id)),
    "timers.schedule": _writes(lambda on: on.timers.schedule(_ID, "ship", due_at=_AT)),
}
