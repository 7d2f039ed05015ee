"""C-21: what a step costs does not grow with the steps that are already finished."""

import json
from typing import Any

import asyncpg
import pytest

from benchmarks.contenders import Recording
from cascade_state import FlowInstance, open_store
from cascade_state.model.advance import Limits, plan_advance
from cascade_state.postgres.advance_values import ADVANCE
from cascade_state.postgres.direct import CompiledStatement
from cascade_state.testing import factories

pytestmark = pytest.mark.postgres


def _prepared(flow: FlowInstance) -> tuple[str, list[Any]]:
    """What the store would send for one more step of a flow."""
    plan = plan_advance(flow, limits=Limits(), put_states={"state": {"attempts": 1}})
    statement, values = ADVANCE.prepare((plan,), Recording(1).recorder)
    compiled = CompiledStatement(statement, None)
    return compiled.text, compiled.arguments(values)


async def _buffers(connection: Any, text: str, arguments: list[Any]) -> int:
    """How many pages the server touches for a statement that is then undone."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        explained = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", *arguments)
    finally:
        await transaction.rollback()
    (document,) = json.loads(explained)
    plan = document["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_step_500_costs_what_step_1_costs(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        async with open_store(database_url) as store:
            definition = await store.flow_definitions.deploy(factories.flow_definition())
            young = await store.advance(FlowInstance.create(definition).start())
            old = await store.advance(FlowInstance.create(definition).start())
            for number in range(1, 500):
                old = await store.advance(old.complete_step(f"step-{number:03}", {"receipt": f"r-{number:03}"}))
            await connection.execute("VACUUM ANALYZE")
            first = _prepared(young.complete_step("step-001", {"receipt": "r-001"}))
            last = _prepared(old.complete_step("step-500", {"receipt": "r-500"}))
            assert len(old.step_results) == 499

            assert first[0] == last[0]  # the same statement
            assert _size(first[1]) == pytest.approx(_size(last[1]), abs=4)  # only the version has more digits
            few, many = await _buffers(connection, *first), await _buffers(connection, *last)
            assert 0 < few
            assert many <= few + 8, (few, many)  # a level more in an index or two, and pages that are not full
    finally:
        await connection.close()


def _size(arguments: list[Any]) -> int:
    return len(json.dumps(arguments, default=str))
