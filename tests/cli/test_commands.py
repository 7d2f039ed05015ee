"""The `cascade-state` command on a real database: what it prints, what it changes, how it ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest
from typer.testing import CliRunner

from cascade_state import FlowDefinition, FlowInstance, FlowStatus, Store, open_store, partition_of
from cascade_state.cli.app import app
from cascade_state.model.flow_definitions import StepDefinition
from cascade_state.postgres import statistics
from cascade_state.postgres.schema import dump_schema, head_revision, migrate_database

pytestmark = pytest.mark.postgres

T = TypeVar("T")
ORDER = FlowDefinition(flow_id="order", name="Order", steps=(StepDefinition(step_id="charge", component_type="http"),))


def invoke(*arguments: str, code: int = 0, input: str | None = None, env: dict[str, str | None] | None = None) -> Any:
    """Runs the command in this process; returns its result after a look at the exit code."""
    result = CliRunner().invoke(app, list(arguments), input=input, env={"DATABASE_URL": None, **(env or {})})
    assert result.exit_code == code, result.output
    return result


def on_store(url: str, work: Callable[[Store], Awaitable[T]], **options: Any) -> T:
    async def opened() -> T:
        async with open_store(url, **options) as store:
            return await work(store)

    return asyncio.run(opened())


async def add_flow(store: Store, *, ended: bool = False) -> UUID:
    definition = await store.flow_definitions.deploy(ORDER)
    flow = FlowInstance.create(definition, trigger_data={"naïve": "✓"}).start().complete_step("charge", {"n": 1})
    return (await store.advance(flow.complete() if ended else flow)).flow_instance_id


async def count(store: Store) -> int:
    return await store.flow_instances.count()


def test_migrate_then_check(empty_database_url: str) -> None:
    refused = invoke("check", "--url", empty_database_url, code=1)
    assert "never migrated" in refused.stderr
    assert json.loads(invoke("check", "--url", empty_database_url, "--json", code=1).stdout)["found"] is None

    done = invoke("migrate", "--url", empty_database_url)
    assert done.stdout == f"at revision {head_revision()}, 256 partitions\n"
    assert invoke("check", "--url", empty_database_url).stdout == done.stdout
    assert json.loads(invoke("migrate", "--url", empty_database_url, "--json").stdout) == {
        "ok": True,
        "revision": head_revision(),
        "schema": None,
        "partition_count": 256,
    }


def test_the_address_may_come_from_the_environment(empty_database_url: str) -> None:
    assert "256 partitions" in invoke("migrate", env={"DATABASE_URL": empty_database_url}).stdout


def test_the_partition_count_is_chosen_once_and_then_known(empty_database_url: str) -> None:
    options = ("--url", empty_database_url, "--schema", "flows")
    assert "in schema flows, 64 partitions" in invoke("migrate", *options, "--partition-count", "64").stdout
    assert "64 partitions" in invoke("migrate", *options).stdout
    assert "64 partitions" in invoke("check", *options, "--partition-count", "128", code=1).stderr
    assert "power of two" in invoke("migrate", *options, "--partition-count", "7", code=2).stderr


def test_the_dump_is_that_of_the_library(tmp_path: Path) -> None:
    assert invoke("schema", "dump").stdout == dump_schema()
    file = tmp_path / "schema.sql"
    invoke("schema", "dump", "--schema", "flows", "--partition-count", "64", "--output", str(file))
    assert file.read_text(encoding="utf-8") == dump_schema(schema="flows", partition_count=64)
    assert json.loads(invoke("schema", "dump", "--json").stdout) == {
        "revision": head_revision(),
        "sql": dump_schema(),
    }


def test_statistics_are_printed_for_people_and_for_programs(database_url: str) -> None:
    on_store(database_url, add_flow)
    on_store(database_url, lambda store: add_flow(store, ended=True))
    found = json.loads(invoke("statistics", "--url", database_url, "--json").stdout)
    assert found["instances_by_status"]["RUNNING"] == 1
    assert found["instances_by_status"]["COMPLETED"] == 1
    assert found["instances_by_status"]["FAILED"] == 0
    assert found["oldest_overdue_at"] is None
    assert found["estimated"] == []
    shown = invoke("statistics", "--url", database_url).stdout
    assert "RUNNING" in shown
    assert "timers overdue" in shown
    assert "~" not in shown


def test_estimates_are_marked(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        on_store(database_url, add_flow)
    asyncio.run(_analyse(database_url))
    monkeypatch.setattr(statistics, "COUNTED", 0)
    options = ("statistics", "--url", database_url)
    assert json.loads(invoke(*options, "--json").stdout)["estimated"] == ["instances_by_status.RUNNING"]
    assert "~2" in invoke(*options).stdout
    assert "~" not in invoke(*options, "--exact").stdout


async def _analyse(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


async def two_workers(store: Store) -> None:
    for worker_id, metadata in (("rhine-1", {"host": "rhine"}), ("main-2", {})):
        await store.replica_sets.join("shipping", worker_id, stale_after=timedelta(hours=1), metadata=metadata)
    await store.replica_sets.join("billing", "lahn-3", stale_after=timedelta(microseconds=1))


def test_workers_are_shown_to_people(database_url: str) -> None:
    options = ("workers", "--url", database_url)
    assert invoke(*options).stdout == "no workers\n"
    on_store(database_url, two_workers)
    shown = invoke(*options).stdout
    lines = [line.split() for line in shown.splitlines() if line.strip()]
    assert ["Replica", "set", "shipping"] in lines
    (alive,) = [line for line in lines if line[0] == "rhine-1"]
    assert (alive[1], alive[-3:]) == ("yes", ["256", "0", "128"])
    (joined,) = [line for line in lines if line[0] == "main-2"]
    assert joined[-3:] == ["0", "128", "0"]
    (silent,) = [line for line in lines if line[0] == "lahn-3"]
    assert silent[1] == "no"
    assert "256 partitions have no living owner" in shown
    some = invoke(*options, "--replica-set", "shipping", "--partitions").stdout
    assert "billing" not in some
    rows = [line.split() for line in some.splitlines() if line.split()[2:3] == ["rhine-1"]]
    assert [row[0] for row in rows] == [str(number) for number in range(256)]
    assert ["0", "1", "rhine-1", "–"] in rows
    assert ["255", "1", "rhine-1", "main-2"] in rows


def test_workers_are_shown_to_programs(database_url: str) -> None:
    on_store(database_url, two_workers)
    options = ("workers", "--url", database_url, "--json")
    billing, shipping = json.loads(invoke(*options).stdout)
    assert (billing["replica_set"], billing["unowned"], billing["moving"]) == ("billing", 256, 0)
    assert (shipping["replica_set"], shipping["unowned"], shipping["moving"]) == ("shipping", 0, 128)
    main, rhine = shipping["workers"]
    assert (main["worker_id"], main["partitions"]) == ("main-2", [])
    assert (rhine["is_alive"], rhine["metadata"], rhine["stale_after"]) == (True, {"host": "rhine"}, 3600.0)
    assert rhine["partitions"] == list(range(256))
    assert "partitions" not in shipping
    (found,) = json.loads(invoke(*options, "--replica-set", "shipping", "--partitions").stdout)
    assert found["partitions"][255] == {
        "partition_id": 255,
        "owner": "rhine-1",
        "generation": 1,
        "next_owner": "main-2",
    }
    assert json.loads(invoke(*options, "--replica-set", "nobody").stdout) == [
        {"replica_set": "nobody", "workers": [], "unowned": 0, "moving": 0}
    ]


def test_purge_removes_what_ended_before_and_counts_it(database_url: str) -> None:
    on_store(database_url, add_flow)
    for _ in range(3):
        on_store(database_url, lambda store: add_flow(store, ended=True))
    options = ("purge", "--url", database_url)
    assert invoke(*options, "--older-than", "1h").stdout == "0 flows removed\n"
    dry = invoke(*options, "--older-than", "0s", "--dry-run", "--json")
    assert json.loads(dry.stdout)["flows"] == 3
    assert on_store(database_url, count) == 4
    assert invoke(*options, "--older-than", "0s", "--status", "failed").stdout == "0 flows removed\n"
    assert "3 flows would be removed" in invoke(*options, "--older-than", "0s", "--dry-run").stdout
    assert invoke(*options, "--older-than", "0s", "--batch-size", "2").stdout == "3 flows removed\n"
    assert on_store(database_url, count) == 1
    assert json.loads(invoke(*options, "--before", "2999-01-01T00:00:00+00:00", "--json").stdout) == {
        "flows": 0,
        "before": "2999-01-01T00:00:00+00:00",
        "dry_run": False,
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "exactly one of"),
        (("--before", "2026-01-01T00:00:00+00:00", "--older-than", "1d"), "exactly one of"),
        (("--before", "2026-01-01T00:00:00"), "offset"),
        (("--before", "yesterday"), "instant"),
        (("--older-than", "-1d"), "units"),
        (("--older-than", "1y"), "units"),
        (("--older-than", "1d", "--status", "running"), "running"),
        (("--older-than", "1d", "--batch-size", "0"), "batch-size"),
    ],
)
def test_a_purge_without_a_clear_limit_is_refused(arguments: tuple[str, ...], reason: str) -> None:
    refused = invoke("purge", "--url", "memory://", *arguments, code=2)
    assert reason in " ".join(refused.stderr.replace("│", " ").split())


def test_a_flow_moves_from_one_store_to_another(database_url: str, empty_database_url: str, tmp_path: Path) -> None:
    flow_instance_id = on_store(database_url, add_flow)
    asyncio.run(migrate_database(empty_database_url, schema="other", partition_count=16))
    other = ("--url", empty_database_url, "--schema", "other")
    file = tmp_path / "flow.json"
    invoke("export", str(flow_instance_id), "--url", database_url, "--output", str(file))
    printed = invoke("export", str(flow_instance_id), "--url", database_url).stdout
    assert json.loads(printed) == json.loads(file.read_text(encoding="utf-8"))
    assert "naïve" in printed

    assert invoke("import", str(file), *other).stdout == f"imported {flow_instance_id}\n"
    moved = on_store(
        empty_database_url,
        lambda store: store.flow_instances.get(flow_instance_id),
        schema="other",
        partition_count=16,
    )
    assert (moved.status, moved.trigger_data) == (FlowStatus.RUNNING, {"naïve": "✓"})
    assert "already exists" in invoke("import", "-", *other, input=printed, code=1).stderr


def test_an_import_can_be_read_from_the_standard_input(database_url: str, empty_database_url: str) -> None:
    flow_instance_id = on_store(database_url, add_flow)
    printed = invoke("export", str(flow_instance_id), "--url", database_url).stdout
    asyncio.run(migrate_database(empty_database_url))
    done = invoke("import", "-", "--url", empty_database_url, "--json", input=printed)
    assert json.loads(done.stdout) == {"flow_instance_id": str(flow_instance_id)}


def test_what_cannot_be_imported_is_refused(database_url: str, tmp_path: Path) -> None:
    missing = invoke("import", str(tmp_path / "none.json"), "--url", database_url, code=2)
    assert "cannot read" in missing.stderr
    assert "no JSON" in invoke("import", "-", "--url", database_url, input="{", code=2).stderr
    assert "format_version" in invoke("import", "-", "--url", database_url, input="{}", code=2).stderr


def test_an_unknown_flow_is_a_failure_and_no_traceback(database_url: str) -> None:
    unknown = invoke("export", str(uuid4()), "--url", database_url, code=1)
    assert "does not exist" in unknown.stderr
    assert unknown.stdout == ""


def test_an_address_that_nobody_answers_is_a_failure_without_the_password() -> None:
    result = invoke("check", "--url", "postgresql://me:s3cret@localhost:1/none", code=1)
    assert "unavailable" in result.stderr
    assert "s3cret" not in result.output
    assert "must begin with" in invoke("check", "--url", "mysql://localhost/x", code=2).stderr


def test_the_password_is_not_shown_by_the_help() -> None:
    shown = invoke("migrate", "--help", env={"DATABASE_URL": "postgresql://me:s3cret@localhost/x"})
    assert "s3cret" not in shown.output


def test_the_command_runs_as_a_program_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cascade_state.cli", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip().count(".") == 2


def test_a_missing_extra_is_named() -> None:
    program = "import sys; sys.modules['typer'] = None; from cascade_state.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "cascade-state needs typer: install cascade-state[cli]"


async def with_a_consumer(store: Store) -> int:
    """Gives the store a consumer that is behind and cannot go on in one partition."""
    partition_id = partition_of(await add_flow(store), 256)
    await store.feeds.register("invoices")
    return await store.feeds.retry("invoices", partition_id, error="RuntimeError: broken")


def test_consumers_are_listed_with_what_stops_them(database_url: str) -> None:
    url = ("--url", database_url)
    assert json.loads(invoke("feeds", "list", *url, "--json").stdout) == []
    on_store(database_url, with_a_consumer)
    (found,) = json.loads(invoke("feeds", "list", *url, "--json").stdout)
    assert (found["consumer"], found["start"], found["lag"], found["paused_at"]) == ("invoices", "beginning", 3, None)
    assert found["oldest_recorded_at"] is not None
    (failure,) = found["failing"]
    assert (failure["attempts"], failure["last_error"]) == (1, "RuntimeError: broken")
    shown = invoke("feeds", "list", *url).stdout
    assert "invoices" in shown
    assert "failing" in shown.lower()
    figures = json.loads(invoke("statistics", *url, "--json").stdout)
    assert (figures["consumer_lags"], figures["consumer_failures"]) == ({"invoices": 3}, {"invoices": 1})
    assert "Failures" in invoke("statistics", *url).stdout


def test_a_consumer_is_paused_resumed_reset_and_removed(database_url: str) -> None:
    url = ("--url", database_url)
    on_store(database_url, with_a_consumer)
    assert invoke("feeds", "pause", "invoices", *url).stdout == "invoices paused\n"
    assert invoke("feeds", "pause", "invoices", *url).stdout == "invoices was paused already\n"
    assert json.loads(invoke("feeds", "resume", "invoices", *url, "--json").stdout) == {
        "consumer": "invoices",
        "changed": True,
    }
    assert invoke("feeds", "reset", "invoices", "--start", "now", *url).stdout == "invoices reset to now\n"
    (found,) = json.loads(invoke("feeds", "list", *url, "--json").stdout)
    assert (found["start"], found["lag"], found["failing"]) == ("now", 0, [])
    assert invoke("feeds", "remove", "invoices", *url).stdout == "invoices removed\n"
    for command in ("pause", "resume", "reset", "remove"):
        assert "'invoices' does not exist" in invoke("feeds", command, "invoices", *url, code=1).stderr
    assert json.loads(invoke("feeds", "list", *url, "--json").stdout) == []


def test_a_consumer_that_runs_is_not_reset(database_url: str) -> None:
    async def joined(store: Store) -> None:
        await store.feeds.register("invoices")
        await store.replica_sets.join(
            "any", "worker-1", stale_after=timedelta(hours=1), metadata={"feed_consumer": "invoices"}
        )

    on_store(database_url, joined)
    for command in ("reset", "remove"):
        assert "is running" in invoke("feeds", command, "invoices", "--url", database_url, code=2).stderr


def test_history_is_purged_once_it_is_handled(database_url: str) -> None:
    url = ("--url", database_url, "--older-than", "0s")
    on_store(database_url, with_a_consumer)
    assert invoke("purge-events", *url).stdout == "0 events removed\n"
    purged = json.loads(invoke("purge-events", *url, "--force", "--json").stdout)
    assert purged["events"] in (0, 3)  # 0: other transactions of the server are older than the events
