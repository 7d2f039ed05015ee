"""Hints: what is notified, when, and what never is."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import asyncpg
import pytest

from cascade_state import FlowInstance, ScheduleTimer, open_store, partition_of
from cascade_state.postgres import hints
from cascade_state.postgres.hints import hint_channel
from cascade_state.testing import factories

pytestmark = pytest.mark.postgres


class _Ear:
    """Listens to an installation's hints."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.heard: asyncio.Queue[int] = asyncio.Queue()
        self.recorded: asyncio.Queue[int] = asyncio.Queue()

    async def __aenter__(self) -> "_Ear":
        self._connection = await asyncpg.connect(self._url)
        await self._connection.add_listener(hint_channel(None), self._hear)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    def _hear(self, *call: object) -> None:
        payload = str(call[-1])
        (self.heard if payload.isdigit() else self.recorded).put_nowait(int(payload.removeprefix("e")))

    async def next(self) -> int:
        return await asyncio.wait_for(self.heard.get(), 10)


async def _new_flow(store) -> FlowInstance:  # type: ignore[no-untyped-def]
    definition = await store.flow_definitions.deploy(factories.flow_definition())
    return FlowInstance.create(definition).start()


async def test_a_committed_timer_is_hinted_with_the_partition_of_its_flow(database_url: str) -> None:
    async with _Ear(database_url) as ear, open_store(database_url) as store:
        flow = await _new_flow(store)
        await store.advance(flow, schedule=[ScheduleTimer("a", after=timedelta(hours=1))])
        assert await ear.next() == partition_of(flow.flow_instance_id, 256)


async def test_recorded_events_are_hinted_apart_from_work(database_url: str) -> None:
    async with _Ear(database_url) as ear, open_store(database_url) as store:
        flow = await store.advance(await _new_flow(store))
        assert await asyncio.wait_for(ear.recorded.get(), 10) == partition_of(flow.flow_instance_id, 256)
        await store.component_states.put(flow.flow_instance_id, "a", 1)  # records nothing
        await store.advance(flow.complete_step("a"))
        assert await asyncio.wait_for(ear.recorded.get(), 10) == partition_of(flow.flow_instance_id, 256)
        assert ear.recorded.empty()
        assert ear.heard.empty()


async def test_a_unit_of_work_hints_only_when_it_commits(database_url: str) -> None:
    async with _Ear(database_url) as ear, open_store(database_url) as store:
        dropped, kept = await _new_flow(store), await _new_flow(store)
        async with store.begin() as uow:
            await uow.advance(dropped, schedule=[ScheduleTimer("a", after=timedelta(0))])
            await uow.rollback()
        async with store.begin() as uow:
            await uow.advance(kept, schedule=[ScheduleTimer("a", after=timedelta(0))])
        assert await ear.next() == partition_of(kept.flow_instance_id, 256)
        assert ear.heard.empty()


async def test_the_first_hint_leaves_at_once_and_those_behind_it_together(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "_COALESCING_SECONDS", 3600.0)
    sent: list[list[str]] = []
    send = hints.HintSender.send

    async def noted(self: hints.HintSender, payloads: Iterable[str]) -> None:
        sent.append(list(payloads))
        await send(self, sent[-1])

    monkeypatch.setattr(hints.HintSender, "send", noted)
    async with _Ear(database_url) as ear:
        async with open_store(database_url) as store:
            first = await store.advance(await _new_flow(store), schedule=[ScheduleTimer("a", after=timedelta(0))])
            assert await ear.next() == partition_of(first.flow_instance_id, 256)
            for _ in range(3):
                await store.advance(await _new_flow(store), schedule=[ScheduleTimer("a", after=timedelta(0))])
            assert len(sent) == 1
        assert len(sent) == 2  # a store that closes sends what is left


async def test_a_delivery_is_hinted(database_url: str) -> None:
    async with _Ear(database_url) as ear, open_store(database_url) as store:
        flow = await store.advance((await _new_flow(store)).suspend_for_event("a", "parcel-1"))
        await ear.next()  # the wait itself: an early event may have been delivered with it
        await store.correlations.publish("parcel-1", {})
        assert await ear.next() == partition_of(flow.flow_instance_id, 256)


async def test_without_hints_nothing_is_notified(database_url: str) -> None:
    async with _Ear(database_url) as ear:
        async with open_store(database_url, hints=False) as store:
            assert not store.capabilities.notify
            await store.advance(await _new_flow(store), schedule=[ScheduleTimer("a", after=timedelta(0))])
        # A notification that follows shows that everything sent before it would have arrived.
        async with open_store(database_url) as store:
            flow = await store.advance(await _new_flow(store), schedule=[ScheduleTimer("a", after=timedelta(0))])
        assert await ear.next() == partition_of(flow.flow_instance_id, 256)
        assert ear.heard.empty()


def test_two_schemas_have_two_channels() -> None:
    assert hint_channel(None) != hint_channel("tenant_a") != hint_channel("tenant_b")
    assert len(hint_channel("x" * 63)) <= 63
