"""Publishing and waiting at the same time: nothing lost, nothing delivered twice, in whatever order (C-30, C-32, C-33).

Two actors are run in all orders of their steps, several in many random ones. The random schedules come from fixed
seeds, so a failure can be repeated; the name of the test tells the seed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import get_args

import pytest

from cascade_state.abc import Store, UnitOfWork
from cascade_state.abc.store import Isolation
from cascade_state.model.correlations import Delivery, PublishMode
from cascade_state.model.flow_definitions import FlowDefinition
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.testing import factories
from cascade_state.testing.clock import FrozenClock
from cascade_state.testing.contracts.base import LEASE, PATIENCE, StoreContract
from cascade_state.testing.contracts.claiming import MOMENT, claim_deliveries
from cascade_state.testing.contracts.rules import rule
from cascade_state.testing.contracts.schedules import Actor, all_orders, run_schedule

__all__ = ["InterleavingsContract", "RandomSchedulesContract"]

_MODES = get_args(PublishMode)
_QUEUED = ("first", "fifo")  # modes that keep an event for whoever waits later

_SCHEDULES = 350  # of each mode; with the others of this module well over a thousand on each back end

# Two that cannot see each other, each behind its snapshot, are brought together later, by a claim.
_HEALING = timedelta(seconds=5)

Operation = Callable[[UnitOfWork], Awaitable[object]]


def _publish(key: str, event_id: str, mode: PublishMode) -> Operation:
    return lambda uow: uow.correlations.publish(key, {"event": event_id}, event_id=event_id, mode=mode)


def _wait(flow: FlowInstance, key: str) -> Operation:
    return lambda uow: uow.advance(flow.suspend_for_event("ship", key))


async def _look(uow: UnitOfWork) -> None:
    await uow.correlations.list_dead_letters()  # a snapshot is taken by the first call


def _checked(deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Returns the deliveries after checking that each carries the payload of its own event."""
    for delivery in deliveries:
        assert delivery.payload == {"event": delivery.event_id}
    return list(deliveries)


class InterleavingsContract(StoreContract):
    """Two units of work that meet at one key, in every order of their steps."""

    @rule("C-30", "C-32")
    @pytest.mark.parametrize("mode", _QUEUED)
    async def test_a_publisher_and_a_waiter(self, store: Store, other_store: Store, mode: PublishMode) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(3, 3):
            key = factories.unique("key")
            flow = await factories.add_flow(store, definition)
            actors = Actor(store, _publish(key, "evt-1", mode)), Actor(other_store, _wait(flow, key))
            await run_schedule(self, actors, order)
            (delivery,) = _checked(await claim_deliveries(store))
            assert (delivery.correlation_key, delivery.flow_instance_id) == (key, flow.flow_instance_id), order
            assert await store.correlations.list_waiting(key) == [], order

    @rule("C-30")
    @pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
    async def test_a_publisher_and_a_waiter_that_see_an_old_state(
        self, store: Store, other_store: Store, clock: FrozenClock, isolation: Isolation
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(4, 4):
            key = factories.unique("key")
            flow = await factories.add_flow(store, definition)
            actors = [
                Actor(store, _look, _publish(key, "evt-1", "first"), isolation=isolation),
                Actor(other_store, _look, _wait(flow, key), isolation=isolation),
            ]
            await run_schedule(self, actors, order)
            clock.advance(_HEALING)
            (delivery,) = _checked(await claim_deliveries(store))
            assert (delivery.correlation_key, delivery.flow_instance_id) == (key, flow.flow_instance_id), order
            assert await store.correlations.list_waiting(key) == [], order
            await store.correlations.complete([delivery])

    @rule("C-32")
    async def test_a_broadcaster_and_a_waiter(self, store: Store, other_store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(3, 3):
            key = factories.unique("key")
            flow = await factories.add_flow(store, definition)
            actors = Actor(store, _publish(key, "evt-1", "broadcast")), Actor(other_store, _wait(flow, key))
            await run_schedule(self, actors, order)
            delivered = _checked(await claim_deliveries(store))
            waiting = await store.correlations.list_waiting(key)
            assert len(delivered) + len(waiting) == 1, order
            if order == (1, 1, 1, 0, 0, 0):
                assert delivered
            if order == (0, 0, 0, 1, 1, 1):
                assert waiting

    @rule("C-30")
    @pytest.mark.parametrize("mode", _QUEUED)
    async def test_a_publisher_that_rolls_back_and_a_waiter(
        self, store: Store, other_store: Store, mode: PublishMode
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(3, 3):
            key = factories.unique("key")
            flow = await factories.add_flow(store, definition)
            publisher = Actor(store, _publish(key, "evt-1", mode), commits=False)
            await run_schedule(self, (publisher, Actor(other_store, _wait(flow, key))), order)
            assert await claim_deliveries(store) == [], order
            (wait,) = await store.correlations.list_waiting(key)
            assert wait.flow_instance_id == flow.flow_instance_id
            assert len(await store.correlations.publish(key, {"event": "evt-1"}, event_id="evt-1", mode=mode)) == 1
            assert len(_checked(await claim_deliveries(store))) == 1

    @rule("C-30")
    @pytest.mark.parametrize("mode", _QUEUED)
    async def test_a_publisher_and_a_waiter_that_rolls_back(
        self, store: Store, other_store: Store, mode: PublishMode
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(3, 3):
            key = factories.unique("key")
            flow = await factories.add_flow(store, definition)
            waiter = Actor(other_store, _wait(flow, key), commits=False)
            await run_schedule(self, (Actor(store, _publish(key, "evt-1", mode)), waiter), order)
            assert await claim_deliveries(store) == [], order
            later = await factories.add_flow(store, definition, waits_for=key)
            (delivery,) = _checked(await claim_deliveries(store))
            assert delivery.flow_instance_id == later.flow_instance_id, order

    @rule("C-33")
    @pytest.mark.parametrize("mode", _MODES)
    async def test_two_publishers_of_one_event_id(self, store: Store, other_store: Store, mode: PublishMode) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(3, 3):
            key = factories.unique("key")
            waiters = [await factories.add_flow(store, definition, waits_for=key) for _ in range(2)]
            publish = _publish(key, "evt-1", mode)
            await run_schedule(self, (Actor(store, publish), Actor(other_store, publish)), order)
            delivered = _checked(await claim_deliveries(store))
            assert len(delivered) == (len(waiters) if mode == "broadcast" else 1), order

    @rule("C-33")
    async def test_two_publishers_of_one_event_id_of_which_one_rolls_back(
        self, store: Store, other_store: Store
    ) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(3, 3):
            key = factories.unique("key")
            for _ in range(2):
                await factories.add_flow(store, definition, waits_for=key)
            publish = _publish(key, "evt-1", "first")
            await run_schedule(self, (Actor(store, publish, commits=False), Actor(other_store, publish)), order)
            assert len(_checked(await claim_deliveries(store))) == 1, order

    @rule("C-32")
    async def test_two_publishers_to_a_queue(self, store: Store, other_store: Store, clock: FrozenClock) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(4, 4):
            key = factories.unique("key")
            actors = [
                Actor(target, *(_publish(key, f"{name}{number}", "fifo") for number in range(2)))
                for name, target in (("a", store), ("b", other_store))
            ]
            await run_schedule(self, actors, order)
            for _ in range(4):
                clock.advance(MOMENT)  # deliveries of one instant have an order of their own
                await factories.add_flow(store, definition, waits_for=key)
            received = [str(delivery.event_id) for delivery in _checked(await claim_deliveries(store))]
            assert sorted(received) == ["a0", "a1", "b0", "b1"], order
            for name in ("a", "b"):  # whoever comes in between, each publisher's events stay in order
                assert [event for event in received if event.startswith(name)] == [f"{name}0", f"{name}1"], order

    @rule("C-32")
    @pytest.mark.parametrize("mode", _QUEUED)
    async def test_two_waiters_and_one_event(self, store: Store, other_store: Store, mode: PublishMode) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(3, 3):
            key = factories.unique("key")
            flows = [await factories.add_flow(store, definition) for _ in range(2)]
            await store.correlations.publish(key, {"event": "evt-1"}, event_id="evt-1", mode=mode)
            actors = Actor(store, _wait(flows[0], key)), Actor(other_store, _wait(flows[1], key))
            await run_schedule(self, actors, order)
            (delivery,) = _checked(await claim_deliveries(store))
            (wait,) = await store.correlations.list_waiting(key)
            reached = {delivery.flow_instance_id, wait.flow_instance_id}
            assert reached == {flow.flow_instance_id for flow in flows}, order

    @rule("C-30", "C-31")
    async def test_a_publisher_and_the_end_of_the_wait(self, store: Store, other_store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(3, 3):
            key = factories.unique("key")
            flow = await factories.add_flow(store, definition, waits_for=key)
            cancel = Actor(other_store, lambda uow, flow=flow: uow.advance(flow.cancel("enough")))  # type: ignore[misc]
            await run_schedule(self, (Actor(store, _publish(key, "evt-1", "first")), cancel), order)
            assert await claim_deliveries(store) == [], order
            assert await store.correlations.list_waiting(key) == [], order
            assert await store.flow_instances.find_by_correlation(key) == [], order

    @rule("C-34", "C-31")
    async def test_a_publisher_and_an_acknowledgement_that_waits_again(self, store: Store, other_store: Store) -> None:
        definition = await factories.deploy_flow_definition(store)
        for order in all_orders(3, 3):
            key = factories.unique("key")
            flow = await factories.add_flow(store, definition, waits_for=key)
            await store.correlations.publish(key, {"event": "evt-1"}, event_id="evt-1", mode="fifo")
            (first,) = _checked(await claim_deliveries(store))
            again = flow.resume().suspend_for_event("ship", key)
            acknowledge = Actor(store, lambda uow, again=again, first=first: uow.advance(again, completes=[first]))  # type: ignore[misc]
            await run_schedule(self, (Actor(other_store, _publish(key, "evt-2", "fifo")), acknowledge), order)
            (second,) = _checked(await claim_deliveries(store))
            assert second.event_id == "evt-2", order


class RandomSchedulesContract(StoreContract):
    """Many units of work that meet at a few keys, in random orders of their steps."""

    @rule("C-30", "C-32", "C-33")
    @pytest.mark.parametrize("mode", _MODES)
    @pytest.mark.parametrize("seed", range(12))
    async def test_nothing_is_lost_and_nothing_is_doubled(
        self, store: Store, other_store: Store, clock: FrozenClock, mode: PublishMode, seed: int
    ) -> None:
        chance = random.Random(f"{mode} {seed}")  # noqa: S311 - a repeatable schedule, not a secret
        definition = await factories.deploy_flow_definition(store)
        keys = [factories.unique("key") for _ in range(2)]
        play = _Play(store, chance, definition, mode)
        actors = [await play.actor(chance.choice((store, other_store)), chance.choice(keys)) for _ in range(6)]
        schedule = [place for place, actor in enumerate(actors) for _ in range(actor.step_count)]
        chance.shuffle(schedule)
        await run_schedule(self, actors, schedule)
        clock.advance(MOMENT)
        for key in keys:
            await play.check(key)

    @rule("C-30", "C-32", "C-33")
    @pytest.mark.parametrize("mode", _MODES)
    async def test_nothing_is_lost_or_doubled_in_hundreds_of_schedules_at_once(
        self, store: Store, other_store: Store, clock: FrozenClock, mode: PublishMode
    ) -> None:
        """Each key has a schedule of its own, which its actors make by running freely, between those of all others.

        An actor gives way a random number of times between its steps. So the order is chance, on a back end that is
        a process of its own even more so; the steps of each actor can be repeated, and what must come out is the same.
        """
        chance = random.Random(mode)  # noqa: S311 - repeatable actors, not a secret
        definition = await factories.deploy_flow_definition(store)
        keys = [factories.unique("key") for _ in range(_SCHEDULES)]
        play = _Play(store, chance, definition, mode, event_ids=3)
        await play.prepare(_SCHEDULES * 4)
        # The actors of a key follow each other, so that they run at the same time.
        queue = iter([await play.actor(chance.choice((store, other_store)), key) for key in keys for _ in range(3)])

        async def run_some() -> None:
            for actor in queue:
                while not actor.is_finished:
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    await actor.take_step()

        # As many at once as there are connections: one that waits for a key holds its connection, and the one that has
        # the key must not have to wait for one.
        async with asyncio.timeout(4 * PATIENCE), asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(run_some())
        clock.advance(MOMENT)
        await play.check_all(keys)

    @rule("C-30", "C-32")
    @pytest.mark.parametrize("seed", range(3))
    async def test_single_calls_at_the_same_time(self, store: Store, other_store: Store, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - a repeatable order, not a secret
        definition = await factories.deploy_flow_definition(store)
        keys = [factories.unique("key") for _ in range(3)]
        flows = [await factories.add_flow(store, definition) for _ in range(30)]
        calls: list[Callable[[Store], Awaitable[object]]] = []
        for number, flow in enumerate(flows):
            waiting = flow.suspend_for_event("ship", keys[number % 3])
            calls.append(lambda target, waiting=waiting: target.advance(waiting))  # type: ignore[misc]
            event_id, key = f"evt-{number}", keys[number % 3]
            calls += 2 * [
                lambda target, event_id=event_id, key=key: target.correlations.publish(
                    key, {"event": event_id}, event_id=event_id, mode="fifo"
                )
            ]
        chance.shuffle(calls)
        tasks = [self.started(_called(call, chance.choice((store, other_store)))) for call in calls]
        claiming = [self.started(claim_deliveries(target, limit=4)) for target in (store, other_store) * 2]
        for task in tasks:
            await self.finished(task)
        delivered = [delivery for claim in claiming for delivery in await self.finished(claim)]
        delivered += await claim_deliveries(store)
        received = Counter((delivery.correlation_key, delivery.event_id) for delivery in _checked(delivered))
        assert received == {(keys[number % 3], f"evt-{number}"): 1 for number in range(30)}
        assert len({delivery.flow_instance_id for delivery in delivered}) == 30
        for key in keys:
            assert await store.correlations.list_waiting(key) == []

    @rule("C-32", "C-34")
    async def test_a_queue_that_is_filled_and_emptied_at_the_same_time(self, store: Store, other_store: Store) -> None:
        flow = await factories.add_flow(store, waits_for="parcel-77")

        async def fill() -> None:
            for number in range(25):
                payload = {"event": f"evt-{number}"}
                await other_store.correlations.publish("parcel-77", payload, event_id=f"evt-{number}", mode="fifo")

        filling = self.started(fill())
        received: list[str | None] = []
        async with asyncio.timeout(PATIENCE):
            while len(received) < 25:
                for delivery in await claim_deliveries(store):
                    received.append(delivery.event_id)
                    again = flow.resume().suspend_for_event("ship", "parcel-77")
                    flow = await store.advance(again, completes=[delivery])
                await asyncio.sleep(0)  # a back end inside the process may have had nothing to wait for
        await self.finished(filling)
        assert received == [f"evt-{number}" for number in range(25)]


async def _called(call: Callable[[Store], Awaitable[object]], target: Store) -> object:
    return await call(target)


class _Play:
    """What the actors of one random schedule do, and what must be true when all have ended."""

    def __init__(
        self,
        store: Store,
        chance: random.Random,
        definition: FlowDefinition,
        mode: PublishMode,
        *,
        event_ids: int = 8,  # few: some are published several times
    ) -> None:
        self._event_ids = event_ids
        self._store = store
        self._chance = chance
        self._definition = definition
        self._mode = mode
        self._published: dict[str, set[str]] = {}
        self._waiting: dict[str, int] = Counter()
        self._spare: list[FlowInstance] = []

    async def prepare(self, count: int) -> None:
        """Adds flows that actors will let wait, many in one go."""
        results = await self._store.flow_instances.add_many(
            factories.running_flow(self._definition) for _ in range(count)
        )
        self._spare += [result.instance for result in results if result.instance is not None]

    async def _flow(self) -> FlowInstance:
        return self._spare.pop() if self._spare else await factories.add_flow(self._store, self._definition)

    async def actor(self, target: Store, key: str) -> Actor:
        """Returns an actor with one to three operations on one key; a sixth of all actors roll back."""
        commits = self._chance.random() > 1 / 6
        operations: list[Operation] = []
        for _ in range(self._chance.randint(1, 3)):
            if self._chance.random() < 0.5:
                event_id = f"evt-{self._chance.randint(1, self._event_ids)}"
                operations.append(_publish(key, event_id, self._mode))
                if commits:
                    self._published.setdefault(key, set()).add(event_id)
            else:
                operations.append(_wait(await self._flow(), key))
                self._waiting[key] += commits
        return Actor(target, *operations, commits=commits)

    async def check(self, key: str) -> None:
        """Checks what came out under a key, first as it is, then with waiters enough for whatever is kept."""
        delivered = await self._received(key)
        waiting = await self._store.correlations.list_waiting(key)
        for _ in range(self._event_ids + 1):
            await factories.add_flow(self._store, self._definition, waits_for=key)
        self._check(key, delivered, len(waiting), await self._received(key))

    async def check_all(self, keys: Sequence[str]) -> None:
        """Does the same for many keys, in a few calls."""
        delivered = await self._all_received()
        waiting = {key: len(await self._store.correlations.list_waiting(key)) for key in keys}
        waiters = [
            factories.running_flow(self._definition).suspend_for_event("ship", key)
            for key in keys
            for _ in range(self._event_ids + 1)
        ]
        assert all(result.error is None for result in await self._store.flow_instances.add_many(waiters))
        later = await self._all_received()
        assert set(delivered) | set(later) <= set(keys)
        for key in keys:
            self._check(key, delivered.get(key, []), waiting[key], later.get(key, []))

    async def _all_received(self) -> dict[str, list[Delivery]]:
        by_key: dict[str, list[Delivery]] = {}
        while claimed := await claim_deliveries(self._store, limit=10_000):
            for delivery in _checked(claimed):
                by_key.setdefault(delivery.correlation_key, []).append(delivery)
        return by_key

    def _check(self, key: str, delivered: list[Delivery], waiting: int, afterwards: list[Delivery]) -> None:
        events = self._published.get(key, set())
        assert len({delivery.flow_instance_id for delivery in delivered}) == len(delivered)
        assert len(delivered) + waiting == self._waiting[key]
        received = Counter(delivery.event_id for delivery in delivered)
        assert events.issuperset(received)
        later = Counter(delivery.event_id for delivery in afterwards)
        if waiting:
            assert not later, "an event was kept although somebody waited"
        if self._mode == "fifo":
            assert received + later == dict.fromkeys(events, 1)
        elif self._mode == "first":
            assert max((received + later).values(), default=1) == 1
            assert later.total() <= 1
            assert (received + later).total() >= min(1, len(events))
        else:
            assert not later, "a broadcast event was kept"

    async def _received(self, key: str) -> list[Delivery]:
        claimed = await self._store.correlations.claim_delivered("worker-1", limit=1000, lease_duration=LEASE)
        mine = [delivery for delivery in claimed if delivery.correlation_key == key]
        await self._store.correlations.release(delivery for delivery in claimed if delivery.correlation_key != key)
        return _checked(mine)
