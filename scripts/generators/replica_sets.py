"""The states of a partition and of a worker, drawn: each action is tried in each state, on a memory store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from cascade_state.abc import Store
from cascade_state.errors import LeaseLost
from cascade_state.opening import open_store
from cascade_state.testing import FrozenClock
from scripts.drawing import ACCENT, FAINT, FILL, INK, LINE, Drawing

SET = "shipping"
STALE_AFTER = timedelta(seconds=30)


class Partition(StrEnum):
    """Where a partition of a replica set stands."""

    FREE = "free"
    OWNED = "owned"
    PROMISED = "promised"
    LEFT_BEHIND = "left behind"


class Worker(StrEnum):
    """Where a worker stands, as the store sees it."""

    ALIVE = "alive"
    SILENT = "silent"
    GONE = "gone"


@dataclass
class World:
    """A store with the set, its clock, and the worker that the states are about."""

    store: Store
    clock: FrozenClock
    owner: str = "a"

    async def join(self, worker_id: str) -> None:
        """A worker joins."""
        await self.store.replica_sets.join(SET, worker_id, stale_after=STALE_AFTER)

    async def beat(self, worker_id: str) -> None:
        """A worker that is there sends a heartbeat."""
        with suppress(LeaseLost):  # it is not there
            await self.store.replica_sets.beat(SET, worker_id, stale_after=STALE_AFTER)

    async def leave(self, worker_id: str) -> None:
        """A worker leaves."""
        await self.store.replica_sets.leave(SET, worker_id)

    async def silence(self) -> None:
        """The worker's time passes, while the other one stays alive."""
        self.clock.advance(STALE_AFTER / 2)
        await self.beat("other")
        self.clock.advance(STALE_AFTER / 2)

    async def replace(self) -> None:
        """The worker goes silent, and another one notices."""
        await self.silence()
        await self.beat("other")
        if not await self._others():
            await self.join("other")

    async def fenced_leave(self) -> None:
        """The worker leaves while one of its transactions still holds the fence of every partition."""
        async with self.store.begin() as uow:
            for item in await self.store.replica_sets.list_assignments(SET):
                await uow.fence(item.partition_id, item.generation, SET)
            await self.leave(self.owner)

    async def partitions(self) -> dict[int, tuple[Partition, int]]:
        """Return the state and the generation of each partition that is, or was, the owner's."""
        present = {worker.worker_id for worker in await self.store.replica_sets.list_workers(SET)}
        found = {}
        for item in await self.store.replica_sets.list_assignments(SET):
            if item.owner is None:
                state = Partition.FREE
            elif item.owner not in present:
                state = Partition.LEFT_BEHIND
            else:
                state = Partition.OWNED if item.next_owner is None else Partition.PROMISED
            found[item.partition_id] = state, item.generation
        return found

    async def worker(self) -> Worker:
        """Return the state of the worker."""
        for worker in await self.store.replica_sets.list_workers(SET):
            if worker.worker_id == self.owner:
                return Worker.ALIVE if worker.is_alive else Worker.SILENT
        return Worker.GONE

    async def _others(self) -> bool:
        return any(worker.worker_id == "other" for worker in await self.store.replica_sets.list_workers(SET))


Act = Callable[[World], Awaitable[None]]


async def _free(world: World) -> None:
    await world.join("a")
    await world.leave("a")


async def _owned(world: World) -> None:
    await world.join("a")


async def _promised(world: World) -> None:
    await world.join("a")
    await world.join("other")


async def _left_behind(world: World) -> None:
    await world.join("a")
    await world.join("other")
    await world.fenced_leave()


async def _silent(world: World) -> None:
    await world.join("a")
    await world.join("other")
    await world.silence()


async def _gone(world: World) -> None:
    await _silent(world)
    await world.beat("other")


PARTITION_STATES: Mapping[Partition, Act] = {
    Partition.FREE: _free,
    Partition.OWNED: _owned,
    Partition.PROMISED: _promised,
    Partition.LEFT_BEHIND: _left_behind,
}
PARTITION_ACTS: Mapping[str, Act] = {
    "a worker joins": lambda world: world.join("new"),
    "heartbeat of another": lambda world: world.beat("other"),
}
# What only an owner that is there can do, or undergo.
OWNERS_ACTS: Mapping[str, Act] = {
    "heartbeat of the owner": lambda world: world.beat("a"),
    "the owner leaves": lambda world: world.leave("a"),
    "the owner leaves, fence held": lambda world: world.fenced_leave(),
    "the owner went silent": lambda world: world.replace(),
}
WORKER_STATES: Mapping[Worker, Act] = {Worker.ALIVE: _promised, Worker.SILENT: _silent, Worker.GONE: _gone}
WORKER_ACTS: Mapping[str, Act] = {
    "its heartbeat": lambda world: world.beat("a"),
    "heartbeat of another": lambda world: world.beat("other"),
    "it leaves": lambda world: world.leave("a"),
    "stale_after passes": lambda world: world.silence(),
}

Moves = dict[tuple[str, str], list[str]]


@asynccontextmanager
async def _world(prepare: Act) -> AsyncIterator[World]:
    clock = FrozenClock()
    async with open_store("memory://", partition_count=16, clock=clock) as store:
        world = World(store, clock)
        await prepare(world)
        yield world


async def _partition_moves() -> Moves:
    """Return what each action does to a partition in each state; ↑ where the generation grows."""
    moves: Moves = {}
    for state, prepare in PARTITION_STATES.items():
        has_owner = state in (Partition.OWNED, Partition.PROMISED)
        for name, act in ({**PARTITION_ACTS, **OWNERS_ACTS} if has_owner else PARTITION_ACTS).items():
            async with _world(prepare) as world:
                before = {number: found for number, found in (await world.partitions()).items() if found[0] is state}
                await act(world)
                after = await world.partitions()
            for target, grew in sorted({(after[number][0], after[number][1] > before[number][1]) for number in before}):
                if target is not state or grew:
                    moves.setdefault((state, target), []).append(name + " ↑" * grew)
    return moves


async def _worker_moves() -> Moves:
    """Return what each action does to a worker in each state."""
    moves: Moves = {}
    for state, prepare in WORKER_STATES.items():
        for name, act in WORKER_ACTS.items():
            if name == "stale_after passes" and state is not Worker.ALIVE:
                continue  # it has passed
            async with _world(prepare) as world:
                await act(world)
                target = await world.worker()
            if target is not state:
                moves.setdefault((state, target), []).append(name)
    return moves


BOX_WIDTH, BOX_HEIGHT = 150, 50
Point = tuple[float, float]
# Where an arrow begins and ends, and where its words stand (the middle of their first line).
Way = tuple[Point, Point, Point]

PARTITION_PLACES: Mapping[str, Point] = {
    Partition.FREE: (110, 70),
    Partition.OWNED: (440, 70),
    Partition.PROMISED: (440, 290),
    Partition.LEFT_BEHIND: (790, 180),
}
PARTITION_WAYS: Mapping[tuple[str, str], Way] = {
    (Partition.FREE, Partition.OWNED): ((185, 60), (365, 60), (275, 50)),
    (Partition.OWNED, Partition.FREE): ((365, 82), (185, 82), (275, 102)),
    (Partition.OWNED, Partition.PROMISED): ((420, 95), (420, 265), (350, 185)),
    (Partition.PROMISED, Partition.OWNED): ((460, 265), (460, 95), (552, 178)),
    (Partition.OWNED, Partition.LEFT_BEHIND): ((515, 84), (715, 170), (598, 130)),
    (Partition.LEFT_BEHIND, Partition.OWNED): ((800, 155), (515, 58), (740, 66)),
    (Partition.PROMISED, Partition.LEFT_BEHIND): ((515, 280), (735, 205), (690, 262)),
}
WORKER_PLACES: Mapping[str, Point] = {Worker.ALIVE: (110, 70), Worker.SILENT: (440, 70), Worker.GONE: (770, 70)}
WORKER_WAYS: Mapping[tuple[str, str], Way] = {
    (Worker.ALIVE, Worker.SILENT): ((185, 60), (365, 60), (275, 50)),
    (Worker.SILENT, Worker.ALIVE): ((365, 82), (185, 82), (275, 102)),
    (Worker.SILENT, Worker.GONE): ((515, 70), (695, 70), (605, 42)),
    (Worker.ALIVE, Worker.GONE): ((130, 95), (750, 95), (440, 158)),
}


def _picture(
    title: str,
    size: tuple[int, int],
    places: Mapping[str, Point],
    ways: Mapping[tuple[str, str], Way],
    moves: Moves,
    notes: tuple[str, ...],
) -> str:
    between = {move: names for move, names in moves.items() if move[0] != move[1]}
    if set(between) != set(ways):
        raise AssertionError(
            f"{title}: the moves that were found have other places: {sorted(set(between) ^ set(ways))}"
        )
    drawing = Drawing(*size, title)
    for move, names in between.items():
        (x1, y1), (x2, y2), (x, y) = ways[move]
        if y1 == y2 and abs(x2 - x1) > 3 * BOX_WIDTH:  # past another state
            drawing.path(f"M{x1},{y1} C{x1 + 80},{y1 + 60} {x2 - 80},{y1 + 60} {x2},{y2}", colour=FAINT, arrow=True)
        else:
            drawing.path(f"M{x1},{y1} L{x2},{y2}", colour=FAINT, arrow=True)
        for number, name in enumerate(names):
            drawing.text(x, y + 16 * number, name, size=12, anchor="middle", halo=True)
    for state, (x, y) in places.items():
        drawing.box(x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2, BOX_WIDTH, BOX_HEIGHT, fill=FILL, stroke=LINE)
        staying = moves.get((state, state))
        drawing.text(x, y if staying else y + 5, str(state), anchor="middle", weight="600", colour=ACCENT)
        if staying:
            drawing.text(x, y + 17, "↻ " + ", ".join(staying), size=10, anchor="middle", colour=INK)
    for number, note in enumerate(notes):
        drawing.text(24, size[1] - 16 * (len(notes) - number), note, size=12, colour=FAINT)
    return drawing.svg()


def generate() -> dict[str, str]:
    """Return both pictures."""
    partition_moves, worker_moves = asyncio.run(_partition_moves()), asyncio.run(_worker_moves())
    return {
        "docs/assets/partition-states.svg": _picture(
            "States of a partition of a replica set",
            (900, 380),
            PARTITION_PLACES,
            PARTITION_WAYS,
            partition_moves,
            ("↑: the owner changes and the generation grows; whoever writes under the old one is refused",),
        ),
        "docs/assets/worker-states.svg": _picture(
            "States of a worker, as the store sees it", (880, 190), WORKER_PLACES, WORKER_WAYS, worker_moves, ()
        ),
    }
