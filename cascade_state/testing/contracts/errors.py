"""Errors: only those of the tree, with their facts, picklable, and without anybody's data in them."""

from __future__ import annotations

import inspect
import logging
import pickle
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypeAlias
from uuid import UUID

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
from cascade_state.model.correlations import DeadLetter
from cascade_state.model.events import NewEvent
from cascade_state.model.export import ExportDocument, ExportedFlow, export_document
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.flow_status import TERMINAL_STATUSES
from cascade_state.model.timers import ScheduleTimer
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.calls import REPOSITORIES, public_methods
from cascade_state.testing.contracts.claiming import claim_deliveries, claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = ["ErrorsContract", "HostileArgumentsContract", "SecrecyContract"]

_AT = datetime(2030, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)


# What each error says


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
    return _Expected(
        ComponentStateNotFound, {"entity": "component state"}, lambda: call(flow.flow_instance_id, "ship")
    )


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
        before = await store.statistics(), await store.events.read()
        for _ in range(2):
            with pytest.raises(expected.error):
                await expected.call()
        assert (await store.statistics(), await store.events.read()) == before


# Arguments that nobody meant


_DEFINITION = factories.flow_definition("hostile", version=1)
_FLOW = factories.running_flow(_DEFINITION)
_STORED = replace(_FLOW, version=1, created_at=_AT, updated_at=_AT)
_TIMER = factories.timer(held=factories.lease())
_DELIVERY = factories.delivery(held=factories.lease())

# A usable value for every parameter of the contract, by its name.
_USABLE: dict[str, Any] = {
    "after": timedelta(seconds=1),
    "before": _AT,
    "business_key": "order-1",
    "cancel": [],
    "completes": [],
    "correlation_key": "parcel-77",
    "cursor": None,
    "dead_letter": DeadLetter(
        correlation_key="parcel-77", event_id="evt-1", payload={}, published_at=_AT, reason="expired"
    ),
    "definition": _DEFINITION,
    "deliveries": [_DELIVERY],
    "delivery": _DELIVERY,
    "document": export_document(ExportDocument(definitions=(_DEFINITION,), flows=(ExportedFlow(instance=_STORED),))),
    "dry_run": True,
    "due_at": None,
    "error": "late",
    "event_id": "evt-1",
    "events": [],
    "expected_version": None,
    "expires_at": None,
    "filter": None,
    "flow_id": "hostile",
    "flow_instance_id": _FLOW.flow_instance_id,
    "force": False,
    "holder": "worker-1",
    "idempotency_key": None,
    "instance": _FLOW,
    "instances": [],
    "lease": None,
    "lease_duration": timedelta(seconds=1),
    "limit": 10,
    "max_attempts": None,
    "mode": "first",
    "page_size": 10,
    "payload": {},
    "put_states": None,
    "reason": "enough",
    "remove_states": [],
    "schedule": [],
    "state": {},
    "statuses": list(TERMINAL_STATUSES),
    "step_id": "ship",
    "timer": _TIMER,
    "timer_id": _TIMER.timer_id,
    "timers": [_TIMER],
    "version": None,
}

# `events.read` continues behind a position, which is text; elsewhere `after` is a duration.
_USABLE_HERE: dict[tuple[str, str], Any] = {("events.read", "after"): None}

_HOSTILE: dict[str, Any] = {
    "None": None,
    "an object": object(),
    "nothing": "",
    "NUL": "a\0b",
    "half a character": "a\ud800",
    "a long text": "x" * 2_000_000,
    "600 bytes": "é" * 300,
    "bytes": b"abc",
    "zero": 0,
    "a negative": -1,
    "a big integer": 10**30,
    "64 bits": 2**63,
    "not a number": float("nan"),
    "infinity": float("inf"),
    "true": True,
    "a set": {1},
    "a list of nothing": [None],
    "an empty list": [],
    "an empty object": {},
    "keys that are no text": {1: 2},
    "a naive instant": datetime(2030, 1, 1),  # noqa: DTZ001 - that is the point
    "the first instant": datetime.min.replace(tzinfo=UTC),
    "the last instant": datetime.max.replace(tzinfo=UTC),
    "the last instant elsewhere": datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
    "the longest duration": timedelta.max,
    "a negative duration": -timedelta(seconds=1),
    "the nil id": UUID(int=0),
    "the last id": UUID(int=2**128 - 1),
    "a filter of the impossible": FlowInstanceFilter(flow_version=2**70),
    "a filter with a NUL": FlowInstanceFilter(flow_id="a\0b"),
    "a filter of everything": FlowInstanceFilter(search_attributes={"a": [{"b": object()}]}),
    "a timer nobody has": factories.timer(held=factories.lease(token=2**63)),
    "a delivery nobody has": factories.delivery(held=factories.lease(token=2**63)),
    "a lease nobody gave": factories.lease("a\0b", token=2**63),
}


def _method(target: Store, name: str) -> Callable[..., Any]:
    repository, _, method = name.rpartition(".")
    return getattr(getattr(target, repository) if repository else target, method)  # type: ignore[no-any-return]


def _parameters(name: str) -> list[str]:
    repository, _, method = name.rpartition(".")
    owner = REPOSITORIES[repository] if repository else Store
    return [parameter for parameter in inspect.signature(getattr(owner, method)).parameters if parameter != "self"]


async def _run(method: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    result = method(**arguments)
    if inspect.isasyncgen(result):
        async for _ in result:
            pass
    else:
        await result


class HostileArgumentsContract(StoreContract):
    """Whatever a caller passes, only errors of the tree come back, or Python's own for a wrong type."""

    @rule("Errors", "C-10")
    @pytest.mark.parametrize("name", sorted(set(public_methods()) - {"flow_instances.write"}))
    async def test_only_errors_of_the_tree_are_raised(self, store: Store, name: str) -> None:
        await store.flow_definitions.deploy(replace(_DEFINITION, version=None, deployed_at=None))
        usable = {
            parameter: _USABLE_HERE.get((name, parameter), _USABLE.get(parameter)) for parameter in _parameters(name)
        }
        if name == "timers.schedule":
            usable["after"] = timedelta(seconds=1)
        for parameter in usable:
            assert parameter in _USABLE, f"say what is usable for {parameter} of {name}"
            for called, hostile in _HOSTILE.items():
                try:
                    await _run(_method(store, name), {**usable, parameter: hostile})
                except CascadeStateError:
                    pass
                except Exception as error:
                    if not isinstance(error, TypeError | AttributeError) or _shows_internals(error):
                        pytest.fail(f"{parameter}={called}: {error!r}")
                assert await store.flow_instances.count() <= 1  # the store still answers

    @rule("Errors")
    @pytest.mark.parametrize("options", [{"isolation": 7}, {"isolation": "\0"}])
    async def test_a_unit_of_work_refuses_unusable_options(self, store: Store, options: dict[str, Any]) -> None:
        with pytest.raises(CascadeStateError):
            store.begin(**options)


def _shows_internals(error: BaseException) -> bool:
    """Whether Python's own error comes from below the contract: from a driver, or from SQLAlchemy."""
    modules = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    return any(part in module for module in modules for part in ("asyncpg", "sqlalchemy"))


# Secrecy


_MARKER = "S3CR3T-4711"  # never part of a key or an id: only of what belongs to the caller


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and what it came from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _said(error: BaseException) -> str:
    """Returns everything that an error says of itself when it is shown, logged or inspected."""
    return "\n".join(f"{current} {current!r} {vars(current)!r}" for current in _chain(error))


class SecrecyContract(StoreContract):
    """No payload is in an error's message, repr or facts, nor in a log."""

    @pytest.fixture
    def logged(self, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
        """What the store logs, at every level."""
        caplog.set_level(logging.DEBUG)
        caplog.set_level(logging.DEBUG, logger="cascade_state")
        return caplog

    async def _marked(self, store: Store, **options: Any) -> FlowInstance:
        """Returns a flow that carries the marker wherever a caller's data goes."""
        definition = await store.flow_definitions.deploy(
            factories.flow_definition(document={"secret": _MARKER}, name=_MARKER)
        )
        flow = factories.flow_instance(
            definition,
            trigger_data={"secret": _MARKER},
            search_attributes={"secret": _MARKER},
            **options,
        ).start()
        flow = flow.complete_step("charge", {"secret": _MARKER}).fail_step("refund", {"secret": _MARKER})
        return await store.advance(
            flow,
            put_states={"charge": {"secret": _MARKER}},
            schedule=[ScheduleTimer("ship", after=timedelta(0), payload={"secret": _MARKER})],
            events=[NewEvent("invoice.sent", {"secret": _MARKER})],
        )

    @rule("Errors")
    async def test_errors_and_logs_carry_no_payload(
        self, store: Store, logged: pytest.LogCaptureFixture, clock: FrozenClock
    ) -> None:
        flow = await self._marked(store, business_key="order-1")
        definition = await store.flow_definitions.get(flow.flow_id)
        waiting = await store.advance(flow.suspend_for_event("ship", "parcel-77"))
        await store.correlations.publish("parcel-77", {"secret": _MARKER})
        (delivery,) = await claim_deliveries(store)
        (timer,) = await claim_timers(store)
        await store.correlations.release([delivery])
        await store.timers.release([timer])
        duplicate = factories.flow_instance(definition, trigger_data={"s": _MARKER}, business_key="order-1").start()
        letter = DeadLetter(
            correlation_key="k", event_id=None, payload={"s": _MARKER}, published_at=clock.now(), reason="r"
        )
        identity = flow.flow_instance_id
        failing: list[Callable[[], Awaitable[object]]] = [
            lambda: store.advance(flow.complete_step("ship", {"s": _MARKER}), put_states={"ship": _MARKER}),
            lambda: store.advance(waiting.resume().complete_step("ship", {"s": _MARKER}), completes=[delivery]),
            lambda: store.advance(waiting.resume().complete_step("ship", {"s": _MARKER}), completes=[timer]),
            lambda: store.flow_instances.add(duplicate),
            lambda: store.timers.complete([timer]),
            lambda: store.timers.retry(timer, after=_HOUR, error=_MARKER),
            lambda: store.timers.give_up(timer, reason=_MARKER),
            lambda: store.correlations.complete([delivery]),
            lambda: store.correlations.retry(delivery, after=_HOUR, error=_MARKER),
            lambda: store.correlations.give_up(delivery, reason=_MARKER),
            lambda: store.correlations.republish(letter),
            lambda: store.correlations.publish("k", {"s": [_MARKER, float("nan")]}),
            lambda: store.correlations.publish("k", {"s": [_MARKER, object()]}),
            lambda: store.correlations.publish("k", _MARKER * 200_000),
            lambda: store.correlations.publish("k", {"s": _MARKER + "\0"}),
            lambda: store.component_states.put(new_flow_instance_id(), "ship", {"s": _MARKER}),
            lambda: store.component_states.put(identity, "charge", {"s": _MARKER}, expected_version=7),
            lambda: store.timers.schedule(new_flow_instance_id(), "ship", after=_HOUR, payload=_MARKER),
            lambda: store.flow_definitions.undeploy(flow.flow_id),
        ]
        for number, call in enumerate(failing):
            with pytest.raises(CascadeStateError) as caught:
                await call()
            assert _MARKER not in _said(caught.value), number
        exported = dict(await store.flow_instances.export(identity))
        with pytest.raises(CascadeStateError) as caught:
            await store.flow_instances.import_(exported)
        assert _MARKER not in _said(caught.value)
        assert _MARKER not in logged.text
        assert not [record for record in logged.records if _MARKER in repr(vars(record))]

    @rule("Errors", "C-26")
    async def test_an_undecodable_row_does_not_show_what_is_in_it(
        self, store: Store, logged: pytest.LogCaptureFixture
    ) -> None:
        flow = await self._marked(store)
        await self.observer.make_undecodable(store, flow.flow_instance_id)
        with pytest.raises(CascadeStateError) as caught:
            await store.flow_instances.get(flow.flow_instance_id)
        assert _MARKER not in _said(caught.value)
        (undecodable,) = (await store.flow_instances.list_page()).undecodable
        assert _MARKER not in _said(undecodable)
        assert [item async for item in store.flow_instances.iterate()] == []
        assert str(flow.flow_instance_id) in logged.text  # what was passed over is told by its id
        assert _MARKER not in logged.text

    @rule("Errors")
    async def test_a_unit_of_work_that_fails_logs_no_payload(
        self, store: Store, logged: pytest.LogCaptureFixture
    ) -> None:
        async def fail(uow: Any) -> None:
            await self._marked(uow)
            raise VersionConflict(expected_version=1, actual_version=2)

        with pytest.raises(VersionConflict):
            await store.run(fail)
        assert _MARKER not in logged.text
