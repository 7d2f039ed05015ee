"""The embedded server: shared by its users, gone with the last of them, back after every crash."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from cascade_state.errors import InvalidArgument, StoreUnavailable
from cascade_state.postgres import server_identity
from cascade_state.postgres.binaries import Installation, find_installation, wheel_installations
from cascade_state.postgres.embedded import EmbeddedServer
from cascade_state.postgres.file_lock import FileLock
from cascade_state.postgres.postmaster import read_postmaster
from cascade_state.postgres.server_identity import ServerIdentity, identity_for, reachable_installation
from cascade_state.postgres.server_process import ServerProcess
from cascade_state.postgres.shared_server import socket_url

ROOT = Path(__file__).resolve().parents[2]
WAIT = 30.0

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not wheel_installations(), reason="SKIP-TEST-CLUSTER: the wheel is not installed"),
]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root steps down to another user")

# Holds the server until a line arrives on standard input; an empty line leaves properly, `exit` just ends.
USER = """
import os, sys
from cascade_state.postgres.embedded import EmbeddedServer
if len(sys.argv) > 2:  # from here on an ordinary user, even where the interpreter lies in root's home
    group, user = map(int, sys.argv[2].split(":"))
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
server = EmbeddedServer(sys.argv[1])
print(server.start(), flush=True)
if sys.stdin.readline().strip() != "exit":
    server.stop()
"""


def sockets_of(directory: Path) -> Path:
    """Where the server's sockets were at the last start."""
    written = (directory / "pgdata" / "postmaster.opts").read_text()
    found = re.search(r"unix_socket_directories=([^\"]+)", written)
    assert found
    return Path(found.group(1))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    server = EmbeddedServer(tmp_path / "data")
    if server.version is not None:  # whatever a failed test left running
        server.interrupt()


@pytest.fixture
def start_user() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(directory: Path, *, step_down: str | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", USER, str(directory), *([step_down] if step_down else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=WAIT)


def server_process(directory: Path) -> int | None:
    found = read_postmaster(directory / "pgdata")
    return found.process_id if found else None


def query(url: str, *statements: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(run())


def url_from(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_url_works_with_the_driver_and_with_sqlalchemy(directory: Path) -> None:
    async def select_one(url: str) -> Any:
        engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1))
        async with engine.connect() as connection:
            answer = (await connection.execute(text("SELECT 1"))).scalar()
        await engine.dispose()
        return answer

    with EmbeddedServer(directory) as server:
        assert query(server.url, "SELECT current_setting('server_version_num')::int / 10000") == 18
        assert asyncio.run(select_one(server.url)) == 1


def test_the_environment_of_libpq_does_not_lead_clients_or_server_astray(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "203.0.113.1", "PGUSER": "x", "PGDATA": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedServer(directory) as server:
        assert query(server.url, "SELECT current_user") == "postgres"


def test_it_is_durable_and_keeps_its_data(directory: Path) -> None:
    with EmbeddedServer(directory) as server:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            assert query(server.url, f"SHOW {setting}") == "on"
        query(server.url, "CREATE TABLE kept AS SELECT 42 AS value", "SELECT 1")
    with EmbeddedServer(directory) as server:
        assert query(server.url, "SELECT value FROM kept") == 42


def test_text_is_utf8_with_unicode_rules_and_time_is_utc(directory: Path) -> None:
    with EmbeddedServer(directory) as server:
        assert query(server.url, "SHOW server_encoding") == "UTF8"
        assert query(server.url, "SELECT upper('ä')") == "Ä"
        assert query(server.url, "SHOW TimeZone") in ("UTC", "Etc/UTC")


def test_nobody_else_can_reach_it(directory: Path) -> None:
    with EmbeddedServer(directory) as server:
        assert query(server.url, "SHOW listen_addresses") == ""
        socket_directory = Path(query(server.url, "SHOW unix_socket_directories"))
        assert socket_directory.stat().st_mode & 0o077 == 0
        assert (directory / "server.log").stat().st_mode & 0o077 == 0
        assert (directory / "pgdata").stat().st_mode & 0o077 == 0
    assert not socket_directory.exists()


def test_a_directory_keeps_its_version(directory: Path) -> None:
    with EmbeddedServer.from_url(f"embedded://{directory}?version=16") as server:
        assert query(server.url, "SHOW server_version").startswith("16.")
    with EmbeddedServer.from_url(f"embedded://{directory}?version=18") as server:
        assert query(server.url, "SHOW server_version").startswith("16.")
        assert server.version == 16


def test_a_version_that_is_not_there_is_said(directory: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"PostgreSQL 9 was not found"):
        EmbeddedServer(directory, version=9).start()


def test_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 40) / "ein Verzeichnis, größer"
    with EmbeddedServer(directory) as server:
        assert query(server.url, "SELECT 1") == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("embedded:///srv/data", "/srv/data"),
        ("embedded://./data", "./data"),
        ("embedded://../data", "../data"),
        ("embedded://Data", "Data"),
        ("embedded:///srv/with%20space%23", "/srv/with space#"),
    ],
)
def test_urls_name_directories(url: str, expected: str) -> None:
    assert EmbeddedServer.from_url(url).directory == Path(expected).absolute()


@pytest.mark.parametrize(
    "url",
    [
        "embedded://",
        "embedded:///srv/data?versoin=16",
        "embedded:///srv/data?version=",
        "embedded:///srv/data?version=sixteen",
        "embedded:///srv/data#part",
        "embedded:///srv/%00",
        "embedded://[x",
        "postgresql:///srv/data",
    ],
)
def test_urls_that_name_none_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        EmbeddedServer.from_url(url)
    assert caught.value.argument == "url"


def test_two_users_in_one_process_share_it(directory: Path) -> None:
    first, second = EmbeddedServer(directory), EmbeddedServer(directory)
    assert first.start() == second.start()
    first.stop()
    first.stop()
    assert query(second.url, "SELECT 1") == 1
    with pytest.raises(StoreUnavailable):
        _ = first.url
    second.stop()
    assert server_process(directory) is None


def test_starting_twice_counts_once(directory: Path) -> None:
    server = EmbeddedServer(directory)
    assert server.start() == server.start()
    server.stop()
    assert server_process(directory) is None


def test_eight_processes_open_a_new_directory_at_once(directory: Path, start_user: Any) -> None:
    users = [start_user(directory) for _ in range(8)]
    assert len({url_from(user) for user in users}) == 1
    process = server_process(directory)
    for user in users[:-1]:
        user.communicate("\n", timeout=WAIT)
        assert user.returncode == 0
        assert server_process(directory) == process
    users[-1].communicate("\n", timeout=WAIT)
    assert server_process(directory) is None


def test_a_killed_user_counts_as_gone(directory: Path, start_user: Any) -> None:
    killed = start_user(directory)
    url = url_from(killed)
    with EmbeddedServer(directory) as server:
        assert server.url == url
        killed.send_signal(signal.SIGKILL)
        killed.wait(WAIT)
        assert query(server.url, "SELECT 1") == 1
    assert server_process(directory) is None


def test_when_all_were_killed_the_next_adopts_the_server_and_stops_it(directory: Path, start_user: Any) -> None:
    users = [start_user(directory), start_user(directory)]
    for user in users:
        url_from(user)
    process = server_process(directory)
    for user in users:
        user.send_signal(signal.SIGKILL)
        user.wait(WAIT)
    assert process is not None
    assert server_process(directory) == process
    with EmbeddedServer(directory) as server:
        assert query(server.url, "SELECT 1") == 1
        assert server_process(directory) == process
    assert server_process(directory) is None


def test_a_user_that_just_ends_counts_as_gone(directory: Path, start_user: Any) -> None:
    user = start_user(directory)
    url_from(user)
    user.communicate("exit\n", timeout=WAIT)
    assert user.returncode == 0
    assert server_process(directory) is None


def test_the_starter_may_leave_before_the_others(directory: Path, start_user: Any) -> None:
    starter = start_user(directory)
    url_from(starter)
    with EmbeddedServer(directory) as server:
        starter.communicate("\n", timeout=WAIT)
        assert query(server.url, "SELECT 1") == 1
    assert server_process(directory) is None


def test_interrupting_the_terminal_does_not_reach_the_server(directory: Path) -> None:
    with EmbeddedServer(directory):
        process = server_process(directory)
        assert process is not None
        assert os.getsid(process) != os.getsid(0)


def test_after_a_crash_the_data_are_there_under_the_same_url(directory: Path) -> None:
    with EmbeddedServer(directory) as server:
        url = server.url
        query(url, "CREATE TABLE kept AS SELECT 42 AS value", "SELECT 1")
        server.crash()
        with pytest.raises(OSError, match=r"."):
            query(url, "SELECT 1")
        assert server.start() == url
        assert query(url, "SELECT value FROM kept") == 42


def test_leaving_a_server_that_was_killed_leaves_no_sockets(directory: Path) -> None:
    server = EmbeddedServer(directory)
    server.start()
    server.crash()
    assert sockets_of(directory).exists()
    server.stop()
    assert not sockets_of(directory).exists()


def test_restart_and_interrupt_keep_url_and_data(directory: Path) -> None:
    with EmbeddedServer(directory) as server:
        url = server.url
        query(url, "CREATE TABLE kept AS SELECT 42 AS value", "SELECT 1")
        process = server_process(directory)
        assert server.restart() == url
        assert server_process(directory) not in (None, process)
        server.interrupt(mode="immediate")
        assert server_process(directory) is None
        assert server.start() == url
        assert query(url, "SELECT value FROM kept") == 42


def test_a_start_waits_for_orphans_of_the_killed_server(directory: Path) -> None:
    """A session in the middle of a computation does not notice that its server died."""
    busy_seconds = 1.5
    computation = (
        f"DO $$ DECLARE e timestamptz := clock_timestamp() + interval '{busy_seconds} s'; "
        "BEGIN WHILE clock_timestamp() < e LOOP END LOOP; END $$"
    )
    with EmbeddedServer(directory) as server:
        url = server.url

        async def compute() -> None:
            connection = await asyncpg.connect(url)
            started.set()
            try:
                await connection.execute(computation)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pass
            finally:
                connection.terminate()

        started = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(compute()))
        thread.start()
        assert started.wait(WAIT)
        until = time.monotonic() + WAIT
        while query(url, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO %'") == 0:
            assert time.monotonic() < until
        server.crash()
        assert server.start() == url
        assert query(url, "SELECT 1") == 1
        thread.join(WAIT)
        assert "is still in use" in (directory / "server.log").read_text()


def test_the_process_id_of_a_dead_server_may_be_somebody_elses_now(directory: Path) -> None:
    with EmbeddedServer(directory) as server:
        server.crash()
        # Of the same user: the server itself would take this one for its former self and refuse to start.
        options = identity_for(directory / "pgdata").subprocess_options()
        other = subprocess.Popen([shutil.which("sleep") or "sleep", str(WAIT)], cwd="/", **options)
        try:
            stale = directory / "pgdata" / "postmaster.pid"
            lines = stale.read_text().splitlines()
            stale.write_text("\n".join([str(other.pid), *lines[1:]]))
            server.start()
            assert query(server.url, "SELECT 1") == 1
            assert other.poll() is None
        finally:
            other.kill()
            other.wait(WAIT)


def test_a_start_that_fails_tells_the_log_and_holds_nothing(directory: Path) -> None:
    server = EmbeddedServer(directory)
    server.start()
    server.stop()
    settings = directory / "pgdata" / "postgresql.conf"
    good = settings.read_bytes()
    settings.write_bytes(good + b"\nno_such_setting_at_all = 1\n")
    with pytest.raises(StoreUnavailable) as caught:
        server.start()
    assert "no_such_setting_at_all" in caught.value.log_tail
    assert "no_such_setting_at_all" not in str(caught.value)
    assert not sockets_of(directory).exists()
    settings.write_bytes(good)
    server.start()
    assert query(server.url, "SELECT 1") == 1
    server.stop()
    assert server_process(directory) is None


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        EmbeddedServer(tmp_path / "file" / "data").start()


def test_a_killed_first_start_leaves_nothing_that_looks_finished(directory: Path, start_user: Any) -> None:
    user = start_user(directory)
    until = time.monotonic() + WAIT
    while not list(directory.glob("pgdata.new-*/PG_VERSION")):
        assert time.monotonic() < until
    user.send_signal(signal.SIGKILL)
    user.wait(WAIT)
    assert not (directory / "pgdata").exists()
    with EmbeddedServer(directory) as server:
        assert query(server.url, "SELECT 1") == 1


@root_only
def test_root_uses_a_directory_that_the_servers_user_cannot_enter_and_loosens_nothing(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    before = {path: path.stat().st_mode for path in (closed, *closed.parents)}
    with EmbeddedServer(closed / "data") as server:
        assert query(server.url, "SELECT 1") == 1
        process = server_process(closed / "data")
        assert process is not None
        assert Path(f"/proc/{process}").stat().st_uid != 0
        assert not identity_for(closed / "data" / "pgdata").can_enter(closed)
        query(server.url, "CREATE TABLE kept AS SELECT 42 AS value", "SELECT pg_reload_conf()")
        server.restart()
        assert query(server.url, "SELECT value FROM kept") == 42
    assert before == {path: path.stat().st_mode for path in (closed, *closed.parents)}


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can enter; pytest's own are closed."""
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="embedded-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def closed_installation(tmp_path: Path) -> Installation:
    found = find_installation(16)
    assert found is not None
    tmp_path.chmod(0o700)
    package = found.bin_directory.parents[1]
    copy = shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("pginstall18", "include"))
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, tmp_path / libraries.name)
    return Installation(version=16, bin_directory=copy / found.bin_directory.relative_to(package))


@root_only
def test_programs_out_of_reach_are_copied_once(
    open_directory: Path, closed_installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_identity, "_COPY_PARENTS", (str(open_directory),))
    identity = identity_for(open_directory / "pgdata")
    copy = reachable_installation(closed_installation, identity)
    assert copy.postgres.is_relative_to(open_directory)
    made_at = copy.postgres.stat().st_ctime_ns
    assert reachable_installation(closed_installation, identity) == copy
    assert copy.postgres.stat().st_ctime_ns == made_at
    process = ServerProcess(open_directory / "server")
    try:
        running = process.start(closed_installation, timeout=WAIT)
        assert query(socket_url(running, "postgres"), "SHOW server_version").startswith("16.")
    finally:
        process.stop(mode="immediate")


@root_only
def test_a_copy_that_somebody_else_could_have_put_there_is_not_run(
    open_directory: Path, closed_installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_identity, "_COPY_PARENTS", (str(open_directory),))
    identity = identity_for(open_directory / "pgdata")
    planted = open_directory / "cascade_state"
    planted.mkdir()
    os.chown(planted, identity.user_id, identity.group_id)
    with pytest.raises(PermissionError):
        reachable_installation(closed_installation, identity)


@root_only
def test_a_data_directory_belongs_to_the_user_who_made_it(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    (tmp_path / "pgdata").mkdir()
    os.chown(tmp_path / "pgdata", nobody.pw_uid, nobody.pw_gid)
    assert identity_for(tmp_path / "pgdata").user_id == nobody.pw_uid


@root_only
def test_an_ordinary_user_runs_it_as_well(open_directory: Path, start_user: Any) -> None:
    nobody = pwd.getpwnam("nobody")
    identity = ServerIdentity(user_id=nobody.pw_uid, group_id=nobody.pw_gid, changes_user=True)
    found = find_installation(18)
    if found is None or not identity.can_run(found.postgres):
        pytest.skip("the wheel lies where user nobody cannot reach it")
    identity.own(open_directory)
    user = start_user(open_directory / "data", step_down=f"{nobody.pw_gid}:{nobody.pw_uid}")
    assert query(url_from(user), "SELECT 1") == 1  # root may connect to an ordinary user's server
    process = server_process(open_directory / "data")
    assert Path(f"/proc/{process}").stat().st_uid == nobody.pw_uid
    user.communicate("\n", timeout=WAIT)
    assert user.returncode == 0
    assert server_process(open_directory / "data") is None


def test_a_forked_child_neither_keeps_nor_releases_its_parents_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = """
import os, sys
from pathlib import Path
from cascade_state.postgres.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire(shared=True)
child = os.fork()
if child == 0:
    assert not lock.held
    print("child", flush=True)
sys.stdin.readline()
os._exit(0)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "child\n"
        other = FileLock(path)
        assert not other.acquire(timeout=0)
        parent.send_signal(signal.SIGKILL)
        parent.wait(WAIT)
        assert other.acquire(timeout=WAIT)  # the child still lives
        other.release()
    finally:
        parent.kill()
        parent.communicate(timeout=WAIT)  # ends the child through its standard input


def test_a_lock_file_that_was_removed_is_not_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    really_open = FileLock._open
    removed: list[Path] = []

    def open_and_lose(lock: FileLock, create: bool) -> int | None:
        descriptor = really_open(lock, create)
        if not removed:  # the last holder removes the file between our opening and locking it
            lock.path.unlink()
            removed.append(lock.path)
        return descriptor

    monkeypatch.setattr(FileLock, "_open", open_and_lose)
    assert first.acquire()
    assert removed
    assert not second.acquire(timeout=0)
    first.release()
    assert second.acquire(timeout=0)
    second.release()


def test_a_lock_waits_for_its_holder(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire(timeout=0.02)
    waiting = threading.Thread(target=lambda: second.acquire(timeout=WAIT))
    waiting.start()
    first.release()
    waiting.join(WAIT)
    assert second.held
    second.release()


def test_shared_holders_keep_an_exclusive_one_out(tmp_path: Path) -> None:
    first, second, third = (FileLock(tmp_path / "lock") for _ in range(3))
    assert first.acquire(shared=True)
    assert second.acquire(shared=True, timeout=0)
    assert not third.acquire(timeout=0)
    first.release()
    assert not third.acquire(timeout=0)
    second.release()
    assert third.acquire(timeout=0)
    third.release()
    assert not FileLock(tmp_path / "missing").acquire(timeout=0, create=False)
