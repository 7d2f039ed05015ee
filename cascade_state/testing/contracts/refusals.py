"""Values that cannot be stored, and every argument that refuses them: the tables behind `refused_values`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from cascade_state.model.correlations import DeadLetter
from cascade_state.model.events import NewEvent
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import FlowStatus
from cascade_state.model.timers import ScheduleTimer
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import LEASE

__all__ = [
    "BAD_DURATIONS",
    "BAD_INSTANTS",
    "BAD_KEYS",
    "CURSORS",
    "DOCUMENTS",
    "DURATIONS",
    "IDS",
    "INSTANTS",
    "KEYS",
    "LIMITS",
    "OPTIONAL_KEYS",
    "OTHERS",
    "Use",
]

_AT = datetime(2030, 1, 1, tzinfo=UTC)
_NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - the point of it

# What a document must not hold, and where the error says that it is.
DOCUMENTS: dict[str, tuple[Any, str]] = {
    "NaN": ({"a": [1, float("nan")]}, ".a[1]"),
    "infinity": ({"a": {"b c": float("inf")}}, ".a['b c']"),
    "negative infinity": ({"a": (0, 1, float("-inf"))}, ".a[2]"),
    "NUL in a text": ({"a": "b\x00c"}, ".a"),
    "NUL in a key": ({"a": {"b\x00c": 1}}, ".a"),
    "surrogate in a text": ({"a": ["\ud800"]}, ".a[0]"),
    "surrogate in a key": ({"\udfff": 1}, ""),
    "key that is a number": ({"a": [{1: 2}]}, ".a[0]"),
    "key that is None": ({None: 2}, ""),
    "key that is bytes": ({b"a": 2}, ""),
    "Decimal": ({"price": Decimal("1.5")}, ".price"),
    "datetime": ({"at": _AT}, ".at"),
    "UUID": ({"flow": UUID(int=1)}, ".flow"),
    "bytes": ({"blob": b""}, ".blob"),
    "set": ({"some": {1}}, ".some"),
    "object": ({"it": object()}, ".it"),
    "complex": ({"z": 1j}, ".z"),
}

Use: TypeAlias = Callable[[Any, UUID, Any], Awaitable[object]]


def _advance(**extras: Callable[[Any], Any]) -> Use:
    async def run(on: Any, flow: UUID, value: Any) -> object:
        current = await on.flow_instances.get(flow)
        return await on.advance(current, **{name: make(value) for name, make in extras.items()})

    return run


def _changed(change: Callable[[FlowInstance, Any], FlowInstance]) -> Use:
    async def run(on: Any, flow: UUID, value: Any) -> object:
        return await on.advance(change(await on.flow_instances.get(flow), value))

    return run


def _filter(name: str) -> Use:
    return lambda on, flow, value: on.flow_instances.list_page(FlowInstanceFilter(**{name: value}))


def _created(**options: str) -> Use:
    async def run(on: Any, flow: UUID, value: Any) -> object:
        stored = await on.flow_instances.get(flow)
        definition = await on.flow_definitions.get(stored.flow_id)
        return await on.advance(FlowInstance.create(definition, **dict.fromkeys(options, value)))

    return run


# Argument as the error names it, then the call that passes the value there.
KEYS: Mapping[str, tuple[str, Use]] = {
    "beat": ("replica_set", lambda on, flow, value: on.replica_sets.beat(value, "w", stale_after=LEASE)),
    "beat, worker": ("worker_id", lambda on, flow, value: on.replica_sets.beat("set", value, stale_after=LEASE)),
    "business key": ("business_key", _created(business_key="")),
    "cancel a wait": ("step_id", lambda on, flow, value: on.correlations.cancel(flow, value)),
    "claim": ("holder", lambda on, flow, value: on.flow_instances.claim(value, lease_duration=LEASE)),
    "claim_delivered": ("holder", lambda on, flow, value: on.correlations.claim_delivered(value, lease_duration=LEASE)),
    "claim_due": ("holder", lambda on, flow, value: on.timers.claim_due(value, lease_duration=LEASE)),
    "complete_step": ("step_id", _changed(lambda flow, value: flow.complete_step(value))),
    "event id": ("event_id", lambda on, flow, value: on.correlations.publish("key", event_id=value)),
    "event type": ("event_type", _advance(events=lambda value: [NewEvent(value)])),
    "feed consumer": ("consumer", lambda on, flow, value: on.feeds.register(value)),
    "feed consumer, lag": ("consumer", lambda on, flow, value: on.feeds.lag(value)),
    "feed consumer, pause": ("consumer", lambda on, flow, value: on.feeds.pause(value)),
    "feed consumer, read_batch": ("consumer", lambda on, flow, value: on.feeds.read_batch(value, 1)),
    "feed consumer, remove": ("consumer", lambda on, flow, value: on.feeds.remove(value)),
    "feed consumer, reset": ("consumer", lambda on, flow, value: on.feeds.reset(value)),
    "fail_step": ("step_id", _changed(lambda flow, value: flow.fail_step(value, "error"))),
    "filter by flow id": ("flow_id", _filter("flow_id")),
    "find a definition": ("flow_id", lambda on, flow, value: on.flow_definitions.find(value)),
    "find a state": ("step_id", lambda on, flow, value: on.component_states.find(flow, value)),
    "find by business key": (
        "business_key",
        lambda on, flow, value: on.flow_instances.find_by_business_key("flow", value),
    ),
    "find by business key, flow id": (
        "flow_id",
        lambda on, flow, value: on.flow_instances.find_by_business_key(value, "key"),
    ),
    "find_by_correlation": ("correlation_key", lambda on, flow, value: on.flow_instances.find_by_correlation(value)),
    "get a definition": ("flow_id", lambda on, flow, value: on.flow_definitions.get(value)),
    "get a state": ("step_id", lambda on, flow, value: on.component_states.get(flow, value)),
    "idempotency key": (
        "idempotency_key",
        lambda on, flow, value: on.timers.schedule(flow, "charge", after=LEASE, idempotency_key=value),
    ),
    "join": ("replica_set", lambda on, flow, value: on.replica_sets.join(value, "w", stale_after=LEASE)),
    "join, worker": ("worker_id", lambda on, flow, value: on.replica_sets.join("set", value, stale_after=LEASE)),
    "leave": ("replica_set", lambda on, flow, value: on.replica_sets.leave(value, "w")),
    "leave, worker": ("worker_id", lambda on, flow, value: on.replica_sets.leave("set", value)),
    "list_assignments": ("replica_set", lambda on, flow, value: on.replica_sets.list_assignments(value)),
    "list_versions": ("flow_id", lambda on, flow, value: on.flow_definitions.list_versions(value)),
    "list_waiting": ("correlation_key", lambda on, flow, value: on.correlations.list_waiting(value)),
    "list_workers": ("replica_set", lambda on, flow, value: on.replica_sets.list_workers(value)),
    "publish": ("correlation_key", lambda on, flow, value: on.correlations.publish(value)),
    "put": ("step_id", lambda on, flow, value: on.component_states.put(flow, value, {})),
    "put_states": ("put_states", _advance(put_states=lambda value: {value: {}})),
    "remove a state": ("step_id", lambda on, flow, value: on.component_states.remove(flow, value)),
    "remove_states": ("remove_states", _advance(remove_states=lambda value: [value])),
    "resume": ("step_id", _changed(lambda flow, value: flow.suspend_for_event("a", "key").resume(value))),
    "schedule": ("step_id", lambda on, flow, value: on.timers.schedule(flow, value, after=LEASE)),
    "schedule with advance": ("step_id", _advance(schedule=lambda value: [ScheduleTimer(value, after=LEASE)])),
    "suspend_for_event": ("correlation_key", _changed(lambda flow, value: flow.suspend_for_event("ship", value))),
    "suspend_for_event, step": ("step_id", _changed(lambda flow, value: flow.suspend_for_event(value, "key"))),
    "suspend_for_timer": ("step_id", _changed(lambda flow, value: flow.suspend_for_timer(value, after=LEASE))),
    "undeploy": ("flow_id", lambda on, flow, value: on.flow_definitions.undeploy(value)),
}

# None means "not given" for these.
OPTIONAL_KEYS = {"business key", "event id", "filter by flow id", "idempotency key", "list_workers", "resume"}

BAD_KEYS: dict[str, Any] = {
    "empty": "",
    "NUL": "a\x00b",
    "surrogate": "a\ud800",
    "too long": "x" * 513,
    "too long in UTF-8": "é" * 257,
    "bytes": b"a",
    "number": 7,
    "None": None,
}

INSTANTS: Mapping[str, tuple[str, Use]] = {
    "filter": ("created_from", _filter("created_from")),
    "filter, completed_from": ("completed_from", _filter("completed_from")),
    "filter, completed_to": ("completed_to", _filter("completed_to")),
    "filter, created_to": ("created_to", _filter("created_to")),
    "filter, updated_from": ("updated_from", _filter("updated_from")),
    "filter, updated_to": ("updated_to", _filter("updated_to")),
    "publish": ("expires_at", lambda on, flow, value: on.correlations.publish("key", expires_at=value)),
    "purge_events": ("before", lambda on, flow, value: on.feeds.purge_events(value)),
    "purge": ("before", lambda on, flow, value: on.flow_instances.purge(value)),
    "put": ("expires_at", lambda on, flow, value: on.component_states.put(flow, "charge", {}, expires_at=value)),
    "reschedule": ("due_at", lambda on, flow, value: on.timers.reschedule(flow, value)),
    "schedule": ("due_at", lambda on, flow, value: on.timers.schedule(flow, "charge", due_at=value)),
    "schedule with advance": ("due_at", _advance(schedule=lambda value: [ScheduleTimer("charge", due_at=value)])),
    "suspend_for_event": (
        "expires_at",
        _changed(lambda flow, value: flow.suspend_for_event("ship", "key", expires_at=value)),
    ),
    "suspend_for_timer": ("due_at", _changed(lambda flow, value: flow.suspend_for_timer("ship", due_at=value))),
}

BAD_INSTANTS: dict[str, Any] = {
    "naive": _NAIVE,
    "date": date(2030, 1, 1),
    "text": "2030-01-01T00:00:00Z",
    "number": 0,
    "first of all": datetime.min.replace(tzinfo=UTC),
    "last of all": datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
}

DURATIONS: Mapping[str, tuple[str, Use]] = {
    "beat": ("stale_after", lambda on, flow, value: on.replica_sets.beat("set", "w", stale_after=value)),
    "claim": ("lease_duration", lambda on, flow, value: on.flow_instances.claim("w", lease_duration=value)),
    "claim_delivered": (
        "lease_duration",
        lambda on, flow, value: on.correlations.claim_delivered("w", lease_duration=value),
    ),
    "claim_due": ("lease_duration", lambda on, flow, value: on.timers.claim_due("w", lease_duration=value)),
    "join": ("stale_after", lambda on, flow, value: on.replica_sets.join("set", "w", stale_after=value)),
    "renew": ("lease_duration", lambda on, flow, value: on.flow_instances.renew([], value)),
    "renew a delivery": ("lease_duration", lambda on, flow, value: on.correlations.renew([], value)),
    "renew a timer": ("lease_duration", lambda on, flow, value: on.timers.renew([], value)),
    "retry a delivery": (
        "after",
        lambda on, flow, value: on.correlations.retry(
            factories.delivery(held=factories.lease()), after=value, error=""
        ),
    ),
    "retry a timer": (
        "after",
        lambda on, flow, value: on.timers.retry(factories.timer(held=factories.lease()), after=value, error=""),
    ),
    "schedule": ("after", lambda on, flow, value: on.timers.schedule(flow, "charge", after=value)),
    "schedule with advance": ("after", _advance(schedule=lambda value: [ScheduleTimer("charge", after=value)])),
    "suspend_for_timer": ("after", _changed(lambda flow, value: flow.suspend_for_timer("ship", after=value))),
}

BAD_DURATIONS: dict[str, Any] = {
    "negative": timedelta(microseconds=-1),
    "more than a century": timedelta(days=36_526),
    "number": 30,
    "text": "30 s",
}

IDS: Mapping[str, tuple[str, Use]] = {
    "cancel a timer": ("timer_id", lambda on, flow, value: on.timers.cancel(value)),
    "cancel a wait": ("flow_instance_id", lambda on, flow, value: on.correlations.cancel(value, "ship")),
    "cancel with advance": ("cancel", _advance(cancel=lambda value: [value])),
    "create": ("flow_instance_id", _created(flow_instance_id="")),
    "export": ("flow_instance_id", lambda on, flow, value: on.flow_instances.export(value)),
    "filter": ("parent_id", _filter("parent_id")),
    "find": ("flow_instance_id", lambda on, flow, value: on.flow_instances.find(value)),
    "find a state": ("flow_instance_id", lambda on, flow, value: on.component_states.find(value, "charge")),
    "find a timer": ("timer_id", lambda on, flow, value: on.timers.find(value)),
    "get": ("flow_instance_id", lambda on, flow, value: on.flow_instances.get(value)),
    "get a state": ("flow_instance_id", lambda on, flow, value: on.component_states.get(value, "charge")),
    "get a timer": ("timer_id", lambda on, flow, value: on.timers.get(value)),
    "history": ("flow_instance_id", lambda on, flow, value: on.flow_instances.history(value)),
    "list states": ("flow_instance_id", lambda on, flow, value: on.component_states.list_for_instance(value)),
    "list timers": ("flow_instance_id", lambda on, flow, value: on.timers.list_for_instance(value)),
    "put": ("flow_instance_id", lambda on, flow, value: on.component_states.put(value, "charge", {})),
    "remove": ("flow_instance_id", lambda on, flow, value: on.flow_instances.remove(value)),
    "remove a state": ("flow_instance_id", lambda on, flow, value: on.component_states.remove(value, "charge")),
    "reschedule": ("timer_id", lambda on, flow, value: on.timers.reschedule(value, _AT)),
    "revive": ("timer_id", lambda on, flow, value: on.timers.revive(value)),
    "schedule": ("flow_instance_id", lambda on, flow, value: on.timers.schedule(value, "charge", after=LEASE)),
}

LIMITS: Mapping[str, Use] = {
    "claim": lambda on, flow, value: on.flow_instances.claim("w", limit=value, lease_duration=LEASE),
    "claim_delivered": lambda on, flow, value: on.correlations.claim_delivered("w", limit=value, lease_duration=LEASE),
    "claim_due": lambda on, flow, value: on.timers.claim_due("w", limit=value, lease_duration=LEASE),
    "events": lambda on, flow, value: on.events.read(limit=value),
    "find_by_correlation": lambda on, flow, value: on.flow_instances.find_by_correlation("key", limit=value),
    "history": lambda on, flow, value: on.flow_instances.history(flow, limit=value),
    "list states": lambda on, flow, value: on.component_states.list_for_instance(flow, limit=value),
    "list timers": lambda on, flow, value: on.timers.list_for_instance(flow, limit=value),
    "list_dead": lambda on, flow, value: on.timers.list_dead(limit=value),
    "list_dead_letters": lambda on, flow, value: on.correlations.list_dead_letters(limit=value),
    "list_latest": lambda on, flow, value: on.flow_definitions.list_latest(limit=value),
    "list_page": lambda on, flow, value: on.flow_instances.list_page(limit=value),
    "list_versions": lambda on, flow, value: on.flow_definitions.list_versions("flow", limit=value),
    "list_waiting": lambda on, flow, value: on.correlations.list_waiting("key", limit=value),
    "list_workers": lambda on, flow, value: on.replica_sets.list_workers(limit=value),
    "purge": lambda on, flow, value: on.flow_instances.purge(_AT, limit=value),
    "purge_events": lambda on, flow, value: on.feeds.purge_events(_AT, limit=value),
    "read_batch": lambda on, flow, value: on.feeds.read_batch("a", 1, limit=value),
    "list_consumers": lambda on, flow, value: on.feeds.list_consumers(limit=value),
    "list_failing": lambda on, flow, value: on.feeds.list_failing(limit=value),
}

CURSORS: Mapping[str, Use] = {
    "find_by_correlation": lambda on, flow, value: on.flow_instances.find_by_correlation("key", cursor=value),
    "history": lambda on, flow, value: on.flow_instances.history(flow, cursor=value),
    "list states": lambda on, flow, value: on.component_states.list_for_instance(flow, cursor=value),
    "list timers": lambda on, flow, value: on.timers.list_for_instance(flow, cursor=value),
    "list_dead": lambda on, flow, value: on.timers.list_dead(cursor=value),
    "list_dead_letters": lambda on, flow, value: on.correlations.list_dead_letters(cursor=value),
    "list_consumers": lambda on, flow, value: on.feeds.list_consumers(cursor=value),
    "list_failing": lambda on, flow, value: on.feeds.list_failing(cursor=value),
    "list_latest": lambda on, flow, value: on.flow_definitions.list_latest(cursor=value),
    "list_page": lambda on, flow, value: on.flow_instances.list_page(cursor=value),
    "list_versions": lambda on, flow, value: on.flow_definitions.list_versions("flow", cursor=value),
    "list_waiting": lambda on, flow, value: on.correlations.list_waiting("key", cursor=value),
    "list_workers": lambda on, flow, value: on.replica_sets.list_workers(cursor=value),
}

_ZERO = timedelta(0)
_DEAD_TIME_OUT = DeadLetter(correlation_key="key", event_id=None, payload={}, published_at=_AT, reason="expired")

# What fits nowhere else: a single wrong value of one argument.
OTHERS: Mapping[str, tuple[str, Use, Any]] = {
    "claim for no time": (*DURATIONS["claim"], _ZERO),
    "claim_delivered for no time": (*DURATIONS["claim_delivered"], _ZERO),
    "claim_due for no time": (*DURATIONS["claim_due"], _ZERO),
    "completes something else": ("completes", _advance(completes=lambda value: [value]), "timer-1"),
    "dead letter": ("dead_letter", lambda on, flow, value: on.correlations.republish(value), {"event_id": "a"}),
    "dead letter without an event": (
        "dead_letter",
        lambda on, flow, value: on.correlations.republish(value),
        _DEAD_TIME_OUT,
    ),
    "definition that is not deployed": (
        "definition",
        _changed(lambda flow, value: FlowInstance.create(value)),
        factories.flow_definition(),
    ),
    "definition version 0": ("version", lambda on, flow, value: on.flow_definitions.find("flow", value), 0),
    "definition version as text": ("version", lambda on, flow, value: on.flow_definitions.get("flow", value), "1"),
    "due_at and after": (
        "due_at",
        lambda on, flow, value: on.timers.schedule(flow, "charge", due_at=_AT, after=value),
        LEASE,
    ),
    "error that is no text": (
        "error",
        lambda on, flow, value: on.timers.retry(factories.timer(held=factories.lease()), after=_ZERO, error=value),
        ValueError("boom"),
    ),
    "error with NUL": (
        "error",
        lambda on, flow, value: on.correlations.retry(
            factories.delivery(held=factories.lease()), after=_ZERO, error=value
        ),
        "a\x00b",
    ),
    "events of another kind": ("events", _advance(events=lambda value: [value]), "noted"),
    "expected version below 0": (
        "expected_version",
        lambda on, flow, value: on.component_states.put(flow, "charge", {}, expected_version=value),
        -1,
    ),
    "feed position": ("after", lambda on, flow, value: on.events.read(after=value), "not a position"),
    "feed position that is no text": ("after", lambda on, flow, value: on.events.read(after=value), 7),
    "filter by version 0": ("flow_version", _filter("flow_version"), 0),
    "flow that was stored": ("instance", lambda on, flow, value: _add_again(on, flow), None),
    "import of something else": ("document", lambda on, flow, value: on.flow_instances.import_(value), {"flows": []}),
    "import of text": ("document", lambda on, flow, value: on.flow_instances.import_(value), "{}"),
    "join for no time": (*DURATIONS["join"], _ZERO),
    "keep what is no partition": (
        "keep",
        lambda on, flow, value: on.replica_sets.beat("set", "w", stale_after=LEASE, keep=[value]),
        -1,
    ),
    "lease of another kind": ("lease", _advance(lease=lambda value: value), "worker-1"),
    "max_attempts 0": (
        "max_attempts",
        lambda on, flow, value: on.timers.schedule(flow, "charge", after=LEASE, max_attempts=value),
        0,
    ),
    "metadata that is no object": (
        "metadata",
        lambda on, flow, value: on.replica_sets.join("set", "w", stale_after=LEASE, metadata=value),
        ["rhine"],
    ),
    "mode": ("mode", lambda on, flow, value: on.correlations.publish("key", mode=value), "all"),
    "neither due_at nor after": ("due_at", lambda on, flow, value: on.timers.schedule(flow, "charge"), None),
    "prefix that is too long": ("business_key_prefix", _filter("business_key_prefix"), "x" * 513),
    "purge of flows that run": (
        "statuses",
        lambda on, flow, value: on.flow_instances.purge(_AT, statuses=value),
        [FlowStatus.COMPLETED, FlowStatus.RUNNING],
    ),
    "reason that is no text": (
        "reason",
        lambda on, flow, value: on.timers.give_up(factories.timer(held=factories.lease()), reason=value),
        None,
    ),
    "reason with NUL": (
        "reason",
        lambda on, flow, value: on.correlations.give_up(factories.delivery(held=factories.lease()), reason=value),
        "\x00",
    ),
    "remove_states as one text": ("remove_states", _advance(remove_states=lambda value: value), "charge"),
    "renew for no time": ("lease_duration", lambda on, flow, value: on.timers.renew([], value), _ZERO),
    "schedule something else": ("schedule", _advance(schedule=lambda value: [value]), (_AT, "charge")),
    "search attributes that are no object": ("search_attributes", _filter("search_attributes"), ["region"]),
    "state both put and removed": (
        "remove_states",
        _advance(put_states=lambda value: {value: 1}, remove_states=lambda value: [value]),
        "charge",
    ),
    "status that does not exist": ("statuses", _filter("statuses"), ["SLEEPING"]),
}


async def _add_again(on: Any, flow: UUID) -> object:
    return await on.flow_instances.add(await on.flow_instances.get(flow))
