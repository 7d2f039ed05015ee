"""Servers that cannot be used: a typed error that says what to do, and nothing is left behind."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from cascade_state.errors import (
    DatabaseAlreadyExists,
    DatabaseInUse,
    DatabaseNotFound,
    PermissionDenied,
    ServerUnavailable,
    TestDatabaseError,
)
from cascade_state.postgres.server_process import ServerFailed
from cascade_state.testing import PostgresServer, run_directory
from cascade_state.testing import server as server_module
from cascade_state.testing.connections import translated

pytestmark = pytest.mark.postgres

WAIT = 30.0


def leftovers() -> set[Path]:
    """The directories of test servers and of their sockets."""
    places = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    return {path for place in places for path in place.glob("cascade_state-*")}


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


@pytest.fixture
def old_server() -> Iterator[str]:
    """Speaks the start-up of the protocol like PostgreSQL 12.22, and nothing more; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(WAIT)

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.settimeout(WAIT)
            while True:
                (length,) = struct.unpack("!i", client.recv(4))
                (code,) = struct.unpack("!i", client.recv(length - 4)[:4])
                if code != 80877103:  # that one asks for TLS
                    break
                client.sendall(b"N")
            settings = {"server_version": "12.22 (Old 12.22-1)", "client_encoding": "UTF8", "TimeZone": "UTC"}
            for name, text in settings.items():
                client.sendall(message(b"S", f"{name}\0{text}\0".encode()))
            client.sendall(message(b"R", struct.pack("!i", 0)))
            client.sendall(message(b"K", struct.pack("!ii", 1, 1)) + message(b"Z", b"I"))
            client.recv(5)  # the farewell

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"postgresql://somebody@127.0.0.1:{listener.getsockname()[1]}/postgres?sslmode=prefer"
    thread.join(WAIT)
    listener.close()


def test_a_server_that_is_too_old_is_said(old_server: str) -> None:
    with pytest.raises(ServerUnavailable, match=r"PostgreSQL 12\.22 .*too old; 15 or newer") as caught:
        PostgresServer.from_url(old_server).start()
    assert "name another server" in str(caught.value)


def test_nobody_answers(free_port: int) -> None:
    url = f"postgresql://me:secret@127.0.0.1:{free_port}/postgres?password=other"
    with pytest.raises(ServerUnavailable) as caught:
        PostgresServer.from_url(url).start()
    assert f"nobody answers at postgresql://me:***@127.0.0.1:{free_port}/postgres?password=***" in str(caught.value)


def test_a_server_that_was_not_started_says_so() -> None:
    server = PostgresServer.from_url("postgresql://me:secret@host/postgres")
    with pytest.raises(ServerUnavailable, match="not started"):
        _ = server.version
    assert repr(server) == "<PostgresServer postgresql://me:***@host/postgres>"


def test_a_port_that_is_taken_is_said_and_nothing_is_left() -> None:
    before = leftovers()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = PostgresServer.embedded(loopback_port=taken.getsockname()[1])
        with pytest.raises(ServerUnavailable, match="its port is taken: choose another"):
            server.start()
        directory = server.directory
    assert directory is not None
    assert not directory.exists()
    assert not {path for path in leftovers() - before if directory.name in path.name}


def test_a_disk_that_is_too_small_is_said_and_nothing_is_left() -> None:
    server = PostgresServer.embedded()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, before[1]))
    try:
        with pytest.raises(ServerUnavailable, match="initdb failed"):
            server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert server.directory is not None
    assert not server.directory.exists()


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ('could not write to file "pg_wal": No space left on device', "make room, or set TMPDIR"),
        ("could not resize shared memory segment", "the tmpfs for shared memory is too small"),
        ("all is well", ""),
    ],
)
def test_what_the_log_says_becomes_advice(log: str, advice: str) -> None:
    assert advice in server_module._advised(ServerFailed("it ended", log))


def test_without_tmpfs_a_server_lives_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_directory, "_TMPFS", tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_directory.new_directory().parent == tmp_path
    assert run_directory.choose_directory("18", "run").parent == tmp_path


def test_a_run_stays_where_it_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    monkeypatch.setattr(run_directory, "_TMPFS", memory)
    monkeypatch.setattr(run_directory, "_TMPFS_ROOM", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    first = run_directory.choose_directory("18", "run")
    assert first.parent == memory
    first.mkdir()
    monkeypatch.setattr(run_directory, "_TMPFS_ROOM", 2**80)  # the databases of the run have filled it
    assert run_directory.choose_directory("18", "run") == first
    assert run_directory.choose_directory("18", "another run").parent == disk


@pytest.mark.parametrize(
    ("sqlstate", "error", "words"),
    [
        ("42P04", DatabaseAlreadyExists, "already exists"),
        ("3D000", DatabaseNotFound, "does not exist"),
        ("55006", DatabaseInUse, "in use"),
        ("42501", PermissionDenied, "CREATEDB"),
        ("28000", PermissionDenied, "pg_hba.conf"),
        ("28P01", PermissionDenied, "check role and password"),
        ("53100", ServerUnavailable, "drop databases, or give it more room"),
        ("53200", ServerUnavailable, "fewer processes"),
        ("53300", ServerUnavailable, "max_connections"),
        ("57P03", ServerUnavailable, "boo"),
        ("58030", ServerUnavailable, "boo"),
        ("08006", ServerUnavailable, "boo"),
    ],
)
async def test_errors_are_told_by_sqlstate(
    server: PostgresServer, sqlstate: str, error: type[TestDatabaseError], words: str
) -> None:
    connection = await asyncpg.connect(server.url)
    try:
        with pytest.raises(error, match=words) as caught, translated("some"):
            await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'boo' USING ERRCODE = '{sqlstate}'; END $$")
        assert isinstance(caught.value.__cause__, asyncpg.PostgresError)
        with pytest.raises(asyncpg.QueryCanceledError), translated("some"):
            await connection.execute("DO $$ BEGIN RAISE EXCEPTION 'boo' USING ERRCODE = '57014'; END $$")
    finally:
        await connection.close()


async def test_a_template_that_vanishes_is_named(server: PostgresServer) -> None:
    async def setup(url: str) -> None: ...

    await server.ensure_template_exists("vanishing", setup)
    await server.drop_database("vanishing")
    with pytest.raises(DatabaseNotFound) as caught:
        await server.create_database_from_template("copy_of_nothing", "vanishing")
    assert caught.value.database == "vanishing"
    assert not await server.database_exists("copy_of_nothing")


async def test_a_role_without_the_right_is_told_which(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute("CREATE ROLE powerless LOGIN")
        url = server.url.replace("postgres@", "powerless@", 1)
        guest = await asyncio.to_thread(PostgresServer.from_url(url).start)
        with pytest.raises(PermissionDenied, match="the role needs CREATEDB"):
            await guest.create_database("forbidden")
    finally:
        await connection.execute("DROP ROLE powerless")
        await connection.close()
