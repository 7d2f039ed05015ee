"""A store that is dumped on one server and restored on another, which counts its transactions differently."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from cascade_state import (
    FlowEvent,
    FlowInstance,
    SchemaMismatch,
    Store,
    Timer,
    TransactionAborted,
    UnitOfWork,
    open_store,
)
from cascade_state.coordination import Worker
from cascade_state.postgres.binaries import find_installation
from cascade_state.postgres.schema import migrate_database
from cascade_state.testing import factories
from cascade_state.testing.contracts.feed_reading import read_feed
from cascade_state.testing.contracts.feeds import partition_in, take_batch
from tests.postgres.own_server import OwnServer, own_server

pytestmark = pytest.mark.postgres

_CONSUMERS = {"early": 12, "half": 7, "late": 1, "now": 3}  # how much each has before it
_FEED = 12
_MANY = 3_000  # transactions, more than a new server has seen

_IDS = """
SELECT recorded_xid::text, flow_instance_id, sequence FROM flow_events UNION ALL
SELECT recorded_xid::text, flow_instance_id, sequence FROM feed_checkpoints UNION ALL
SELECT start_snapshot, NULL, NULL FROM feed_consumers ORDER BY 1, 2, 3
"""

_SCHEMA = "flow:s"
_QUOTED = f'"{_SCHEMA}"'
_MANY_EVENTS = f"""
INSERT INTO {_QUOTED}.flow_events
    (partition_id, flow_instance_id, sequence, event_type, payload, recorded_at, recorded_xid)
SELECT partition_id, flow_instance_id, number, 'noted', '1', now(), CAST(CAST(5000000000 + 7 * number AS text) AS xid8)
FROM {_QUOTED}.flow_instances, generate_series(3, {_MANY}) AS number
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[OwnServer, OwnServer]]:
    """A server that has counted far, and a new one."""
    with own_server() as far, own_server() as new:
        asyncio.run(_count_on(far, 10 * _MANY))
        yield far, new


async def _count_on(server: OwnServer, count: int) -> None:
    rounds = f"FOR round IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP"
    await _fetch(server.url, f"DO $$ BEGIN {rounds}; END $$")


async def _fetch(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def _new_database(server: OwnServer, name: str) -> str:
    await _fetch(server.url, f"CREATE DATABASE {name}")
    return server.url.replace("/postgres?", f"/{name}?")


async def _move(from_url: str, to_url: str, dump: Path) -> None:
    installation = find_installation()
    assert installation is not None
    programs = installation.bin_directory
    for program, *arguments in (
        ["pg_dump", "--format=custom", f"--file={dump}", from_url],
        ["pg_restore", "--exit-on-error", f"--dbname={to_url}", str(dump)],
    ):
        process = await asyncio.create_subprocess_exec(str(programs / program), *arguments)
        async with asyncio.timeout(60):
            assert await process.wait() == 0


def _places(events: Sequence[FlowEvent]) -> list[tuple[UUID, int]]:
    return [(event.flow_instance_id, event.sequence) for event in events]


async def _fill(store: Store) -> tuple[FlowInstance, FlowInstance]:
    """Writes two flows of one partition, and consumers that have come to different places in it; returns the flows."""
    definition = await factories.deploy_flow_definition(store)
    root = await factories.add_flow(store, definition)
    child = await store.advance(root.child(definition).start())
    for step in range(2):
        root = await store.advance(root.complete_step(f"step-{step}"))
        child = await store.advance(child.complete_step(f"step-{step}"))
    async with store.begin() as uow:  # it is under way while "now" starts, so what it writes is wanted
        child = await uow.advance(child.complete_step("wanted"))
        root = await store.advance(root.complete_step("not wanted"))
        await store.feeds.register("now", start="now")
    root = await store.advance(root.complete_step("new"))
    child = await store.advance(child.complete_step("new"))
    for consumer, rest in _CONSUMERS.items():
        await store.feeds.register(consumer)
        if handled := 0 if consumer == "now" else _FEED - rest:
            await take_batch(store, consumer, partition_in(store, root), count=_FEED)
            batch = await store.feeds.read_batch(consumer, partition_in(store, root), limit=handled)
            assert batch is not None
            await store.feeds.complete(batch)
    return root, child


async def _rests(store: Store, partition_id: int, more: int = 0) -> dict[str, list[tuple[UUID, int]]]:
    found = {}
    for consumer, count in _CONSUMERS.items():
        batch = await take_batch(store, consumer, partition_id, count=count + more)
        found[consumer] = _places(batch.events)
        assert len(found[consumer]) == count + more == (await store.feeds.lag(consumer)).events
    return found


async def _refuses_to_write(store: Store, flow: FlowInstance) -> None:
    """What was written now would stand in front of every checkpoint, where no consumer looks."""
    done = flow.complete_step("too early")
    for write in (store.check_schema, lambda: store.advance(done), lambda: _advance_in_a_block(store, done)):
        with pytest.raises(SchemaMismatch, match="restored from another server"):
            await write()
    engine = create_async_engine(store.url.replace("postgresql:", "postgresql+asyncpg:"))
    try:
        async with engine.begin() as connection, store.enlist(connection) as uow:
            with pytest.raises(SchemaMismatch):
                await uow.advance(done)
    finally:
        await engine.dispose()
    with pytest.raises(SchemaMismatch):
        await Worker(store, on_timer=_never, handle_signals=False).run()
    assert await store.flow_instances.get(flow.flow_instance_id) == flow


async def _advance_in_a_block(store: Store, flow: FlowInstance) -> None:
    async with store.begin() as uow:
        await uow.advance(flow)


async def _never(timer: Timer, uow: UnitOfWork) -> None:
    pytest.fail("nothing may be claimed")


@pytest.mark.parametrize("direction", ["far to new", "new to far"])
async def test_consumers_go_on_where_they_were(
    servers: tuple[OwnServer, OwnServer], direction: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    is_behind = direction == "far to new"
    here, there = servers if is_behind else reversed(servers)
    name = direction.replace(" ", "_")
    from_url, to_url = await _new_database(here, name), await _new_database(there, name)
    async with open_store(from_url) as store:
        await store.migrate()
        root, child = await _fill(store)
        partition_id = partition_in(store, root)
        whole = _places(await read_feed(store, _FEED))
        rests = await _rests(store, partition_id)
    await _move(from_url, to_url, tmp_path / "dump")
    before = await _fetch(to_url, _IDS)
    with caplog.at_level(logging.INFO, logger="cascade_state"):
        async with open_store(to_url) as store, open_store(to_url) as other, open_store(to_url) as third:
            assert ("restored from another server" in caplog.text) is is_behind
            if is_behind:
                await _refuses_to_write(store, root)
            await asyncio.gather(store.migrate(), other.migrate())
            assert caplog.text.count("feed renumbered") == is_behind
            assert (await _fetch(to_url, _IDS) != before) is is_behind
            await third.check_schema()  # so it may write, too
            assert _places(await read_feed(store, _FEED)) == whole
            assert await _rests(store, partition_id) == rests
            root = await store.advance(root.complete_step("there"))
            async with third.begin() as uow:
                child = await uow.advance(child.complete_step("there"))
            there_too = [(root.flow_instance_id, 7), (child.flow_instance_id, 7)]
            assert _places(await read_feed(store, _FEED + 2)) == whole + there_too
            after = await _rests(store, partition_id, more=2)
            assert after == {consumer: rest + there_too for consumer, rest in rests.items()}
            for consumer in _CONSUMERS:
                await store.feeds.complete(await take_batch(other, consumer, partition_id))
                assert (await store.feeds.lag(consumer)).events == 0


async def test_a_new_server_counts_on_when_there_is_more_than_it_has_seen(
    servers: tuple[OwnServer, OwnServer],
) -> None:
    url = await _new_database(servers[1], "many")
    await migrate_database(url, schema=_SCHEMA)
    async with open_store(url, schema=_SCHEMA) as store:
        flow = await factories.add_flow(store)
        await _fetch(url, _MANY_EVENTS)
        await _fetch(url, f"UPDATE {_QUOTED}.flow_instances SET event_count = {_MANY}")
        # What is older than the restored events would become could still write in front of them.
        elsewhere = await asyncpg.connect(servers[1].url)
        try:
            async with elsewhere.transaction():
                await elsewhere.execute("SELECT pg_current_xact_id()")
                with pytest.raises(TransactionAborted, match="older"):
                    await migrate_database(url, schema=_SCHEMA, lock_wait=timedelta(0))
                waiting = asyncio.create_task(migrate_database(url, schema=_SCHEMA))
                await asyncio.sleep(0)
        finally:
            await elsewhere.close()
        await waiting
        await store.check_schema()
        await store.advance(flow.complete_step("there"))
        seen: list[FlowEvent] = []
        while len(seen) < _MANY + 1:
            seen += await store.events.read(after=seen[-1].position if seen else None, limit=1_000)
        assert [event.sequence for event in seen] == list(range(1, _MANY + 2))
