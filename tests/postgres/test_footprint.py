"""What an idle store holds in memory, and what importing the package costs. Measured in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PATIENCE_SECONDS = 50
_MEGABYTE = 1024 * 1024

# Everything that a store needs is imported, and one store was open before, so that what is left is the store's own.
_IDLE_STORE = """
import asyncio, gc, os, sys
from datetime import timedelta
import cascade_state.postgres.store
from cascade_state import FlowDefinition, FlowInstance, StepDefinition, open_store

def resident():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def main(url):
    before = resident()
    async with open_store(url) as store:
        steps = (StepDefinition(step_id="step", component_type="x"),)
        definition = await store.flow_definitions.deploy(FlowDefinition(flow_id="order", steps=steps))
        flows = await asyncio.gather(
            *(store.advance(FlowInstance.create(definition).start(), put_states={"step": 1}) for _ in range(16))
        )
        await asyncio.gather(*(store.advance(flow.complete_step("step").complete()) for flow in flows))
        await asyncio.gather(*(store.flow_instances.get(flow.flow_instance_id) for flow in flows))
        async with store.begin() as uow:
            await uow.timers.claim_due("worker", limit=10, lease_duration=timedelta(seconds=1))
        del flows
        assert "alembic" not in sys.modules  # it comes with the first migration
        print(resident() - before)

asyncio.run(main(sys.argv[1]))
"""

# What any package of this kind imports. Processor time, and the ratio to this, mean the same on a busy machine.
_STANDARD_LIBRARY = "import asyncio, dataclasses, datetime, json, logging, uuid"


def _run(code: str, *arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.postgres
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell resident memory in /proc")
def test_an_idle_store_holds_less_than_30_megabytes(database_url: str) -> None:
    held = int(_run(_IDLE_STORE, database_url))
    assert 0 < held < 30 * _MEGABYTE, held / _MEGABYTE


def test_importing_the_package_costs_less_than_what_of_the_standard_library_it_needs() -> None:
    """About 20 ms, then; the libraries beneath come with the names that need them (see test_exports)."""
    ours, standard = [], []
    for _ in range(3):
        standard.append(_processor_seconds(_STANDARD_LIBRARY))
        ours.append(_processor_seconds("import cascade_state"))
    assert min(ours) < min(standard), (ours, standard)


def _processor_seconds(code: str) -> float:
    return float(_run(f"import time; {code}; print(time.process_time())"))
