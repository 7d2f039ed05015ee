"""A hundred thousand hand-overs, after each of which the former holder goes on as if nothing had happened.

Each hand-over is a claim that expires and is taken by the next holder. The one before then writes in every way there
is: it completes, renews, releases, retries, gives up, advances its flow, and puts the state of a component. Not one of
these writes may be accepted. A frozen clock makes leases end at once, and what can travel in a batch does. Readers of
the feed, whose partitions change hands, are in `test_zombie_readers`; the hundred thousand is of both together.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from cascade_state import (
    AlreadyExists,
    Delivery,
    FlowInstance,
    LeaseLost,
    Store,
    Timer,
    VersionConflict,
    open_store,
)
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts import rule
from tests.coordination.test_zombie_readers import READER_HANDOVERS

pytestmark = pytest.mark.postgres

_LEASE = timedelta(seconds=30)
_FLOWS = 500  # each with a timer and a delivery, so 1,500 things change hands in a round
_ROUNDS = 65  # 97,500 hand-overs
_SAMPLES = 12  # of these each round tries the writes that go one by one, for each kind


@pytest.fixture
async def store(database_url: str, clock: FrozenClock) -> AsyncIterator[Store]:
    async with open_store(database_url, clock=clock, max_attempts=1_000_000) as opened:
        yield opened


class _Tally:
    """How many stale writes were tried and refused; one that was accepted fails at once."""

    def __init__(self) -> None:
        self.handovers = 0
        self.refused: Counter[str] = Counter()

    async def refuses(self, what: str, write: Awaitable[object]) -> None:
        try:
            result = await write
        except (LeaseLost, VersionConflict, AlreadyExists):
            self.refused[what] += 1
        else:
            raise AssertionError(f"a stale {what} was accepted: {result!r}")

    async def renews_nothing(self, what: str, renewal: Awaitable[list[Any]], items: int) -> None:
        assert await renewal == [], what
        self.refused[what] += items


async def _filled(store: Store, database_url: str) -> None:
    definition = await factories.deploy_flow_definition(store)
    flows = [
        factories.running_flow(definition).suspend_for_event("ship", factories.unique("key")) for _ in range(_FLOWS)
    ]
    results = await store.flow_instances.add_many(flows)
    assert all(result.error is None for result in results)
    for flow in flows:
        await store.correlations.publish(flow.waits["ship"], {"n": 1})
    connection = await asyncpg.connect(database_url)
    try:  # timers that are due, which one attempt after the other cannot kill
        await connection.execute(
            "INSERT INTO timers (partition_id, timer_id, flow_instance_id, step_id, due_at, status, lease_token, "
            "attempts, max_attempts, payload) SELECT partition_id, flow_instance_id, flow_instance_id, 'bill', "
            "created_at, 'PENDING', 0, 0, 1000000, 'null' FROM flow_instances"
        )
    finally:
        await connection.close()


async def _claimed(store: Store, holder: str) -> tuple[list[Timer], list[Delivery], list[FlowInstance]]:
    return (
        await store.timers.claim_due(holder, limit=_FLOWS, lease_duration=_LEASE),
        await store.correlations.claim_delivered(holder, limit=_FLOWS, lease_duration=_LEASE),
        await store.flow_instances.claim(holder, limit=_FLOWS, lease_duration=_LEASE),
    )


async def _goes_on(
    store: Store, held: tuple[list[Timer], list[Delivery], list[FlowInstance]], tally: _Tally, turn: int
) -> None:
    """Does what a holder would do with all that it claimed, in batches and one by one."""
    timers, deliveries, flows = held
    for skip_locked in (False, True):
        await tally.renews_nothing("renewal", store.timers.renew(timers, _LEASE, skip_locked=skip_locked), len(timers))
        await tally.renews_nothing(
            "renewal", store.correlations.renew(deliveries, _LEASE, skip_locked=skip_locked), len(deliveries)
        )
        await tally.renews_nothing(
            "renewal", store.flow_instances.renew(flows, _LEASE, skip_locked=skip_locked), len(flows)
        )
    batches: Iterable[tuple[str, Awaitable[object]]] = (
        ("completion", store.timers.complete(timers)),
        ("completion", store.correlations.complete(deliveries)),
        ("release", store.timers.release(timers)),
        ("release", store.correlations.release(deliveries)),
        ("release", store.flow_instances.release(flows)),
    )
    for what, write in batches:
        await tally.refuses(what, write)
    start = turn * _SAMPLES % _FLOWS
    chosen = slice(start, start + _SAMPLES)
    current = {flow.flow_instance_id: flow for flow in flows}
    acknowledged: list[Timer | Delivery] = [*timers[chosen], *deliveries[chosen]]
    await asyncio.gather(
        *(tally.refuses("completion", store.timers.complete([timer])) for timer in timers[chosen]),
        *(tally.refuses("retry", store.timers.retry(timer, after=_LEASE, error="late")) for timer in timers[chosen]),
        *(tally.refuses("giving up", store.timers.give_up(timer, reason="late")) for timer in timers[chosen]),
        *(
            tally.refuses("retry", store.correlations.retry(delivery, after=_LEASE, error="late"))
            for delivery in deliveries[chosen]
        ),
        *(
            tally.refuses("giving up", store.correlations.give_up(delivery, reason="late"))
            for delivery in deliveries[chosen]
        ),
        *(
            tally.refuses(
                "advance",
                store.advance(
                    current[item.flow_instance_id].resume().complete_step("late"),
                    completes=[item],
                    put_states={"late": "stale"},
                ),
            )
            for item in acknowledged
        ),
        *(
            tally.refuses(
                "advance",
                store.advance(flow.resume().complete_step("late"), lease=flow.lease, put_states={"late": "stale"}),
            )
            for flow in flows[chosen]
        ),
    )


@pytest.mark.timeout(150)
@rule("C-50")
async def test_of_a_hundred_thousand_former_holders_none_writes_anything(
    store: Store, database_url: str, clock: FrozenClock
) -> None:
    await _filled(store, database_url)
    tally = _Tally()
    former = await _claimed(store, "holder-0")
    for turn in range(1, _ROUNDS + 1):
        clock.advance(_LEASE)
        held = await _claimed(store, f"holder-{turn}")
        assert len(held[0]) == len(held[1]) == len(held[2]) == _FLOWS
        tally.handovers += 3 * _FLOWS
        await _goes_on(store, former, tally, turn)
        former = held
    assert tally.handovers + READER_HANDOVERS >= 100_000
    assert set(tally.refused) == {"renewal", "completion", "release", "retry", "giving up", "advance"}
    assert tally.refused["renewal"] >= 190_000
    # What the last holder has is untouched by all of it: it can still finish everything.
    timers, deliveries, flows = former
    assert await store.timers.renew(timers, _LEASE) != []
    await store.timers.complete(timers)
    await store.correlations.complete(deliveries)
    await store.flow_instances.release(flows)
    for flow in flows[:20]:
        stored = await store.flow_instances.get(flow.flow_instance_id)
        assert (stored.version, stored.completed_steps) == (flow.version, frozenset())
        assert await store.component_states.list_for_instance(flow.flow_instance_id) == []
