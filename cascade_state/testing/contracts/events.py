"""The feed: every committed history event once, in an order that nothing can slip behind."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from uuid import UUID

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.errors import InvalidArgument
from cascade_state.ids import partition_of
from cascade_state.model.events import FlowEvent, NewEvent
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.feed_reading import FeedReader, read_feed
from cascade_state.testing.contracts.rules import rule
from cascade_state.testing.contracts.schedules import Actor, all_orders, run_schedule

__all__ = ["EventsContract"]


def _by_flow(events: Sequence[FlowEvent]) -> dict[UUID, list[int]]:
    """Returns the sequence numbers of each flow, in the order of the feed."""
    sequences = defaultdict(list)
    for event in events:
        sequences[event.flow_instance_id].append(event.sequence)
    return dict(sequences)


def _behind(events: Sequence[FlowEvent], event: FlowEvent) -> set[str]:
    """Returns the positions of the events behind this one."""
    return {other.position for other in events[events.index(event) + 1 :]}


def _writer(target: Store, flow: FlowInstance, steps: Sequence[Sequence[NewEvent]], *, commits: bool) -> Actor:
    """Returns an actor that advances a flow once for each step, with the events of that step."""

    async def advance(uow: UnitOfWork, events: Sequence[NewEvent]) -> None:
        nonlocal flow
        flow = await uow.advance(flow, events=events)

    return Actor(target, *(partial(advance, events=events) for events in steps), commits=commits)


class EventsContract(StoreContract):
    """`events.read` hands out the history of all flows, as it is committed."""

    async def test_an_empty_store_has_no_events(self, store: Store) -> None:
        assert await store.events.read() == []

    async def test_the_feed_is_the_history_of_the_flows(self, store: Store, clock: FrozenClock) -> None:
        flow = await factories.add_flow(store)
        recorded_at = clock.now()
        await store.advance(flow.complete_step("charge"), events=[NewEvent("invoice.sent", {"number": "R-1"})])
        events = await read_feed(store, 4)
        assert events == await store.flow_instances.history(flow.flow_instance_id)
        assert [(event.sequence, event.event_type) for event in events] == [
            (1, "flow_instance.created"),
            (2, "flow_instance.started"),
            (3, "step.completed"),
            (4, "invoice.sent"),
        ]
        assert events[3].payload == {"number": "R-1"}
        assert {event.recorded_at for event in events} == {recorded_at}
        assert {event.flow_instance_id for event in events} == {flow.flow_instance_id}

    async def test_events_of_a_flow_come_in_their_order_and_commits_one_after_the_other(self, store: Store) -> None:
        first, second = await factories.add_flow(store), await factories.add_flow(store)
        for _ in range(3):
            first = await store.advance(first.complete_step("charge"))
            second = await store.advance(second.complete_step("charge"))
        expected = [(first, 1), (first, 2), (second, 1), (second, 2)]
        expected += [(flow, number) for number in (3, 4, 5) for flow in (first, second)]
        events = await read_feed(store, len(expected))
        assert [(event.flow_instance_id, event.sequence) for event in events] == [
            (flow.flow_instance_id, number) for flow, number in expected
        ]

    async def test_a_flow_moved_in_the_unit_of_work_that_advanced_it_keeps_its_order(self, store: Store) -> None:
        flow = await factories.add_flow(store)
        async with store.begin() as uow:
            await uow.advance(flow.complete_step("charge"))
            document = await uow.flow_instances.export(flow.flow_instance_id)
            await uow.flow_instances.remove(flow.flow_instance_id)
            await uow.flow_instances.import_(document)
        assert [event.sequence for event in await read_feed(store, 3)] == [1, 2, 3]

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
    async def test_reading_in_pieces_gives_the_same(self, store: Store, limit: int) -> None:
        for _ in range(4):
            flow = await factories.add_flow(store)
            await store.advance(flow.complete_step("charge").complete_step("ship").complete())
        whole = await read_feed(store, 20)
        assert await read_feed(store, 20, limit=limit) == whole
        assert len({event.position for event in whole}) == 20

    async def test_every_position_continues_behind_its_event(self, store: Store, other_store: Store) -> None:
        for _ in range(3):
            await factories.add_flow(store)
        events = await read_feed(store, 6)
        for number, event in enumerate(events, start=1):
            assert await other_store.events.read(after=event.position) == events[number:]

    async def test_what_comes_later_is_behind_the_last_position(self, store: Store) -> None:
        await factories.add_flow(store)
        reader = FeedReader(store)
        await reader.read_until(lambda seen: len(seen) >= 2)
        assert await reader.read() == []
        flow = await factories.add_flow(store)
        events = await reader.read_until(lambda seen: len(seen) >= 4)
        assert _by_flow(events[2:]) == {flow.flow_instance_id: [1, 2]}

    async def test_a_position_outlives_its_event(self, store: Store) -> None:
        first, second = await factories.add_flow(store), await factories.add_flow(store)
        events = await read_feed(store, 4)
        await store.flow_instances.remove(first.flow_instance_id)
        assert await store.events.read() == events[2:]
        assert await store.events.read(after=events[0].position) == events[2:]
        await store.flow_instances.remove(second.flow_instance_id)
        third = await factories.add_flow(store)
        reader = FeedReader(store, after=events[3].position)
        assert _by_flow(await reader.read_until(lambda seen: len(seen) >= 2)) == {third.flow_instance_id: [1, 2]}

    @pytest.mark.parametrize("position", ["", "nonsense", "0", "-1", "9" * 400, "é", "1-2-3-4-5", 7, b"7"])
    async def test_what_is_no_position_is_refused(self, store: Store, position: object) -> None:
        await factories.add_flow(store)
        with pytest.raises(InvalidArgument) as caught:
            await store.events.read(after=position)  # type: ignore[arg-type]
        assert caught.value.argument == "after"

    @pytest.mark.parametrize("limit", [0, -1, 10_001, True, 1.0])
    async def test_a_limit_is_from_one_to_ten_thousand(self, store: Store, limit: object) -> None:
        with pytest.raises(InvalidArgument) as caught:
            await store.events.read(limit=limit)  # type: ignore[arg-type]
        assert caught.value.argument == "limit"

    # One partition

    async def test_each_partition_has_the_events_of_its_flows(self, store: Store) -> None:
        count = store.options.partition_count
        flows = [await factories.add_flow(store) for _ in range(6)]
        for flow in flows[::2]:
            await store.advance(flow.complete_step("charge"))
        whole = await read_feed(store, 15)
        found = []
        for partition_id in range(count):
            events = await store.events.read(partition_id=partition_id)
            of_partition = [event for event in whole if partition_of(event.flow_instance_id, count) == partition_id]
            assert events == of_partition
            found += events
        assert len(found) == 15

    async def test_a_partition_is_read_in_pieces_and_from_any_position(self, store: Store) -> None:
        root = await factories.add_flow(store)
        partition_id = partition_of(root.flow_instance_id, store.options.partition_count)
        others = [await factories.add_flow(store) for _ in range(3)]
        root = await store.advance(root.complete_step("charge"))
        root = await store.advance(root.complete_step("ship"))
        whole = await read_feed(store, 4 + 2 * len(others))
        own = [event for event in whole if event.flow_instance_id == root.flow_instance_id]
        reads = store.events.read
        strangers = {
            flow.flow_instance_id
            for flow in others
            if partition_of(flow.flow_instance_id, store.options.partition_count) != partition_id
        }
        for event in whole:
            behind = [other for other in whole if other.position in _behind(whole, event)]
            expected = [other for other in behind if other.flow_instance_id not in strangers]
            assert await reads(partition_id=partition_id, after=event.position) == expected
        pieces = []
        position = None
        while piece := await reads(partition_id=partition_id, after=position, limit=1):
            pieces += piece
            position = piece[-1].position
        assert [event for event in pieces if event in own] == own

    async def test_the_family_of_a_flow_is_in_its_partition(self, store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        root = await factories.add_flow(store, definition)
        child = await store.advance(root.child(definition).start())
        await read_feed(store, 4)
        events = await store.events.read(partition_id=partition_of(root.flow_instance_id, 256))
        assert _by_flow(events) == {root.flow_instance_id: [1, 2], child.flow_instance_id: [1, 2]}

    @pytest.mark.parametrize("partition_id", [-1, 256, 4096, True, 1.0, "1"])
    async def test_a_partition_that_there_is_not_is_refused(self, store: Store, partition_id: object) -> None:
        with pytest.raises(InvalidArgument) as caught:
            await store.events.read(partition_id=partition_id)  # type: ignore[arg-type]
        assert caught.value.argument == "partition_id"

    # Open transactions

    @rule("C-01")
    async def test_what_is_not_committed_is_not_handed_out(self, store: Store, other_store: Store) -> None:
        async with store.begin() as uow:
            flow = await factories.add_flow(uow)
            assert await other_store.events.read() == []
        assert _by_flow(await read_feed(other_store, 2)) == {flow.flow_instance_id: [1, 2]}

    @rule("C-02")
    async def test_what_is_rolled_back_is_never_handed_out(self, store: Store) -> None:
        first = await factories.add_flow(store)
        async with store.begin() as uow:
            await factories.add_flow(uow)
            await uow.advance(first.complete_step("charge"))
            await uow.rollback()
        second = await factories.add_flow(store)
        events = await read_feed(store, 4)
        assert _by_flow(events) == {first.flow_instance_id: [1, 2], second.flow_instance_id: [1, 2]}

    async def test_an_event_whose_transaction_began_earlier_and_commits_later_is_not_skipped(
        self, store: Store, other_store: Store
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        slow, quick = [await factories.add_flow(store, definition) for _ in range(2)]
        reader = FeedReader(store)
        await reader.read_until(lambda seen: len(seen) >= 4)
        async with store.begin() as uow:
            await uow.advance(slow.complete_step("charge"))
            quick = await other_store.advance(quick.complete_step("charge"))
            await reader.read()
            quick = await other_store.advance(quick.complete_step("ship"))
            await reader.read()
        events = await reader.read_until(lambda seen: len(seen) >= 7)
        expected = {slow.flow_instance_id: [1, 2, 3], quick.flow_instance_id: [1, 2, 3, 4]}
        assert _by_flow(events) == expected
        assert await reader.read() == []

    async def test_a_unit_of_work_that_writes_again_late_is_not_skipped_either(
        self, store: Store, other_store: Store
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        slow, quick = [await factories.add_flow(store, definition) for _ in range(2)]
        reader = FeedReader(store)
        async with store.begin() as uow:
            slow = await uow.advance(slow.complete_step("charge"))
            await other_store.advance(quick.complete_step("charge"))
            await reader.read()
            await uow.advance(slow.complete_step("ship"))
            await reader.read()
        events = await reader.read_until(lambda seen: len(seen) >= 7)
        assert _by_flow(events) == {slow.flow_instance_id: [1, 2, 3, 4], quick.flow_instance_id: [1, 2, 3]}

    async def test_two_writers_and_a_reader_in_every_order(self, store: Store, other_store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        reader = FeedReader(store)
        written: dict[UUID, list[int]] = {}

        def writer(target: Store) -> Actor:
            flow = factories.running_flow(definition)
            written[flow.flow_instance_id] = [1, 2]
            return Actor(target, lambda uow: uow.advance(flow))

        for order in all_orders(3, 3):
            await run_schedule(self, [writer(store), writer(other_store)], order, after_each=reader.read)
        expected = sum(map(len, written.values()))
        await reader.read_until(lambda seen: len(seen) >= expected)
        assert _by_flow(reader.seen) == written

    @pytest.mark.parametrize("seed", range(6))
    async def test_many_writers_and_a_reader_in_random_orders(
        self, store: Store, other_store: Store, seed: int
    ) -> None:
        chance = random.Random(seed)  # noqa: S311 - a repeatable schedule, not a secret
        definition = await factories.deploy_flow_definition(store)
        flows = [await factories.add_flow(store, definition) for _ in range(6)]
        expected = {flow.flow_instance_id: [1, 2] for flow in flows}
        reader = FeedReader(store, limit=3)
        actors = []
        for number, flow in enumerate(flows):
            commits = chance.random() < 0.8
            steps = [[NewEvent(f"step {step}") for _ in range(chance.randint(1, 3))] for step in range(2)]
            actors.append(_writer((store, other_store)[number % 2], flow, steps, commits=commits))
            if commits:
                count = 2 + sum(map(len, steps))
                expected[flow.flow_instance_id] = list(range(1, count + 1))
        schedule = [place for place, actor in enumerate(actors) for _ in range(actor.step_count)]
        chance.shuffle(schedule)
        await run_schedule(self, actors, schedule, after_each=reader.read)
        await reader.read_until(lambda seen: len(seen) >= sum(map(len, expected.values())))
        assert _by_flow(reader.seen) == expected
