"""What a benchmark finds ready: a server, an open store on a migrated database, the floors, and flows to work on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

from benchmarks.contenders import Bare, Orm
from cascade_state import FlowDefinition, FlowInstance, StepDefinition, Store, open_store

__all__ = ["DOCUMENT", "STATES", "STEP_IDS", "Bench", "opened_bench"]

T = TypeVar("T")

DOCUMENT = {
    "customer": "c-1042",
    "items": [{"sku": f"A-{number}", "count": number} for number in range(8)],
    "note": "x" * 120,
}
STATES = {"s0": DOCUMENT, "s1": {"attempts": 1}}
STEP_IDS = ("s0", "s1", "s2")


class Bench:
    """The surroundings of all benchmarks of one run."""

    def __init__(
        self, url: str, postmaster: int | None, store: Store, bare: Bare, orm: Orm, stack: AsyncExitStack
    ) -> None:
        self.url = url  # of the database that the store works on
        self.postmaster = postmaster  # the server's first process, where it runs on this machine
        self.store = store
        self.bare = bare
        self.orm = orm
        self.operations = 1  # how many times each lane calls the operation of this round
        self.loaded_flows = 0  # what `growth` put into the database
        self.definition: FlowDefinition
        self._stack = stack

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enters a context that lasts as long as the run."""
        return await self._stack.enter_async_context(context)

    def with_store(self, store: Store) -> Bench:
        """Returns the same surroundings with another store on the same database."""
        other = Bench(self.url, self.postmaster, store, self.bare, self.orm, self._stack)
        other.definition = self.definition
        return other

    def new_flow(self) -> FlowInstance:
        """Returns a started flow that is not stored yet."""
        return FlowInstance.create(self.definition, trigger_data=DOCUMENT).start()

    async def stored_flows(self, count: int) -> list[FlowInstance]:
        """Returns flows that are stored."""
        return await self.add([self.new_flow() for _ in range(count)])

    async def add(self, flows: Sequence[FlowInstance]) -> list[FlowInstance]:
        """Stores new flows and returns them."""
        results = await self.store.flow_instances.add_many(flows)
        return [result.instance for result in results if result.instance is not None]


@asynccontextmanager
async def opened_bench(url: str, postmaster: int | None, connections: int) -> AsyncIterator[Bench]:
    """Opens the surroundings on an empty database.

    Args:
        connections: How many bare connections are held, one for each lane.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(url))
        await store.migrate()
        bare, orm = Bare(url), Orm(url)
        stack.push_async_callback(bare.close)
        stack.push_async_callback(orm.close)
        await bare.open(connections)
        bench = Bench(url, postmaster, store, bare, orm, stack)
        steps = tuple(StepDefinition(step_id=step_id, component_type="x") for step_id in STEP_IDS)
        bench.definition = await store.flow_definitions.deploy(FlowDefinition(flow_id="bench", steps=steps))
        yield bench
