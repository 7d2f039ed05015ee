"""What becomes of a server's refusals, of URLs that cannot work, and of rows that cannot be read."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from cascade_state import (
    CascadeStateError,
    FlowInstance,
    SchemaMismatch,
    StoreError,
    StoreUnavailable,
    UsageError,
    open_store,
)
from cascade_state.model.leases import Lease
from cascade_state.postgres.engine import shown_url
from cascade_state.postgres.error_translation import translated_error
from cascade_state.testing import factories
from tests.contract.postgres_observer import PostgresObserver

pytestmark = pytest.mark.postgres

_LEASE = timedelta(seconds=30)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret/word@localhost/flows",
        "postgresql://user:secret@localhost:port/flows",
        "postgresql://user:secret@localhost/flows?sslmode=sometimes",
        "postgresql://user:secret@[::1/flows",
        "postgresql://user:secret@localhost/flows?target_session_attrs=anybody",
    ],
)
async def test_a_url_that_cannot_work_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        async with open_store(url):
            pass
    assert "secret" not in "".join(traceback.format_exception(caught.value))


async def test_a_missing_database_is_told_apart_from_a_server_that_is_down(database_url: str) -> None:
    name = database_url.partition("?")[0].rpartition("/")[2]
    with pytest.raises(StoreError, match="no such database") as caught:
        async with open_store(database_url.replace(name, "missing")):
            pass
    assert not isinstance(caught.value, StoreUnavailable)
    assert caught.value.sqlstate == "3D000"
    with pytest.raises(StoreUnavailable):
        async with open_store("postgresql://user:secret@127.0.0.1:1/flows"):
            pass


async def test_a_database_without_the_tables_says_so(empty_database_url: str) -> None:
    async with open_store(empty_database_url) as store:
        with pytest.raises(SchemaMismatch):
            await store.timers.next_due_at()


async def test_a_session_that_takes_no_writes_is_unavailable(database_url: str) -> None:
    name = database_url.partition("?")[0].rpartition("/")[2]
    connection = await asyncpg.connect(database_url)
    await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    await connection.close()
    async with open_store(database_url) as store:
        assert await store.timers.next_due_at() is None
        with pytest.raises(StoreUnavailable, match="no writes"):
            await store.flow_definitions.deploy(factories.flow_definition())
        with pytest.raises(StoreUnavailable, match="no writes"):
            await store.correlations.publish("parcel-1", {"secret": 1})


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("28P01", StoreError),
        ("28000", StoreError),
        ("42501", StoreError),
        ("3D000", StoreError),
        ("26000", StoreError),
        ("22003", StoreError),
        ("23505", StoreError),
        ("3F000", SchemaMismatch),
        ("08006", StoreUnavailable),
        ("53300", StoreUnavailable),
        ("57P01", StoreUnavailable),
    ],
)
def test_an_error_is_classified_by_its_sqlstate_and_never_repeats_the_servers_text(sqlstate: str, kind: Any) -> None:
    error: Any = asyncpg.PostgresError("secret")
    error.sqlstate = sqlstate
    translated = translated_error(error)
    assert type(translated) is kind
    assert "secret" not in str(translated)


async def test_numbers_that_no_row_can_have_are_no_outage(database_url: str) -> None:
    async with open_store(database_url) as store:
        flow = await factories.add_flow(store)
        definition = await store.flow_definitions.deploy(factories.flow_definition())
        lease = Lease(holder="w", token=2**70, expires_at=datetime.now(UTC))
        calls: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: store.advance(replace(flow.complete_step("a"), version=2**70)),
            lambda: store.advance(flow.complete_step("a"), lease=lease),
            lambda: store.flow_instances.add(FlowInstance.create(replace(definition, version=2**40))),
        )
        for call in calls:
            with pytest.raises(CascadeStateError) as caught:
                await call()
            assert not isinstance(caught.value, StoreUnavailable)


async def test_a_flow_that_cannot_be_read_does_not_keep_others_from_being_claimed(database_url: str) -> None:
    async with open_store(database_url) as store:
        broken, sound = [await factories.add_flow(store) for _ in range(2)]
        await PostgresObserver(database_url).make_undecodable(store, broken.flow_instance_id)
        claimed = await store.flow_instances.claim("w", lease_duration=_LEASE)
        assert [flow.flow_instance_id for flow in claimed] == [sound.flow_instance_id]


async def test_a_delivery_that_cannot_be_read_does_not_keep_others_from_being_claimed(database_url: str) -> None:
    async with open_store(database_url) as store:
        for key in ("parcel-1", "parcel-2"):
            await factories.add_flow(store, waits_for=key)
            await store.correlations.publish(key, {})
        connection = await asyncpg.connect(database_url)
        await connection.execute(
            "UPDATE correlations SET payload = repeat('9', 5000)::json WHERE correlation_key = 'parcel-1'"
        )
        await connection.close()
        claimed = await store.correlations.claim_delivered("w", lease_duration=_LEASE)
        assert [delivery.correlation_key for delivery in claimed] == ["parcel-2"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@host/flows",
        "postgresql://user@host/flows?password=secret",
        "postgresql://user@host/flows?pass%77ord=secret",
        "postgresql://user@host/flows?sslpassword=secret&sslmode=require",
        "postgresql://user:secret@a:1,b:2/flows",
    ],
)
def test_a_shown_url_has_no_password(url: str) -> None:
    assert "secret" not in shown_url(url)
    assert "flows" in shown_url(url)


def test_a_url_that_cannot_work_is_not_shown() -> None:
    assert shown_url("postgresql://user:secret/word@host/flows") == "postgresql://***"
