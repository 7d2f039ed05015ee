"""Servers for tests: started, shared, removed, and swept when their test run was killed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cascade_state.errors import PermissionDenied, ServerUnavailable
from cascade_state.postgres.binaries import system_installations, wheel_installations
from cascade_state.testing import PostgresServer
from cascade_state.testing.blocking import run_blocking

ROOT = Path(__file__).resolve().parents[2]
WAIT = 30.0
TMPFS = Path("/dev/shm")

needs_wheel = pytest.mark.skipif(not wheel_installations(), reason="SKIP-TEST-CLUSTER: the wheel is not installed")
pytestmark = [pytest.mark.postgres, needs_wheel]

SHARING = """
import sys
from cascade_state.testing import shared_server
server = shared_server()
assert shared_server() is server
print(server.url, flush=True)
sys.stdin.readline()
"""


def fetch(url: str, statement: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return run_blocking(run())


def directory_of(url: str) -> Path:
    """The directory that a server on this machine keeps its files in."""
    name = fetch(url, "SELECT pg_read_file('postmaster.pid')").splitlines()[0]
    return Path(f"/proc/{name}/cwd").readlink().parent


@pytest.fixture
def start_sharing() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def start(**environment: str) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CASCADE_", "PYTEST_"))}
        process = subprocess.Popen(
            [sys.executable, "-c", SHARING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean | environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=WAIT)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def map_files(server: PostgresServer) -> list[Path]:
    """Returns the free-space and visibility maps of the database that nobody ever connects to."""
    assert server.directory is not None
    oid = fetch(server.url, "SELECT oid FROM pg_database WHERE datname = 'template0'")
    directory = server.directory / "pgdata" / "base" / str(oid)
    assert (directory / "PG_VERSION").exists()
    return [*directory.glob("*_fsm"), *directory.glob("*_vm")]


def test_an_embedded_server_is_thrown_away_at_the_end() -> None:
    with PostgresServer.embedded() as server:
        assert server.url.startswith("postgresql://")
        assert fetch(server.url, "SHOW server_version").startswith("18.")
        directory = directory_of(server.url)
        if TMPFS.is_dir() and shutil.disk_usage(TMPFS).free > 2**30:
            assert directory.is_relative_to(TMPFS)
        # What is copied and removed for each test has no files that it can do without, and VACUUM copes.
        assert not map_files(server)
        assert fetch(server.url, "VACUUM pg_class") is None
        assert fetch(server.url, "SELECT count(*) > 300 FROM pg_class")
    assert not directory.exists()
    with pytest.raises(ServerUnavailable):
        _ = server.url


def test_it_does_not_wait_for_disks_but_keeps_autovacuum() -> None:
    with PostgresServer.embedded() as server:
        settings = {
            name: fetch(server.url, f"SHOW {name}")
            for name in (
                "fsync",
                "full_page_writes",
                "synchronous_commit",
                "autovacuum",
                "max_connections",
                "dynamic_shared_memory_type",
            )
        }
    assert settings == {
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "dynamic_shared_memory_type": "mmap",
        "autovacuum": "on",
        "max_connections": "200",
    }


async def test_it_works_inside_a_running_loop() -> None:
    async with PostgresServer.embedded() as server:
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT current_database()") == "postgres"
        await connection.close()


def test_the_version_can_be_chosen() -> None:
    with PostgresServer.embedded(version=16) as server:
        assert fetch(server.url, "SHOW server_version").startswith("16.")


@pytest.mark.skipif(not system_installations(), reason="SKIP-TEST-CLUSTER: no PostgreSQL on this system")
def test_a_system_server_uses_the_machines_programs() -> None:
    with PostgresServer.system() as server:
        newest = system_installations()[0].version
        assert fetch(server.url, "SELECT current_setting('server_version_num')::int / 10000") == newest


def test_starting_and_stopping_twice_is_harmless() -> None:
    server = PostgresServer.embedded()
    assert server.start() is server
    url = server.url
    assert server.start().url == url
    server.stop()
    server.stop()


def test_a_given_directory_is_kept_with_its_databases(tmp_path: Path) -> None:
    with PostgresServer.embedded(tmp_path / "server") as server:
        run_blocking(server.create_database("kept"))
    with PostgresServer.embedded(tmp_path / "server") as server:
        assert run_blocking(server.database_exists("kept"))
        assert not server.is_thrown_away
        assert map_files(server)
        # Only what is thrown away may be lost in a power cut.
        assert {fetch(server.url, f"SHOW {name}") for name in ("fsync", "full_page_writes", "synchronous_commit")} == {
            "on"
        }


def test_a_server_from_a_url_is_somebody_elses() -> None:
    with PostgresServer.embedded() as own:
        with PostgresServer.from_url(own.url.replace("postgresql://", "postgresql+asyncpg://")) as server:
            assert server.url == own.url
            assert server.url_for("a/b ?") == own.url_for("a/b ?")
            run_blocking(server.create_database("a/b ?"))
            assert fetch(server.url_for("a/b ?"), "SELECT current_database()") == "a/b ?"
        assert fetch(own.url, "SELECT 1") == 1


def test_a_url_without_a_database_means_the_maintenance_database() -> None:
    assert PostgresServer.from_url("postgres://me@host:5433").url == "postgresql://me@host:5433/postgres"
    assert PostgresServer.from_url("postgresql://h/x?a=b").url_for("y") == "postgresql://h/y?a=b"


def test_another_scheme_is_refused() -> None:
    with pytest.raises(ServerUnavailable, match="postgresql://"):
        PostgresServer.from_url("mysql://host/x")
    with pytest.raises(ServerUnavailable, match="begins with postgresql://"):
        PostgresServer.from_url(None)  # type: ignore[arg-type]


def test_a_server_that_nobody_runs_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerUnavailable):
        PostgresServer.from_url(f"postgresql://postgres@127.0.0.1:{port}/postgres").start()


def test_a_wrong_password_is_permission_denied_and_is_not_shown(tmp_path: Path) -> None:
    with PostgresServer.embedded(tmp_path / "server") as server:
        fetch(server.url, "CREATE ROLE guest LOGIN PASSWORD 'correct-horse'")
        access = tmp_path / "server" / "pgdata" / "pg_hba.conf"
        access.write_text("local all guest scram-sha-256\n" + access.read_text())
        fetch(server.url, "SELECT pg_reload_conf()")
        url = server.url.replace("postgres@", "guest:battery-staple@", 1)
        with pytest.raises(PermissionDenied) as caught:
            PostgresServer.from_url(url).start()
        assert "battery-staple" not in str(caught.value) + repr(caught.value)
        good = PostgresServer.from_url(server.url.replace("postgres@", "guest:correct-horse@", 1)).start()
        with pytest.raises(PermissionDenied):
            run_blocking(good.create_database("forbidden"))


def test_a_version_that_is_not_there_is_said() -> None:
    with pytest.raises(ServerUnavailable, match="PostgreSQL 9 was not found"):
        PostgresServer.embedded(version=9).start()


def test_a_server_that_does_not_start_tells_its_log(tmp_path: Path) -> None:
    with PostgresServer.embedded(tmp_path / "server"):
        pass
    with (tmp_path / "server" / "pgdata" / "postgresql.conf").open("a") as settings:
        settings.write("\nno_such_setting_at_all = 1\n")
    with pytest.raises(ServerUnavailable) as caught:
        PostgresServer.embedded(tmp_path / "server").start()
    assert "no_such_setting_at_all" in caught.value.log_tail


def test_the_workers_of_a_test_run_share_one_server(start_sharing: Any) -> None:  # TPL-08
    run = secrets.token_hex(8)
    workers = [start_sharing(PYTEST_XDIST_TESTRUNUID=run) for _ in range(3)]
    urls = {first_line(worker) for worker in workers}
    assert len(urls) == 1
    (url,) = urls
    directory = directory_of(url)
    for worker in workers[:-1]:
        worker.communicate("\n", timeout=WAIT)
        assert fetch(url, "SELECT 1") == 1
    workers[-1].communicate("\n", timeout=WAIT)  # ends without stopping it: the end of the process does
    assert not directory.exists()


def test_test_runs_do_not_share(start_sharing: Any) -> None:
    alone, first, second = (
        start_sharing(),
        *(start_sharing(PYTEST_XDIST_TESTRUNUID=run) for run in ("a", "b")),
    )
    assert len({first_line(process) for process in (alone, first, second)}) == 3


def test_the_environment_chooses_the_server(start_sharing: Any) -> None:
    assert fetch(first_line(start_sharing(CASCADE_TEST_POSTGRES="16")), "SHOW server_version").startswith("16.")
    with PostgresServer.embedded() as server:
        process = start_sharing(CASCADE_TEST_URL=server.url)
        assert first_line(process) == server.url
        process.communicate("\n", timeout=WAIT)
        assert fetch(server.url, "SELECT 1") == 1


def test_a_failure_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from cascade_state.testing import server as module

    monkeypatch.setattr(module, "_shared", {})
    monkeypatch.delenv("CASCADE_TEST_URL", raising=False)
    monkeypatch.setenv("CASCADE_TEST_POSTGRES", "newest")
    with pytest.raises(ServerUnavailable, match="a major version or 'system'") as first:
        module.shared_server()
    with pytest.raises(ServerUnavailable) as second:
        module.shared_server(version="newest")
    assert second.value is first.value


def test_the_server_of_a_killed_run_is_swept_and_that_of_a_live_one_is_not(start_sharing: Any) -> None:
    killed, alive = start_sharing(), start_sharing()
    killed_url, alive_url = first_line(killed), first_line(alive)
    directory = directory_of(killed_url)
    killed.send_signal(signal.SIGKILL)
    killed.wait(WAIT)
    assert directory.exists()
    with PostgresServer.embedded():
        pass
    assert not directory.exists()
    with pytest.raises(OSError, match=r"."):
        fetch(killed_url, "SELECT 1")
    assert fetch(alive_url, "SELECT 1") == 1


ORDINARY = """
import os
from cascade_state.testing import PostgresServer

def use():
    async def setup(url): ...
    with PostgresServer.embedded() as server:
        server.blocking.ensure_template_exists("made", setup)
        with server.blocking.temporary_database_from_template("made") as database:
            print(os.geteuid(), os.stat(server.directory / "pgdata").st_uid, server.blocking.database_exists(database.name))

use()
os.setgroups([]); os.setgid(65534); os.setuid(65534)  # all modules are loaded: its Python may be out of reach
use()
"""  # noqa: E501


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test is an ordinary user's")
def test_root_and_an_ordinary_user_start_servers() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", ORDINARY],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "TMPDIR": "/tmp"},
        timeout=WAIT,
    )
    assert answer.returncode == 0, answer.stderr
    root, ordinary = (line.split() for line in answer.stdout.splitlines())
    assert root[0] == "0"
    assert root[1] != "0"
    assert ordinary == ["65534", "65534", "True"]


def test_uses_of_the_shared_server_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from cascade_state.testing import server as module

    monkeypatch.setattr(module, "_shared", {})
    monkeypatch.delenv("CASCADE_TEST_URL", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID", raising=False)
    first, second = module.shared_server(version=18), module.shared_server(version=18)
    assert first is second
    first.stop()
    assert fetch(second.url, "SELECT 1") == 1
    assert second.directory is not None
    second.stop()
    assert not second.directory.exists()


def test_a_server_may_be_left_running_for_a_person(tmp_path: Path) -> None:
    from cascade_state.testing.server import sweep

    server = PostgresServer.embedded().start()
    url, directory = server.url, server.directory
    assert directory is not None
    server.leave_running(tmp_path)
    sweep(directory.with_name("nobody"))
    assert fetch(url, "SELECT 1") == 1
    sweep(directory.with_name("nobody"), project=tmp_path / "other")
    assert fetch(url, "SELECT 1") == 1
    sweep(directory.with_name("nobody"), project=tmp_path)
    assert not directory.exists()
