"""The demo as a user runs it: a process of its own, with its own server or on a given one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cascade_state.demo.worker import URL_VARIABLE
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.server import PostgresServer

pytestmark = pytest.mark.postgres

SECONDS = 110  # what a loaded machine may need for a small run


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cascade_state.demo", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@contextmanager
def started_demo(temporary: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a demo that keeps its server's directory below `temporary`, and ends it whatever happens."""
    code = (
        # A run in the background of a shell ignores Ctrl-C, and so would its children.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from cascade_state.demo import run; place = sys.argv.pop(1); run._memory_disk = lambda: place; "
        "from cascade_state.demo.__main__ import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(temporary), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)


def wait_for_line(process: subprocess.Popen[str], part: str) -> str:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if part in line:
            return line
    raise AssertionError(f"no line with {part!r} in {seen}")


@pytest.mark.timeout(120)
def test_a_small_demo_holds_every_invariant_and_says_so_in_json() -> None:
    done = demo("--flows", "20", "--seed", "5", "--json")

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert document["server_version"].startswith("18")
    assert {item["flow_id"] for item in document["outcomes"]} == {"order", "approval", "review", "import"}
    assert all(item["as_predicted"] == item["flows"] for item in document["outcomes"])
    assert all(item["holds"] and not item["problems"] for item in document["invariants"])
    assert document["kill"]["held"]
    assert document["kill"]["begun_again"]
    counts = document["counts"]
    assert min(counts[name] for name in ("events_before_the_flow", "events_after_the_wait")) > 0
    assert min(counts[name] for name in ("events_after_the_end", "events_duplicate", "reminders")) > 0
    assert min(counts[name] for name in ("attempts_failed", "deadlines_by_timer", "deadlines_by_expiry")) > 0
    assert counts["steps_failed_for_good"] > 0
    sequences = [event["sequence"] for event in document["timeline"]["events"] if "sequence" in event]
    assert sequences == list(range(1, len(sequences) + 1))
    assert re.search(r"worker-[123] killed \(SIGKILL\)", done.stderr)
    assert "worker-4 works as process" in done.stderr
    assert [item["worker"] for item in document["workers"]] == ["worker-1", "worker-2", "worker-3", "worker-4"]
    assert all(item["effects"] for item in document["workers"][:3])


@pytest.mark.timeout(120)
def test_on_a_given_server_it_works_in_a_schema_of_its_own_and_removes_it(
    server: PostgresServer, empty_database_url: str
) -> None:
    done = demo("--flows", "12", "--url", empty_database_url)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "All invariants hold." in done.stdout
    assert "✗" not in done.stdout
    assert schemas(empty_database_url) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_everything_and_removes_its_directory(tmp_path: Path, number: signal.Signals) -> None:
    with started_demo(tmp_path, "--flows", "200") as process:
        said = wait_for_line(process, "worker-1 works as process")
        worker = int(said.split()[-1])
        (directory,) = tmp_path.iterdir()
        postmaster = int((directory / "pgdata" / "postmaster.pid").read_text().split()[0])

        process.send_signal(number)
        process.communicate(timeout=SECONDS)

        assert process.returncode == 130
        assert not is_running(worker)
        assert not is_running(postmaster)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(120)
def test_a_demo_whose_flows_do_not_end_in_time_says_which_and_fails() -> None:
    done = demo("--flows", "12", "--timeout-seconds", "0.1")

    assert done.returncode == 1
    assert "✗ every flow ended as the scenario predicts" in done.stdout
    assert "invariant(s) broke" in done.stdout


def test_a_demo_that_cannot_run_says_why() -> None:
    done = demo("--url", "memory://")

    assert done.returncode == 2
    assert "needs a store that several processes can open" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(120)
def test_a_worker_that_fails_is_shown_with_what_it_wrote(tmp_path: Path) -> None:
    code = (
        "import sys; from cascade_state.demo import run; "
        "original = run.WorkerProcess.start; "
        "run.WorkerProcess.start = lambda *a, **k: original(*a, options=('--latency-ms', 'soon')); "
        "from cascade_state.demo.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--flows", "12"], capture_output=True, text=True, timeout=SECONDS, check=False
    )

    assert done.returncode == 2
    assert re.search("worker-[123] did not become ready", done.stderr)
    assert "invalid float value: 'soon'" in done.stderr


@pytest.mark.timeout(60)
def test_a_worker_stops_when_its_parent_is_gone(database_url: str) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-m", "cascade_state.demo.worker", "--stop-with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, URL_VARIABLE: database_url},
    )
    try:
        assert worker.stdout is not None
        assert worker.stdin is not None
        assert json.loads(worker.stdout.readline())["what"] == "ready"
        worker.stdin.close()
        assert json.loads(worker.stdout.readlines()[-1])["what"] == "stopped"
        assert worker.wait(timeout=20) == 0
    finally:
        worker.kill()
        worker.wait()
        if worker.stdout is not None:
            worker.stdout.close()


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended; the machine's init will bury it


def schemas(url: str) -> list[str]:
    """Returns the demo's schemas in a database."""

    async def read() -> list[str]:
        from cascade_state import open_store

        async with open_store(url) as store, store.begin(read_only=True) as uow:
            rows = await uow.connection.exec_driver_sql(
                "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'cascade_state_demo%'"
            )
            return [name for (name,) in rows]

    return run_blocking(read())
