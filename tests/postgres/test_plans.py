"""How hot statements are executed on tables of some size: by index, without a sort of many rows, within few pages.

Each is explained twice: as it runs with these values, and as the plan for any values, to which the server changes when
a connection has run a statement five times.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import pytest
import pytest_asyncio

from benchmarks.contenders import Bare
from benchmarks.loading import load
from cascade_state import FlowDefinition, FlowInstance, FlowInstanceFilter, FlowStatus, StepDefinition, open_store
from cascade_state.model.lists import encode_cursor

pytestmark = pytest.mark.postgres

_FLOWS = 12_000
_LEASE = timedelta(minutes=5)
_RUNNING = FlowInstanceFilter(statuses=(FlowStatus.RUNNING,))
_LARGE = ("flow_instances", "step_results", "component_states", "timers", "flow_events")
_MANY = 1_000  # rows that a sort may see: those of a claim or of a batch, never of a table


@dataclass(frozen=True)
class Tables:
    """A database with tables of some size."""

    bare: Bare
    flow: FlowInstance  # a running one
    timer_ids: list[UUID]

    @property
    def connection(self) -> Any:
        return self.bare.connections[0]


Call: TypeAlias = Callable[[Any, Tables], Awaitable[Any]]


def _calls() -> dict[str, tuple[int, Call]]:
    """Hot calls by name, each with the pages that it may touch: shared buffers, the executor's own left out."""
    now = datetime.now(UTC)
    middle = encode_cursor(
        ("flow_instances.list_page", FlowInstanceFilter()), ((now - timedelta(days=45)).isoformat(), str(UUID(int=0)))
    )
    states = {"s0": {"n": 1}, "s1": {"n": 2}}
    return {
        "get": (12, lambda store, t: store.flow_instances.get(t.flow.flow_instance_id)),
        "find by business key": (15, lambda store, t: store.flow_instances.find_by_business_key("bench", "order-4000")),
        "find by correlation": (8, lambda store, t: store.flow_instances.find_by_correlation("parcel-1")),
        "first page": (400, lambda store, t: store.flow_instances.list_page(FlowInstanceFilter(), limit=50)),
        "middle page": (
            400,
            lambda store, t: store.flow_instances.list_page(FlowInstanceFilter(), limit=50, cursor=middle),
        ),
        "page of running flows": (400, lambda store, t: store.flow_instances.list_page(_RUNNING, limit=50)),
        "history": (8, lambda store, t: store.flow_instances.history(t.flow.flow_instance_id)),
        "claim flows": (
            600,
            lambda store, t: store.flow_instances.claim("w", filter=_RUNNING, limit=50, lease_duration=_LEASE),
        ),
        "put": (30, lambda store, t: store.component_states.put(t.flow.flow_instance_id, "s0", {"n": 1})),
        "find a state": (8, lambda store, t: store.component_states.find(t.flow.flow_instance_id, "s0")),
        "advance": (60, lambda store, t: store.advance(t.flow.complete_step("s1", {"n": 1}), put_states=states)),
        "advance to the end": (90, lambda store, t: store.advance(t.flow.complete_step("s1").complete())),
        "schedule": (60, lambda store, t: store.timers.schedule(t.flow.flow_instance_id, "s0", after=_LEASE)),
        "claim timers": (500, lambda store, t: store.timers.claim_due("w", limit=100, lease_duration=_LEASE)),
        "cancel a timer": (15, lambda store, t: store.timers.cancel(t.timer_ids[0])),
        "next due time": (20, lambda store, t: store.timers.next_due_at()),
        "timers of a flow": (15, lambda store, t: store.timers.list_for_instance(t.flow.flow_instance_id)),
        "claim deliveries": (
            10,
            lambda store, t: store.correlations.claim_delivered("w", limit=10, lease_duration=_LEASE),
        ),
        "publish": (40, lambda store, t: store.correlations.publish("parcel-1", {"n": 1})),
    }


@pytest_asyncio.fixture
async def tables(database_url: str) -> AsyncIterator[Tables]:
    async with open_store(database_url) as store:
        steps = tuple(StepDefinition(step_id=step_id, component_type="x") for step_id in ("s0", "s1", "s2"))
        definition = await store.flow_definitions.deploy(FlowDefinition(flow_id="bench", steps=steps))
        bare = Bare(database_url)
        await bare.open(1)
        await load(bare.connections[0], _FLOWS)
        flow = await store.flow_instances.find_by_business_key("bench", "order-4000")
        assert flow is not None
        due = [FlowInstance.create(definition).start().suspend_for_timer("s0", after=timedelta(0)) for _ in range(500)]
        await store.flow_instances.add_many(due)
        await bare.connections[0].execute("ANALYZE")
        timer_ids = [next(iter(one.pending_timers.values())) for one in due]
        yield Tables(bare, flow, timer_ids)
        await bare.close()


async def _plans(tables: Tables, call: Call) -> list[dict[str, Any]]:
    """The plans with which the server runs a call's first statement, for these values and for any."""
    (text, arguments), *_ = await tables.bare.sends(lambda store: call(store, tables))
    connection = tables.connection
    literals = await connection.fetchval(
        "SELECT string_agg(quote_nullable(value), ', ' ORDER BY place)"
        " FROM unnest($1::text[]) WITH ORDINALITY AS given(value, place)",
        [_as_text(argument) for argument in arguments],
    )
    plans = []
    for mode in ("force_custom_plan", "force_generic_plan"):
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"SET LOCAL plan_cache_mode = {mode}; PREPARE hot AS {text}")
        executed = f"EXECUTE hot({literals})" if arguments else "EXECUTE hot"
        (document,) = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {executed}"))
        await connection.execute("DEALLOCATE hot")
        await transaction.rollback()
        # What the plan wrote is dead, but fills its pages until somebody prunes them: the next plan's rows would have
        # to go elsewhere, with new entries in every index.
        await connection.execute(f"VACUUM {', '.join(_LARGE)}")
        plans.append(document["Plan"])
    return plans


def _as_text(value: Any) -> str | None:
    if isinstance(value, timedelta):
        return f"{value.total_seconds()} seconds"
    if isinstance(value, list):
        return "{" + ",".join(value) + "}"
    return None if value is None else str(value)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def _complaints(plan: dict[str, Any], budget: int) -> Iterator[str]:
    for node in _nodes(plan):
        kind = node["Node Type"]
        if kind == "Seq Scan" and node["Relation Name"] in _LARGE:
            yield f"reads all of {node['Relation Name']}"
        if "Sort" in kind and node["Actual Rows"] > _MANY:
            yield f"sorts {node['Actual Rows']} rows"
    pages = _pages(plan)
    if pages > budget:
        yield f"touches {pages} pages, more than {budget}"


def _pages(plan: dict[str, Any]) -> int:
    """The pages of tables and indexes; node by node, because a CTE that nobody reads counts for no node above it."""
    total = 0
    for node in _nodes(plan):
        if "Relation Name" in node:
            below = sum(child["Shared Hit Blocks"] + child["Shared Read Blocks"] for child in node.get("Plans", ()))
            total += max(0, node["Shared Hit Blocks"] + node["Shared Read Blocks"] - below)
    return total


async def test_hot_statements_use_indexes_and_few_pages(tables: Tables) -> None:
    complaints = []
    for name, (budget, call) in _calls().items():
        plans = await _plans(tables, call)
        assert len(plans) == 2, name
        for plan in plans:
            complaints += [f"{name}: {complaint}" for complaint in _complaints(plan, budget)]
    assert not complaints, "\n".join(complaints)
