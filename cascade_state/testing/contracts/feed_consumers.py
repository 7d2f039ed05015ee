"""FeedConsumer: everything once, in order, whoever works on it and whatever fails meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.coordination import Backoff, FeedConsumer, ReplicaSet
from cascade_state.errors import InvalidArgument, UsageError
from cascade_state.ids import partition_of
from cascade_state.model.events import FlowEvent
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import PATIENCE, StoreContract
from cascade_state.testing.contracts.rules import rule

__all__ = [
    "FeedConsumersContract",
    "Journal",
    "effects_in",
    "is_caught_up",
    "quick_consumer",
    "running",
    "some_flows",
    "until",
    "until_handled",
]

_POLL_SECONDS = 0.01
_QUICK: dict[str, Any] = {
    "heartbeat_interval": timedelta(milliseconds=100),
    "stale_after": timedelta(seconds=30),
    "poll_interval": timedelta(milliseconds=200),
    "backoff": Backoff(initial=timedelta(milliseconds=20), maximum=timedelta(milliseconds=100)),
    "handle_signals": False,
}


class Journal:
    """A handler that keeps, in the unit of work, what it was handed; and remembers it, committed or not."""

    def __init__(self) -> None:
        self.calls: list[list[FlowEvent]] = []
        self.broken: set[UUID] = set()
        self.entered: asyncio.Event = asyncio.Event()
        self.gate: asyncio.Event | None = None  # it waits for this

    async def __call__(self, events: list[FlowEvent], uow: UnitOfWork) -> None:
        self.calls.append(events)
        self.entered.set()
        for event in events:
            # Refused if the event has had its effect: a step id is stored once.
            await uow.component_states.put(
                event.flow_instance_id, f"event-{event.sequence}", event.event_type, expected_version=0
            )
        if self.gate is not None:
            await self.gate.wait()
        if self.broken.intersection(event.flow_instance_id for event in events):
            raise RuntimeError("the handler is broken")

    @property
    def seen(self) -> list[FlowEvent]:
        return [event for events in self.calls for event in events]


@asynccontextmanager
async def running(*consumers: FeedConsumer) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Runs consumers for the length of a block, and stops them."""
    tasks = [asyncio.ensure_future(consumer.run()) for consumer in consumers]
    try:
        yield tasks
    finally:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(consumer.stop() for consumer in consumers))
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns when the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if await condition():
                return
            await asyncio.sleep(_POLL_SECONDS)


def quick_consumer(store: Store, handler: Any, name: str = "invoices", **options: Any) -> FeedConsumer:
    """Returns a consumer that is in a hurry."""
    return FeedConsumer(store, name=name, handler=handler, **{**_QUICK, **options})


async def effects_in(store: Store, flows: Iterable[FlowInstance]) -> dict[UUID, list[int]]:
    """Returns, for each flow, the sequences of the events that had their effect."""
    found = {}
    for flow in flows:
        states = await store.component_states.list_for_instance(flow.flow_instance_id)
        found[flow.flow_instance_id] = sorted(int(state.step_id.removeprefix("event-")) for state in states)
    return found


async def is_caught_up(store: Store, *names: str) -> bool:
    """Returns whether consumers are there and have nothing before them; by default the one of `quick_consumer`."""
    for name in names or ("invoices",):
        if await store.feeds.find(name) is None or (await store.feeds.lag(name)).events:
            return False
    return True


async def until_handled(store: Store, flows: Sequence[FlowInstance], count: int) -> None:
    """Returns when each flow's first `count` events have had their effect."""

    async def all_there() -> bool:
        expected = list(range(1, count + 1))
        return all(sequences == expected for sequences in (await effects_in(store, flows)).values())

    await until(all_there)


async def some_flows(store: Store, count: int) -> list[FlowInstance]:
    """Returns new flows, each with one event."""
    definition = await factories.deploy_flow_definition(store)
    return [await factories.add_flow(store, definition) for _ in range(count)]


async def advanced(store: Store, flows: Iterable[FlowInstance], step: str) -> list[FlowInstance]:
    """Returns the flows a step further, one event each."""
    return [await store.advance(flow.complete_step(step)) for flow in flows]


def _is_in_order(events: Iterable[FlowEvent]) -> bool:
    """Whether each flow's events came as 1, 2, 3 …, each once."""
    sequences = defaultdict(list)
    for event in events:
        sequences[event.flow_instance_id].append(event.sequence)
    return all(found == list(range(1, len(found) + 1)) for found in sequences.values())


class FeedConsumersContract(StoreContract):
    """`FeedConsumer` on any store."""

    @rule("Feed", "ORC-01")
    async def test_it_handles_what_is_there_and_what_comes_once_and_in_order(self, store: Store) -> None:
        flows = await some_flows(store, 8)
        journal = Journal()
        async with running(quick_consumer(store, journal, batch_size=3)):
            await until_handled(store, flows, 2)
            flows = await advanced(store, flows, "charge")
            await until_handled(store, flows, 3)
            await advanced(store, flows[:2], "ship")
            await until_handled(store, flows[:2], 4)
            await until(lambda: is_caught_up(store))
        assert _is_in_order(journal.seen)
        assert len(journal.seen) == 8 * 3 + 2
        for events in journal.calls:
            assert 1 <= len(events) <= 3
            assert len({partition_of(event.flow_instance_id, 256) for event in events}) == 1

    @rule("Feed", "ORC-02")
    async def test_two_workers_share_the_partitions_and_both_work(self, store: Store, other_store: Store) -> None:
        first, second = Journal(), Journal()
        consumers = quick_consumer(store, first), quick_consumer(other_store, second)
        async with running(*consumers):
            await until(lambda: self._is_shared(store, consumers[0], workers=2))
            flows = await some_flows(store, 40)  # that all are one worker's has a chance of 2 ** -39
            await until_handled(store, flows, 2)
            await until(lambda: is_caught_up(store))
        assert first.calls
        assert second.calls
        assert _is_in_order([*first.seen, *second.seen])
        assert len(first.seen) + len(second.seen) == 80

    @rule("ORC-04")
    async def test_a_worker_that_leaves_hands_over_and_nothing_is_doubled(
        self, store: Store, other_store: Store
    ) -> None:
        first, second = Journal(), Journal()
        leaver, stayer = quick_consumer(store, first), quick_consumer(other_store, second)

        async def leaver_has_worked() -> bool:
            return len(first.calls) > 0

        async with running(leaver, stayer):
            await until(lambda: self._is_shared(store, leaver, workers=2))
            flows = await some_flows(store, 20)
            await until(leaver_has_worked)
            await leaver.stop()
            flows = await advanced(store, flows, "charge")
            await until_handled(store, flows, 3)
            await until(lambda: is_caught_up(store))
        assert _is_in_order([*first.seen, *second.seen])
        assert Counter(len(journal.calls) > 0 for journal in (first, second))[True] == 2

    @rule("Feed", "ORC-08")
    async def test_consumers_are_independent(self, store: Store, other_store: Store) -> None:
        seen: dict[str, list[FlowEvent]] = {"invoices": [], "mails": []}

        def handler(name: str) -> Any:
            async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
                seen[name] += events

            return handle

        # One replica set for both: each has all of the partitions nevertheless.
        consumers = [
            quick_consumer(target, handler(name), name, replica_set="shipping")
            for target, name in ((store, "invoices"), (other_store, "mails"))
        ]
        async with ReplicaSet(store, "shipping").join(), running(*consumers):
            await some_flows(store, 12)
            await until(lambda: is_caught_up(store, "invoices", "mails"))
        for events in seen.values():
            assert len(events) == 24
            assert _is_in_order(events)

    async def test_a_consumer_from_now_and_one_added_later_from_the_beginning(self, store: Store) -> None:
        old = await some_flows(store, 5)
        now, all_of_it = [], []

        async def handle_now(events: list[FlowEvent], uow: UnitOfWork) -> None:
            now.extend(events)

        async def handle_all(events: list[FlowEvent], uow: UnitOfWork) -> None:
            all_of_it.extend(events)

        consumer = quick_consumer(store, handle_now, "now", start="now")
        assert (await consumer.lag()).events == 0
        async with running(consumer):
            new = await advanced(store, old, "charge")
            await until(lambda: is_caught_up(store, "now"))
        assert {(event.flow_instance_id, event.sequence) for event in now} == {
            (flow.flow_instance_id, 3) for flow in new
        }
        async with running(quick_consumer(store, handle_all, "late")):
            await until(lambda: is_caught_up(store, "late"))
        assert len(all_of_it) == 15
        assert _is_in_order(all_of_it)

    @rule("Feed")
    async def test_a_failing_handler_stops_its_partition_and_no_other(self, store: Store) -> None:
        flows = await some_flows(store, 12)
        broken = flows[0].flow_instance_id
        partition_id = partition_of(broken, 256)
        others = [flow for flow in flows if partition_of(flow.flow_instance_id, 256) != partition_id]
        journal = Journal()
        journal.broken.add(broken)
        async with running(quick_consumer(store, journal)):
            await until_handled(store, others, 2)

            async def has_failed_twice() -> bool:
                return any(failure.attempts >= 2 for failure in await store.feeds.list_failing("invoices"))

            await until(has_failed_twice)
            (failure,) = await store.feeds.list_failing("invoices")
            assert failure.partition_id == partition_id
            assert failure.last_error == "RuntimeError: the handler is broken"
            assert (await store.statistics()).consumer_failures == {"invoices": 1}
            assert await effects_in(store, flows[:1]) == {broken: []}
            await until_handled(store, await advanced(store, others, "charge"), 3)
            journal.broken.clear()
            await until_handled(store, flows[:1], 2)
        assert (await store.statistics()).consumer_failures == {}

    @rule("ORC-09")
    async def test_a_strict_consumer_raises_what_the_handler_raised(self, store: Store) -> None:
        flows = await some_flows(store, 3)
        journal = Journal()
        journal.broken.add(flows[1].flow_instance_id)
        consumer = quick_consumer(store, journal, strict=True)
        with pytest.raises(RuntimeError, match="the handler is broken"):
            await self.finished(consumer.run())
        assert (await store.statistics()).workers_alive == 0
        assert await effects_in(store, flows[1:2]) == {flows[1].flow_instance_id: []}
        assert len(await store.feeds.list_failing("invoices")) == 1
        journal.broken.clear()
        async with running(consumer):
            await until_handled(store, flows, 2)

    async def test_a_handler_that_cancels_itself_has_failed(self, store: Store) -> None:
        await some_flows(store, 1)

        async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
            raise asyncio.CancelledError

        with pytest.raises(RuntimeError, match="cancelled itself"):
            await self.finished(quick_consumer(store, handle, strict=True).run())

    async def test_pausing_holds_for_every_worker_until_it_is_resumed(self, store: Store, other_store: Store) -> None:
        flows = await some_flows(store, 4)
        journal = Journal()
        elsewhere = quick_consumer(other_store, journal)

        async def witness(events: list[FlowEvent], uow: UnitOfWork) -> None:
            pass

        async with running(quick_consumer(store, journal), quick_consumer(store, witness, "witness")):
            await until_handled(store, flows, 2)
            await until(lambda: is_caught_up(store))
            await elsewhere.pause()
            flows = await advanced(store, flows, "charge")
            async with running(quick_consumer(store, journal)):  # one that starts while it is paused
                await until(lambda: is_caught_up(store, "witness"))  # what one has seen, all could have
                assert (await elsewhere.lag()).events == 4
                assert len(journal.seen) == 8
                await elsewhere.resume()
                await until_handled(store, flows, 3)
        assert _is_in_order(journal.seen)

    async def test_it_is_reset_only_while_it_stands_still(self, store: Store, other_store: Store) -> None:
        await some_flows(store, 3)
        seen: list[FlowEvent] = []

        async def handle(events: list[FlowEvent], uow: UnitOfWork) -> None:
            seen.extend(events)

        consumer = quick_consumer(store, handle)
        elsewhere = quick_consumer(other_store, handle)
        async with running(consumer):
            await until(lambda: is_caught_up(store))
            for other in (consumer, elsewhere):
                with pytest.raises(UsageError):
                    await other.reset("beginning")
        assert len(seen) == 6
        await elsewhere.reset("beginning")
        async with running(consumer):
            await until(lambda: is_caught_up(store))
        assert len(seen) == 12
        await consumer.reset("now")
        assert (await consumer.lag()).events == 0

    @rule("ORC-10")
    async def test_a_second_run_goes_on_where_the_first_one_stopped(self, store: Store) -> None:
        flows = await some_flows(store, 4)
        journal = Journal()
        consumer = quick_consumer(store, journal)
        async with running(consumer):
            await until_handled(store, flows, 2)
        flows = await advanced(store, flows, "charge")
        async with running(consumer):
            await until_handled(store, flows, 3)
        assert _is_in_order(journal.seen)
        assert len(journal.seen) == 12

    # Arguments

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("name", ""),
            ("name", "x" * 513),
            ("handler", None),
            ("replica_set", ""),
            ("start", "end"),
            ("batch_size", 0),
            ("batch_size", 10_001),
            ("concurrency", 0),
            ("poll_interval", timedelta(0)),
            ("grace_period", -timedelta(1)),
            ("heartbeat_interval", timedelta(seconds=11)),
            ("stale_after", timedelta(0)),
        ],
    )
    async def test_what_is_unusable_is_refused(self, store: Store, argument: str, value: Any) -> None:
        with pytest.raises(InvalidArgument) as caught:
            FeedConsumer(store, **{"name": "invoices", "handler": Journal(), argument: value})
        assert argument in caught.value.argument

    async def test_the_names_of_set_and_consumer_must_fit_together(self, store: Store) -> None:
        with pytest.raises(InvalidArgument):
            FeedConsumer(store, name="n" * 300, replica_set="s" * 300, handler=Journal())

    async def test_a_replica_set_brings_its_intervals(self, store: Store) -> None:
        replica_set = ReplicaSet(
            store, "shipping", heartbeat_interval=timedelta(seconds=1), stale_after=timedelta(seconds=7)
        )
        consumer = quick_consumer(store, Journal(), replica_set=replica_set)
        assert (consumer.name, consumer.members) == ("invoices", "shipping/feed/invoices")
        async with running(consumer):
            await until(lambda: self._is_shared(store, consumer, workers=1))
            (worker,) = await store.replica_sets.list_workers(consumer.members)
        assert worker.stale_after == timedelta(seconds=7)
        assert worker.metadata["feed_consumer"] == "invoices"

    async def _is_shared(self, store: Store, consumer: FeedConsumer, *, workers: int) -> bool:
        owned = Counter(found.owner for found in await store.replica_sets.list_assignments(consumer.members))
        return None not in owned and len(owned) == workers and max(owned.values()) - min(owned.values()) <= 1
