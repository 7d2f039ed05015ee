"""Listening for hints over real connections: broken ones, poolers, several schemas, a store that is closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from cascade_state import FlowInstance, HintListener, Store, StoreNotOpen, open_store, partition_of
from cascade_state.postgres import listening
from cascade_state.postgres.hints import hint_payload, read_hint
from cascade_state.testing import factories
from tests.postgres.fault_tools import PATIENCE_SECONDS, Saboteur
from tests.postgres.own_server import OwnServer, own_server
from tests.postgres.pooler import pgbouncer
from tests.wire import Talk, Wire

pytestmark = pytest.mark.postgres

_PATIENCE = timedelta(seconds=PATIENCE_SECONDS)
_NOW = timedelta(0)
_EVERYTHING = frozenset(range(256))


@pytest.fixture
def restartable() -> Iterator[OwnServer]:
    with own_server() as started:
        yield started


async def _scheduled(store: Store, flow: FlowInstance) -> int:
    await store.timers.schedule(flow.flow_instance_id, "ship", after=timedelta(hours=1))
    return partition_of(flow.flow_instance_id, 256)


async def _until_silent(hints: HintListener, *, listening: bool) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if hints.is_listening is listening:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _saboteur(url: str, application_name: str) -> AsyncIterator[Saboteur]:
    connection = await asyncpg.connect(url)
    try:
        yield Saboteur(connection, application_name)
    finally:
        await connection.close()


async def test_a_broken_connection_is_made_again_and_counts_as_a_hint_of_everything(database_url: str) -> None:
    async with (
        open_store(database_url, application_name="ears") as store,
        open_store(database_url) as other,
        _saboteur(database_url, "ears") as saboteur,
        store.listen() as hints,
        store.listen() as more,
    ):
        flow = await factories.add_flow(other)
        partition = await _scheduled(other, flow)
        assert await hints.wait(_PATIENCE) == {partition}
        assert await more.wait(_PATIENCE) == {partition}
        await saboteur.terminate_all()
        assert await hints.wait(_PATIENCE) == _EVERYTHING
        assert await more.wait(_PATIENCE) == _EVERYTHING
        assert hints.is_listening
        partition = await _scheduled(other, flow)
        assert await hints.wait(_PATIENCE) == {partition}


async def test_a_listener_outlives_a_restart_of_the_server(restartable: OwnServer) -> None:
    async with open_store(restartable.url) as store:
        await store.migrate()
        flow = await factories.add_flow(store)
        async with store.listen() as hints:
            await restartable.stop_at_once()
            await _until_silent(hints, listening=False)
            async with store.listen() as born_deaf:
                assert not born_deaf.is_listening
                await restartable.start()
                assert await hints.wait(_PATIENCE) == _EVERYTHING
                partition = await _scheduled(store, flow)
                while partition not in await born_deaf.wait(_PATIENCE):
                    pass


async def test_a_connection_that_died_without_a_word_is_found_out(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_SIGN_OF_LIFE_SECONDS", 0.2)
    monkeypatch.setattr(listening, "_PROBE_SECONDS", 1.0)
    async with _MutableWire(database_url) as wire, open_store(wire.url) as store, store.listen() as hints:
        assert hints.is_listening
        wire.is_mute = True
        await _until_silent(hints, listening=False)
        wire.is_mute = False
        wire.cut()
        assert await hints.wait(_PATIENCE) == _EVERYTHING
        assert hints.is_listening


async def test_two_schemas_of_one_database_do_not_wake_each_other(empty_database_url: str) -> None:
    async with (
        open_store(empty_database_url, schema="tenant_a") as one,
        open_store(empty_database_url, schema="tenant_b") as two,
    ):
        await one.migrate()
        await two.migrate()
        async with one.listen() as hints_of_one, two.listen() as hints_of_two:
            partition = await _scheduled(one, await factories.add_flow(one))
            assert await hints_of_one.wait(_PATIENCE) == {partition}
            partition = await _scheduled(two, await factories.add_flow(two))
            # Notifications of one server arrive in the order of their commits: the first would have come before.
            assert await hints_of_two.wait(_PATIENCE) == {partition}


async def test_all_listeners_of_a_store_share_one_connection(database_url: str) -> None:
    async with (
        open_store(database_url, application_name="ears") as store,
        _saboteur(database_url, "ears") as saboteur,
    ):
        await store.now()  # opens a kept connection
        before = set(await saboteur.connected())
        async with store.listen(), store.listen("events"), store.listen():
            assert len(set(await saboteur.connected()) - before) == 1
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                if not set(await saboteur.connected()) - before:
                    break
                await asyncio.sleep(0.01)


async def test_behind_a_pooler_it_listens_on_the_direct_connection(database_url: str) -> None:
    with pgbouncer(database_url) as pooled:
        async with (
            open_store(pooled, pooler="pgbouncer", direct_url=database_url) as store,
            open_store(pooled, pooler="pgbouncer") as other,
            store.listen() as hints,
        ):
            assert hints.is_listening
            partition = await _scheduled(other, await factories.add_flow(other))
            assert await hints.wait(_PATIENCE) == {partition}


async def test_behind_a_pooler_without_a_direct_connection_it_says_so_and_hears_nothing(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pgbouncer(database_url) as pooled, caplog.at_level(logging.WARNING, "cascade_state"):
        async with open_store(pooled, pooler="pgbouncer") as store, store.listen() as hints:
            assert not hints.is_listening
            assert "direct_url" in caplog.text
            await _scheduled(store, await factories.add_flow(store))
            assert await hints.wait(timedelta(milliseconds=50)) == frozenset()


async def test_with_hints_switched_off_it_hears_nothing(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with open_store(database_url, hints=False) as store, store.listen() as hints:
        assert not hints.is_listening
        assert await hints.wait(_NOW) == frozenset()
    assert caplog.text == ""


async def test_a_pooler_that_nobody_told_it_about_is_found_out(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "_PROBE_SECONDS", 0.3)
    async with (
        _MutableWire(database_url, swallows_notifications=True) as wire,
        open_store(wire.url) as store,
        store.listen() as hints,
    ):
        assert not hints.is_listening
        assert "transaction pooler" in caplog.text


async def test_a_store_that_closes_ends_its_listening(database_url: str) -> None:
    async with open_store(database_url) as store:
        hints = store.listen()
        await hints.__aenter__()
        assert hints.is_listening
    assert not hints.is_listening
    await hints.__aexit__(None, None, None)
    with pytest.raises(StoreNotOpen):
        store.listen()


async def test_who_is_cancelled_while_it_connects_leaves_nothing_behind(database_url: str) -> None:
    async with _MutableWire(database_url) as wire, open_store(wire.url) as store:
        wire.is_mute = True

        async def listen() -> None:
            async with store.listen():
                raise AssertionError("the server says nothing")

        task = asyncio.create_task(listen())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        wire.is_mute = False
        wire.cut()
        async with store.listen() as hints:
            assert hints.is_listening


def test_a_notification_that_is_no_hint_is_passed_over() -> None:
    assert read_hint(hint_payload(17)) == (17, "work")
    assert read_hint(hint_payload(17, "events")) == (17, "events")
    assert [read_hint(payload) for payload in ("", "e", "probe 1", "x7", "٣", "-1")] == [None] * 6


class _MutableWire(Wire):
    """A proxy that can fall silent, or swallow notifications as a pooler does."""

    def __init__(self, url: str, *, swallows_notifications: bool = False) -> None:
        super().__init__(url)
        self.is_mute = False
        self._swallows = swallows_notifications

    def lets_request_through(self, talk: Talk, chunk: bytes) -> bool:
        return super().lets_request_through(talk, chunk) and not self.is_mute

    def lets_answer_through(self, talk: Talk, chunk: bytes) -> bool:
        # A notification travels alone here, because nothing else happens on that connection.
        is_swallowed = self._swallows and chunk[:1] == b"A"
        return super().lets_answer_through(talk, chunk) and not (self.is_mute or is_swallowed)
