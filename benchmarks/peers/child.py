"""One contender in its process: `python -m benchmarks.peers.child CONTENDER WORKLOAD URL TASKS COUNT`.

It prints the timing. Exit status 3: its library is not installed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from importlib import import_module
from types import ModuleType

from benchmarks.peers.workloads import Run, Timing, Workload

__all__ = ["NOT_INSTALLED", "python_needed", "workloads_of"]

NOT_INSTALLED = 3


def workloads_of(contender: str) -> dict[str, Workload]:
    """Returns what a contender takes part in; `name/variant` is another way to use the same library."""
    module, variant = _module(contender), contender.partition("/")[2]
    found: dict[str, Workload] = module.VARIANTS[variant] if variant else module.WORKLOADS
    return found


def python_needed(contender: str) -> tuple[int, int]:
    """Returns the oldest Python that its library runs on."""
    needed: tuple[int, int] = getattr(_module(contender), "NEEDS_PYTHON", (3, 11))
    return needed


def _module(contender: str) -> ModuleType:
    name = contender.partition("/")[0].replace("-", "_")
    return import_module(f"benchmarks.peers.contenders.{name}")


def main(contender: str, workload: str, url: str, tasks: str, count: str) -> int:
    """Runs one workload once."""
    run = Run(url=url, tasks=int(tasks), count=int(count))
    try:
        timing = asyncio.run(_run(workloads_of(contender)[workload], run))
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return NOT_INSTALLED
    print(json.dumps(asdict(timing)))
    return 0


async def _run(workload: Workload, run: Run) -> Timing:
    return await workload.run(run)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
