"""`python -m cascade_state.demo`: runs the demo; exits with 1 if an invariant broke, 2 if it could not be run."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys

from cascade_state import CascadeStateError
from cascade_state.demo.report import document_of, lines_of
from cascade_state.demo.run import Options, Run, run_demo
from cascade_state.demo.show import print_report, shown
from cascade_state.demo.worker_process import WorkerFailed

__all__ = ["main"]

_BROKEN, _NOT_RUN, _INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo and returns the exit code."""
    parsed = _parser().parse_args(arguments)
    options = Options(flow_count=parsed.flows, seed=parsed.seed, url=parsed.url, timeout_seconds=parsed.timeout_seconds)
    try:
        run = asyncio.run(_run(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; the server is stopped and its directory removed", file=sys.stderr)
        return _INTERRUPTED
    except (CascadeStateError, WorkerFailed) as error:
        print(f"the demo could not be run: {error}", file=sys.stderr)
        return _NOT_RUN
    document = document_of(run)
    if parsed.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        print_report(lines_of(document))
    return 0 if run.is_good else _BROKEN


async def _run(options: Options) -> Run:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for the type checker
    # SIGTERM cleans up like Ctrl-C.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with shown() as show:
        return await run_demo(options, show)


def _parser() -> argparse.ArgumentParser:
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="python -m cascade_state.demo",
        description="Drives flows through a small engine, kills its worker in the middle, and checks that nothing was "
        "lost and nothing was done twice.",
    )
    parser.add_argument(
        "--flows", type=int, default=defaults.flow_count, help="how many flows are started (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="makes the scenario (%(default)s)")
    parser.add_argument(
        "--url", help="a PostgreSQL to use, in a schema of its own; without it an embedded one is started"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    parser.add_argument(
        "--timeout-seconds",
        type=float,
        default=defaults.timeout_seconds,
        help="how long the workers may take (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
