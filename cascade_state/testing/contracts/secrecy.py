"""Nobody's data in an error or a log."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    CascadeStateError,
    VersionConflict,
)
from cascade_state.ids import new_flow_instance_id
from cascade_state.model.correlations import DeadLetter
from cascade_state.model.events import NewEvent
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.timers import ScheduleTimer
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.claiming import claim_deliveries, claim_timers
from cascade_state.testing.contracts.rules import rule

__all__ = ["SecrecyContract"]

_HOUR = timedelta(hours=1)
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
