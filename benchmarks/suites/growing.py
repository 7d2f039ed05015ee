"""Operations that should cost the same however large the store is."""

from __future__ import annotations

from datetime import timedelta
from random import Random

from benchmarks.bench import STATES, Bench
from benchmarks.growth import growth
from benchmarks.registry import Operation
from benchmarks.suites.batches import due_timers
from cascade_state import FlowInstance, FlowInstanceFilter, FlowStatus
from cascade_state.model.lists import encode_cursor

_LEASE = timedelta(minutes=5)
_PAGE = 50
_SMALL = 8.0  # a round of the default length would be over before the processor has its caches filled
_CLAIMED = 100
_RUNNING = FlowInstanceFilter(statuses=(FlowStatus.RUNNING,))
_EVERYTHING = FlowInstanceFilter()


def _keys(bench: Bench, *, running: bool = False) -> list[str]:
    """Business keys from all over the table, one for each operation; every fourth flow of those loaded runs."""
    step = 4 if running else 1
    random = Random(bench.operations)  # noqa: S311 - the same flows in each round
    return [f"order-{step * random.randint(1, bench.loaded_flows // step)}" for _ in range(bench.operations)]


async def _flows(bench: Bench, *, running: bool = False) -> list[FlowInstance]:
    found = [
        await bench.store.flow_instances.find_by_business_key("bench", key) for key in _keys(bench, running=running)
    ]
    return [flow for flow in found if flow is not None]


@growth("get", share=_SMALL)
async def _get(bench: Bench, tasks: int) -> Operation:
    ids = [flow.flow_instance_id for flow in await _flows(bench)]

    async def operation(lane: int, index: int) -> None:
        await bench.store.flow_instances.get(ids[index])

    return operation


@growth("find by business key", share=_SMALL)
async def _find(bench: Bench, tasks: int) -> Operation:
    keys = _keys(bench)

    async def operation(lane: int, index: int) -> None:
        assert await bench.store.flow_instances.find_by_business_key("bench", keys[index])

    return operation


@growth("advance (a step, two states)", share=_SMALL)
async def _advance(bench: Bench, tasks: int) -> Operation:
    running = {flow.flow_instance_id: flow for flow in await _flows(bench, running=True)}
    flows = list(running.values())

    async def operation(lane: int, index: int) -> None:
        place = index % len(flows)
        flows[place] = await bench.store.advance(flows[place].complete_step("s1", {"n": index}), put_states=STATES)

    return operation


@growth("claim and complete (100 due)")
async def _claim(bench: Bench, tasks: int) -> Operation:
    await due_timers(bench, _CLAIMED * bench.operations)

    async def operation(lane: int, index: int) -> None:
        timers = await bench.store.timers.claim_due("worker", limit=_CLAIMED, lease_duration=_LEASE)
        await bench.store.timers.complete(timers)
        assert len(timers) == _CLAIMED

    return operation


@growth("next due time", share=_SMALL)
async def _next_due(bench: Bench, tasks: int) -> Operation:
    async def operation(lane: int, index: int) -> None:
        await bench.store.timers.next_due_at()

    return operation


@growth("first page of 50")
async def _first_page(bench: Bench, tasks: int) -> Operation:
    async def operation(lane: int, index: int) -> None:
        page = await bench.store.flow_instances.list_page(_EVERYTHING, limit=_PAGE)
        assert len(page.items) == _PAGE

    return operation


@growth("ten-thousandth page of 50 (or the last)")
async def _far_page(bench: Bench, tasks: int) -> Operation:
    before = min(bench.loaded_flows, 10_000 * _PAGE) - 10 * _PAGE
    cursor = await _cursor_behind(bench, before)

    async def operation(lane: int, index: int) -> None:
        page = await bench.store.flow_instances.list_page(_EVERYTHING, limit=_PAGE, cursor=cursor)
        assert len(page.items) == _PAGE

    return operation


async def _cursor_behind(bench: Bench, place: int) -> str:
    """The cursor of the page behind the `place`-th flow, made here: turning ten thousand pages would take a while."""
    query = (
        "SELECT created_at, flow_instance_id FROM flow_instances ORDER BY created_at, flow_instance_id LIMIT 1 OFFSET"
    )
    row = await bench.bare.connections[0].fetchrow(f"{query} {place}")
    key = (row["created_at"].isoformat(), str(row["flow_instance_id"]))
    return encode_cursor(("flow_instances.list_page", _EVERYTHING), key)


@growth("page of 50 running flows")
async def _page_of_running(bench: Bench, tasks: int) -> Operation:
    async def operation(lane: int, index: int) -> None:
        page = await bench.store.flow_instances.list_page(_RUNNING, limit=_PAGE)
        assert len(page.items) == _PAGE

    return operation


@growth("statistics")
async def _statistics(bench: Bench, tasks: int) -> Operation:
    async def operation(lane: int, index: int) -> None:
        await bench.store.statistics()

    return operation
