"""Thousands of partitions of a feed consumer that change hands, after which the former reader goes on all the same.

Each hand-over leaves a reader with a batch that it has read and not completed. It writes its effects, asks for the
fence of its generation, moves the checkpoint without asking, and notes that its batch failed: nothing of it may be
accepted, and each batch has its effects once. The rest of the hundred thousand hand-overs is in `test_zombies`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable

import asyncpg
import pytest
from sqlalchemy import text

from cascade_state import LeaseLost, Store, UnitOfWork, open_store
from cascade_state.model.feeds import FeedBatch
from cascade_state.testing import factories
from cascade_state.testing.contracts import rule
from cascade_state.testing.contracts.feeds import take_batch

pytestmark = pytest.mark.postgres

READER_HANDOVERS = 3_072
_PARTITIONS = 256  # each has one flow, and all of them change hands in a turn
_TURNS = READER_HANDOVERS // _PARTITIONS
_AT_ONCE = 64  # partitions that one reader works in with one unit of work
_BATCH = 2
_CONSUMER, _SET = "invoices", "readers"

_FLOWS = """
INSERT INTO flow_instances (partition_id, flow_instance_id, root_id, flow_id, flow_version, status, trigger_data,
                            version, event_count, created_at, updated_at)
SELECT number, id, id, $1, $2, 'RUNNING', 'null', 1, $3::bigint, now(), now()
FROM generate_series(0, $4::integer - 1) AS number, CAST(lpad(to_hex(number), 32, '0') AS uuid) AS id
"""
_EVENTS = """
INSERT INTO flow_events (partition_id, flow_instance_id, sequence, event_type, payload, recorded_at)
SELECT partition_id, flow_instance_id, sequence, 'noted', '1', now()
FROM flow_instances, generate_series(1, event_count) AS sequence
"""
_OWNERS = """
INSERT INTO partition_assignments (partition_id, replica_set, owner, generation)
SELECT number, $1, 'reader-0', 0 FROM generate_series(0, $2::integer - 1) AS number
"""
_NEXT_OWNER = """
UPDATE partition_assignments SET generation = generation + 1, owner = 'reader-' || generation + 1
WHERE replica_set = $1 AND partition_id = ANY($2::integer[])
"""
_EFFECTS = text(
    "INSERT INTO effects SELECT * FROM unnest(CAST(:partitions AS integer[]), CAST(:sequences AS bigint[])), "
    "(SELECT CAST(:reader AS integer)) AS reader"
)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as opened:
        yield opened


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=4) as pool:
        yield pool


class _Readers:
    """The readers of one consumer, the next of which has each partition in the next generation."""

    def __init__(self, store: Store, database: asyncpg.Pool) -> None:
        self.refused: Counter[str] = Counter()
        self.handovers = 0
        self._store = store
        self._database = database

    async def next_owner(self, partitions: list[int]) -> None:
        await self._database.execute(_NEXT_OWNER, _SET, partitions)
        self.handovers += len(partitions)

    async def read(self, on: Store | UnitOfWork, partitions: list[int]) -> list[FeedBatch]:
        batches = [await on.feeds.read_batch(_CONSUMER, number, limit=_BATCH) for number in partitions]
        return [batch for batch in batches if batch is not None]

    async def handles(self, partitions: list[int], generation: int) -> None:
        """Does what the owner of this generation has to do."""
        async with self._store.begin() as uow:
            batches = await self.read(uow, partitions)
            assert [len(batch.events) for batch in batches] == [_BATCH] * len(partitions)
            await _write_effects(uow, batches, generation)
            for batch in batches:
                await uow.fence(batch.partition_id, generation, _SET)
                await uow.feeds.complete(batch)

    async def is_overtaken_in_hand(self, partitions: list[int], generation: int) -> None:
        """A reader whose unit of work is open while the partitions change hands: the next one waits for its end."""
        async with self._store.begin() as uow:
            batches = await self.read(uow, partitions)
            await self.next_owner(partitions)
            assert await self.read(self._store, partitions[:3]) == []
            await _write_effects(uow, batches, generation)
            for batch in batches:
                await self._refuses("fence", uow.fence(batch.partition_id, generation, _SET))
            await uow.rollback()
        await self._notes_failures(partitions, generation)
        await self.handles(partitions, generation + 1)

    async def is_overtaken_late(self, partitions: list[int], generation: int) -> None:
        """A reader that lost its hold, so that the next one has handled its batches, and that tries all the same."""
        batches = await self.read(self._store, partitions)
        await self.next_owner(partitions)
        await self.handles(partitions, generation + 1)
        await asyncio.gather(*(self._refuses("checkpoint", self._store.feeds.complete(batch)) for batch in batches))
        async with self._store.begin() as uow:
            await _write_effects(uow, batches, generation)
            for batch in batches:
                await self._refuses("fence", uow.fence(batch.partition_id, generation, _SET))
            await uow.rollback()
        await self._notes_failures(partitions, generation)

    async def _notes_failures(self, partitions: list[int], generation: int) -> None:
        async def note(uow: UnitOfWork, partition_id: int) -> None:
            await uow.fence(partition_id, generation, _SET)
            await uow.feeds.retry(_CONSUMER, partition_id, error="late")

        async with self._store.begin() as uow:
            for partition_id in partitions:
                await self._refuses("failure", note(uow, partition_id))

    async def _refuses(self, what: str, write: Awaitable[object]) -> None:
        with pytest.raises(LeaseLost):
            await write
        self.refused[what] += 1


async def _write_effects(uow: UnitOfWork, batches: list[FeedBatch], reader: int) -> None:
    places = [(batch.partition_id, event.sequence) for batch in batches for event in batch.events]
    partitions, sequences = zip(*places, strict=True)
    values = {"partitions": list(partitions), "sequences": list(sequences), "reader": reader}
    await uow.connection.execute(_EFFECTS, values)


@pytest.mark.timeout(120)
@rule("C-50", "Feed")
async def test_of_thousands_of_former_readers_none_moves_a_checkpoint(store: Store, database: asyncpg.Pool) -> None:
    definition = await factories.deploy_flow_definition(store)
    count = _BATCH * _TURNS
    await database.execute("CREATE TABLE effects (partition_id integer, sequence bigint, reader integer)")
    await database.execute(_FLOWS, definition.flow_id, definition.version, count, _PARTITIONS)
    await database.execute(_EVENTS)
    await database.execute(_OWNERS, _SET, _PARTITIONS)
    await store.feeds.register(_CONSUMER)
    await take_batch(store, _CONSUMER, 0, count=count)  # all are of one transaction, so all can be handed out now
    readers = _Readers(store, database)
    groups = [list(range(first, first + _AT_ONCE)) for first in range(0, _PARTITIONS, _AT_ONCE)]
    for turn in range(_TURNS):
        overtaken = readers.is_overtaken_late if turn % 2 else readers.is_overtaken_in_hand
        await asyncio.gather(*(overtaken(partitions, turn) for partitions in groups))
    assert readers.handovers == READER_HANDOVERS
    assert readers.refused == {
        "fence": READER_HANDOVERS,
        "failure": READER_HANDOVERS,
        "checkpoint": READER_HANDOVERS // 2,
    }
    # Each event had its effect once, by the reader whose turn it was; and nobody's failure was noted.
    handled = await database.fetch("SELECT partition_id, sequence, reader FROM effects ORDER BY 1, 2, 3")
    assert [tuple(row) for row in handled] == [
        (partition_id, sequence, (sequence - 1) // _BATCH + 1)
        for partition_id in range(_PARTITIONS)
        for sequence in range(1, count + 1)
    ]
    assert (await store.feeds.lag(_CONSUMER)).events == 0
    assert await store.feeds.list_failing() == []
