"""Every text argument of the public face: how a text is used there, as data that is stored and found.

`TEXT_USES` groups the arguments that one story covers. `text_arguments()` reads the public face itself, so that a new
argument cannot be forgotten.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from inspect import isfunction, signature
from typing import Any, Union, get_args, get_origin, get_type_hints

from cascade_state.abc import Store
from cascade_state.model.correlations import DeadLetter
from cascade_state.model.events import NewEvent
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_definitions import Condition, FlowDefinition, StepDefinition, Trigger
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import ScheduleTimer
from cascade_state.testing import factories
from cascade_state.testing.contracts.calls import REPOSITORIES

__all__ = ["HOSTILE_TEXTS", "TEXT_USES", "text_arguments"]

_LEASE = timedelta(seconds=30)
_NOW = timedelta(0)

HOSTILE_TEXTS: Mapping[str, str] = {
    "single quote": "O'Brien",
    "double quotes": '"flow_instances"',
    "statement": "'; DROP TABLE flow_instances; --",
    "condition": "' OR '1'='1",
    "comment": "a /* b */ -- c",
    "placeholders": "$1 :name %s %(x)s ? {0} {{}}",
    "cast": "a::text",
    "dollar quotes": "$$ $x$",
    "wildcards": "%_%",
    "backslashes": "\\ \\\\ \\' \\u0000 \\x00",
    "null": "NULL",
    "array": "{a,b}",
    "json": '{"a": [1]}',
    "json path": "$.a[*] ? (@ > 1)",
    "control characters": "\x01\x02\x1b[31m\x7f\x85",
    "lines": "one\r\ntwo\tthree\x0b\x0c",
    "only a space": " ",
    "spaces around": "  a  ",
    "four bytes": "💣\U0001d54a",
    "joined": "👩‍👩‍👧‍👦🏳️‍🌈",
    "right to left": "\u202eabc\u202c \u200f שלום",
    "zero width": "a\u200bb\ufeff",
    "composed": "é",
    "decomposed": "e\u0301",
    "upper case": "STRASSE",
    "sharp s": "straße",
    "dotless i": "ıİ",
    "line separators": "\u2028\u2029",
    "last code point": "\U0010ffff",
    "noncharacter": "\uffff",
    "longest, one byte": "x" * 512,
    "longest, four bytes": "💣" * 128,
}

Use = Callable[[Store, Store, str], Awaitable[None]]


def text_arguments() -> Iterator[str]:
    """Yields every text argument of the repositories' methods, and every text of the values that they take.

    Cursors and feed positions are left out: they are not data of the caller's.
    """
    for repository, kind in REPOSITORIES.items():
        for name, method in vars(kind).items():
            if not name.startswith("_") and isfunction(method):
                hints = get_type_hints(method)
                for argument in signature(method).parameters:
                    if argument in hints and argument not in ("cursor", "after") and _is_text(hints[argument]):
                        yield f"{repository}.{name}.{argument}"
    for kind in (
        Condition,
        FlowDefinition,
        FlowInstanceFilter,
        NewEvent,
        ScheduleTimer,
        StepDefinition,
        Trigger,
        DeadLetter,
    ):
        assert is_dataclass(kind)
        hints = get_type_hints(kind)
        for item in fields(kind):
            if item.init and _is_text(hints[item.name]):
                yield f"{kind.__name__}.{item.name}"
    for name in ("create", "complete_step", "fail_step", "suspend_for_timer", "suspend_for_event", "resume", "child"):
        method = getattr(FlowInstance, name)
        hints = get_type_hints(method)
        for argument in signature(method).parameters:
            if argument in hints and _is_text(hints[argument]):
                yield f"FlowInstance.{name}.{argument}"
    yield from ("advance.put_states", "advance.remove_states", "JSON.key", "JSON.value")


def _is_text(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return set(get_args(hint)) == {str, type(None)}
    return hint is str


async def _flow_id(store: Store, other: Store, text: str) -> None:
    deployed = await store.flow_definitions.deploy(factories.flow_definition(text))
    assert deployed.flow_id == text
    for on in (store, other):
        assert await on.flow_definitions.get(text) == deployed
        assert await on.flow_definitions.find(text) == deployed
        assert await on.flow_definitions.list_versions(text) == [deployed]
        assert deployed in await on.flow_definitions.list_latest(limit=1000)
    flow = await factories.add_flow(store, deployed, business_key="order-1")
    assert await other.flow_instances.find_by_business_key(text, "order-1") == flow
    chosen = FlowInstanceFilter(flow_id=text)
    assert (await other.flow_instances.list_page(chosen)).items == (flow,)
    assert await other.flow_instances.count(chosen) == 1
    assert await store.flow_definitions.undeploy(text, force=True) == 1
    assert await other.flow_definitions.find(text) is None
    assert await other.flow_instances.count(chosen) == 0


async def _definition_texts(store: Store, other: Store, text: str) -> None:
    step = StepDefinition(
        step_id=text, component_type=text, condition=Condition(expression=text, language=text), run_after=("first",)
    )
    last = StepDefinition(step_id="last", component_type="http", run_after=(text,))
    given = replace(
        factories.flow_definition(steps=["first"]), name=text, description=text, trigger=Trigger(trigger_type=text)
    )
    given = replace(given, steps=(*given.steps, step, last))
    deployed = await store.flow_definitions.deploy(given)
    found = await other.flow_definitions.get(given.flow_id)
    assert found == deployed
    assert (found.name, found.description, found.steps) == (text, text, given.steps)
    assert found.digest == given.digest
    assert (await other.flow_definitions.deploy(given)).version == 1


async def _business_key(store: Store, other: Store, text: str) -> None:
    definition = await factories.deploy_flow_definition(store)
    decoy = await factories.add_flow(store, definition, business_key="decoy-1")
    flow = await factories.add_flow(store, definition, business_key=text)
    child = await store.advance(decoy.child(await factories.deploy_flow_definition(store), business_key=text))
    assert flow.business_key == child.business_key == text
    for on in (store, other):
        assert await on.flow_instances.find_by_business_key(definition.flow_id, text) == flow
        assert await on.flow_instances.find_by_business_key(child.flow_id, text) == child
        chosen = FlowInstanceFilter(flow_id=definition.flow_id, business_key_prefix=text)
        assert (await on.flow_instances.list_page(chosen)).items == (flow,)
        assert await on.flow_instances.count(chosen) == 1


async def _steps(store: Store, other: Store, text: str) -> None:
    flow = await factories.add_flow(store)
    done = await store.advance(flow.complete_step(text, {"a": 1}))
    failed = await store.advance(done.fail_step(text + "!" if len(text) < 100 else "other", {"code": 7}))
    waiting = await store.advance(failed.suspend_for_timer(text, after=_LEASE))
    found = await other.flow_instances.get(flow.flow_instance_id)
    assert found == waiting
    assert found.step_output(text, "a") == 1
    assert set(found.pending_timers) == {text}
    resumed = await other.advance(found.resume(text))
    assert resumed.pending_timers == {}
    assert await other.flow_instances.get(flow.flow_instance_id) == resumed
    assert (await store.flow_instances.history(flow.flow_instance_id))[-1].payload == {"step_id": text}


async def _wait(store: Store, other: Store, text: str) -> None:
    flow = await factories.add_flow(store, waits_for=text, step_id=text)
    assert flow.waits == {text: text}
    for on in (store, other):
        (wait,) = await on.correlations.list_waiting(text)
        assert (wait.correlation_key, wait.step_id) == (text, text)
        assert await on.flow_instances.find_by_correlation(text) == [flow]
    (delivery,) = await other.correlations.publish(text, {"a": 1}, event_id=text)
    assert (delivery.correlation_key, delivery.step_id, delivery.event_id) == (text, text, text)
    assert await other.correlations.publish(text, {"a": 2}, event_id=text) == []
    (claimed,) = await store.correlations.claim_delivered(text, lease_duration=_LEASE)
    assert claimed.lease is not None
    assert (claimed.correlation_key, claimed.step_id, claimed.event_id) == (text, text, text)
    assert claimed.lease.holder == text
    await store.correlations.retry(claimed, after=_NOW, error=text)
    (claimed,) = await store.correlations.claim_delivered(text, lease_duration=_LEASE)
    await store.correlations.give_up(claimed, reason=text)
    letters = [letter for letter in await other.correlations.list_dead_letters(limit=1000) if letter.event_id == text]
    assert [(letter.correlation_key, letter.reason) for letter in letters] == [(text, text)]
    assert len(await other.correlations.republish(letters[0])) == 1
    assert await other.correlations.cancel(flow.flow_instance_id, text)
    assert await store.correlations.list_waiting(text) == []


async def _timer(store: Store, other: Store, text: str) -> None:
    flow = await factories.add_flow(store)
    timer = await store.timers.schedule(flow.flow_instance_id, text, after=_NOW, idempotency_key=text)
    assert (await other.timers.get(timer.timer_id)).step_id == text
    again = await other.timers.schedule(flow.flow_instance_id, text, after=_LEASE, idempotency_key=text)
    assert again == timer
    other_key = await other.timers.schedule(flow.flow_instance_id, text, after=_LEASE, idempotency_key="another")
    assert other_key.timer_id != timer.timer_id
    (claimed,) = await store.timers.claim_due(text, lease_duration=_LEASE)
    assert claimed.lease is not None
    assert (claimed.timer_id, claimed.lease.holder) == (timer.timer_id, text)
    retried = await store.timers.retry(claimed, after=_NOW, error=text)
    assert (retried.last_error, (await other.timers.get(timer.timer_id)).last_error) == (text, text)
    (claimed,) = await other.timers.claim_due(text, lease_duration=_LEASE)
    await other.timers.give_up(claimed, reason=text + "." if len(text) < 100 else text)
    assert (await store.timers.get(timer.timer_id)).last_error == (text + "." if len(text) < 100 else text)


async def _scheduled(store: Store, other: Store, text: str) -> None:
    flow = await factories.add_flow(store)
    await store.advance(flow, schedule=[ScheduleTimer(text, after=_LEASE)], events=[NewEvent(text, {})])
    (timer,) = await other.timers.list_for_instance(flow.flow_instance_id)
    assert timer.step_id == text
    assert (await other.flow_instances.history(flow.flow_instance_id))[-1].event_type == text


async def _holder(store: Store, other: Store, text: str) -> None:
    definition = await factories.deploy_flow_definition(store)
    flow = await factories.add_flow(store, definition)
    chosen = FlowInstanceFilter(flow_id=definition.flow_id)
    (claimed,) = await store.flow_instances.claim(text, filter=chosen, lease_duration=_LEASE)
    assert claimed.lease is not None
    assert (claimed.flow_instance_id, claimed.lease.holder) == (flow.flow_instance_id, text)
    (renewed,) = await other.flow_instances.renew([claimed], _LEASE)
    await other.flow_instances.release([renewed])


async def _replica_set(store: Store, other: Store, text: str) -> None:
    decoy = factories.unique("decoy")
    await store.replica_sets.join(decoy, decoy, stale_after=_LEASE)
    share = await store.replica_sets.join(text, text, stale_after=_LEASE)
    assert (share.replica_set, share.worker_id) == (text, text)
    for on in (store, other):
        assert await on.replica_sets.beat(text, text, stale_after=_LEASE) == share
        assert [worker.worker_id for worker in await on.replica_sets.list_workers(text)] == [text]
        assert {item.owner for item in await on.replica_sets.list_assignments(text)} == {text}
    async with other.begin() as uow:
        await uow.fence(7, share.generations[7], text)
    assert await other.replica_sets.leave(text, text)
    assert await store.replica_sets.list_workers(text) == []
    assert await other.replica_sets.leave(decoy, decoy)


async def _state(store: Store, other: Store, text: str) -> None:
    flow = await factories.add_flow(store)
    other_step = "another step"
    await store.component_states.put(flow.flow_instance_id, other_step, "decoy")
    await store.component_states.put(flow.flow_instance_id, text, {"a": 1})
    for on in (store, other):
        assert (await on.component_states.get(flow.flow_instance_id, text)).step_id == text
        assert (await on.component_states.find(flow.flow_instance_id, text)) is not None
    assert await other.component_states.remove(flow.flow_instance_id, text)
    assert await store.component_states.find(flow.flow_instance_id, text) is None
    flow = await store.advance(flow, put_states={text: {"a": 2}})
    assert (await other.component_states.get(flow.flow_instance_id, text)).state == {"a": 2}
    await store.advance(flow, remove_states=[text])
    assert [state.step_id for state in await other.component_states.list_for_instance(flow.flow_instance_id)] == [
        other_step
    ]


async def _documents(store: Store, other: Store, text: str) -> None:
    document = {text: [text, {text: text}]}
    definition = await factories.deploy_flow_definition(store)
    flow = await factories.add_flow(store, definition, search_attributes=document)
    await factories.add_flow(store, definition, search_attributes={"decoy": ["decoy"]})
    await store.component_states.put(flow.flow_instance_id, "charge", document)
    assert (await other.component_states.get(flow.flow_instance_id, "charge")).state == document
    chosen = FlowInstanceFilter(flow_id=definition.flow_id, search_attributes={text: [text]})
    assert (await other.flow_instances.list_page(chosen)).items == (flow,)


async def _feed_consumer(store: Store, other: Store, text: str) -> None:
    made = await store.feeds.register(text)
    assert made.consumer == text
    assert await other.feeds.get(text) == made
    assert [found.consumer for found in await other.feeds.list_consumers()] == [text]
    assert (await other.feeds.find_news(text, [3])).ready == ()
    assert await other.feeds.read_batch(text, 3) is None
    assert (await other.feeds.lag(text)).events == 0
    assert await other.feeds.pause(text)
    assert await store.feeds.resume(text)
    assert await other.feeds.retry(text, 3, error=text) == 1
    (failure,) = await store.feeds.list_failing(text)
    assert (failure.consumer, failure.last_error) == (text, text)
    assert (await store.statistics()).consumer_lags == {text: 0}
    await other.feeds.reset(text)
    assert await other.feeds.remove(text)
    assert await store.feeds.find(text) is None


TEXT_USES: Mapping[str, tuple[Use, frozenset[str]]] = {
    "business key": (
        _business_key,
        frozenset(
            {
                "FlowInstance.child.business_key",
                "FlowInstance.create.business_key",
                "FlowInstanceFilter.business_key_prefix",
                "flow_instances.find_by_business_key.business_key",
            }
        ),
    ),
    "component state": (
        _state,
        frozenset(
            {
                "advance.put_states",
                "advance.remove_states",
                "component_states.find.step_id",
                "component_states.get.step_id",
                "component_states.put.step_id",
                "component_states.remove.step_id",
            }
        ),
    ),
    "definition": (
        _definition_texts,
        frozenset(
            {
                "Condition.expression",
                "Condition.language",
                "FlowDefinition.description",
                "FlowDefinition.name",
                "StepDefinition.component_type",
                "StepDefinition.step_id",
                "Trigger.trigger_type",
            }
        ),
    ),
    "document": (_documents, frozenset({"JSON.key", "JSON.value"})),
    "feed consumer": (
        _feed_consumer,
        frozenset(
            {
                "feeds.find.consumer",
                "feeds.find_news.consumer",
                "feeds.get.consumer",
                "feeds.lag.consumer",
                "feeds.list_failing.consumer",
                "feeds.pause.consumer",
                "feeds.read_batch.consumer",
                "feeds.register.consumer",
                "feeds.remove.consumer",
                "feeds.reset.consumer",
                "feeds.resume.consumer",
                "feeds.retry.consumer",
                "feeds.retry.error",
            }
        ),
    ),
    "flow id": (
        _flow_id,
        frozenset(
            {
                "FlowDefinition.flow_id",
                "FlowInstanceFilter.flow_id",
                "flow_definitions.find.flow_id",
                "flow_definitions.get.flow_id",
                "flow_definitions.list_versions.flow_id",
                "flow_definitions.undeploy.flow_id",
                "flow_instances.find_by_business_key.flow_id",
            }
        ),
    ),
    "holder": (_holder, frozenset({"flow_instances.claim.holder"})),
    "replica set": (
        _replica_set,
        frozenset(
            {
                "replica_sets.beat.replica_set",
                "replica_sets.beat.worker_id",
                "replica_sets.join.replica_set",
                "replica_sets.join.worker_id",
                "replica_sets.leave.replica_set",
                "replica_sets.leave.worker_id",
                "replica_sets.list_assignments.replica_set",
                "replica_sets.list_workers.replica_set",
            }
        ),
    ),
    "scheduled": (_scheduled, frozenset({"NewEvent.event_type", "ScheduleTimer.step_id"})),
    "step": (
        _steps,
        frozenset(
            {
                "FlowInstance.complete_step.step_id",
                "FlowInstance.fail_step.step_id",
                "FlowInstance.resume.step_id",
                "FlowInstance.suspend_for_timer.step_id",
            }
        ),
    ),
    "timer": (
        _timer,
        frozenset(
            {
                "timers.claim_due.holder",
                "timers.give_up.reason",
                "timers.retry.error",
                "timers.schedule.idempotency_key",
                "timers.schedule.step_id",
            }
        ),
    ),
    "wait": (
        _wait,
        frozenset(
            {
                "DeadLetter.correlation_key",
                "DeadLetter.event_id",
                "DeadLetter.reason",
                "FlowInstance.suspend_for_event.correlation_key",
                "FlowInstance.suspend_for_event.step_id",
                "correlations.cancel.step_id",
                "correlations.claim_delivered.holder",
                "correlations.give_up.reason",
                "correlations.list_waiting.correlation_key",
                "correlations.publish.correlation_key",
                "correlations.publish.event_id",
                "correlations.retry.error",
                "flow_instances.find_by_correlation.correlation_key",
            }
        ),
    ),
}
