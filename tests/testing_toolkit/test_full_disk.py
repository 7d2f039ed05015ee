"""A tmpfs that is really full: an error that says what to do, nothing half-made; and on it goes when there is room."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from cascade_state.errors import ServerUnavailable
from cascade_state.testing import DatabasePool, PostgresServer, run_directory
from cascade_state.testing.pool import database_pool, keeper

pytestmark = pytest.mark.postgres

WAIT = timedelta(seconds=30)
MEBIBYTE = 1024 * 1024
ADVICE = "is full: drop databases, or give it more room"

MakeDisk = Callable[[int], Path]


@pytest.fixture
def make_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeDisk]:
    """Mounts a tmpfs of so many MiB, where throw-away servers will be from then on."""
    mounted = []

    def make(size: int) -> Path:
        if shutil.which("mount") is None:
            pytest.skip("SKIP-FULL-DISK: there is no mount program")
        disk = tmp_path / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=755", "tmpfs", str(disk)]
        answer = subprocess.run(command, check=False, capture_output=True, text=True)
        if answer.returncode != 0:
            pytest.skip(f"SKIP-FULL-DISK: a small tmpfs cannot be mounted here: {answer.stderr.strip()}")
        mounted.append(disk)
        monkeypatch.setattr(run_directory, "_TMPFS", disk)
        monkeypatch.setattr(run_directory, "_TMPFS_ROOM", 0)
        return disk

    yield make
    for disk in mounted:
        subprocess.run(["umount", str(disk)], check=True)


def fill_up(disk: Path, *, leaving: int) -> Path:
    """Writes a file that leaves so many bytes free; the server may take some of them meanwhile."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while (rest := shutil.disk_usage(disk).free - leaving) > 0:
            file.write(bytes(min(rest, MEBIBYTE)))
    return filler


def files_of(server: PostgresServer) -> set[str]:
    """The directories in which the server keeps its databases."""
    assert server.directory is not None
    return {path.name for path in (server.directory / "pgdata" / "base").iterdir()}


async def names_of(server: PostgresServer) -> set[str]:
    connection = await asyncpg.connect(server.url)
    try:
        return {row[0] for row in await connection.fetch("SELECT datname::text FROM pg_database")}
    finally:
        await connection.close()


def test_a_server_for_which_there_is_no_room_says_so_and_leaves_nothing(make_disk: MakeDisk) -> None:
    disk = make_disk(12)
    server = PostgresServer.embedded()
    assert server.directory is not None
    assert server.directory.parent == disk
    with pytest.raises(ServerUnavailable, match="make room, or set TMPDIR to a larger place"):
        server.start()
    assert list(disk.iterdir()) == []


async def test_a_copy_for_which_there_is_no_room_says_so_and_the_pool_goes_on_when_there_is(
    make_disk: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_pool, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(keeper, "PATIENCE_SECONDS", 0.1)

    async def setup(url: str) -> None: ...

    disk = make_disk(120)
    async with PostgresServer.embedded() as server:
        await server.ensure_template_exists("template", setup)
        async with DatabasePool(server, "template", initial_size=0, max_size=3) as pool:
            async with pool.lease(timeout=WAIT), AsyncExitStack() as others:
                await until_nothing_is_made(pool)
                for _ in range((await pool.statistics()).ready):
                    await others.enter_async_context(pool.lease(timeout=WAIT))
                filler = fill_up(disk, leaving=3 * MEBIBYTE)
                names, files = await names_of(server), files_of(server)
                with pytest.raises(ServerUnavailable, match=ADVICE):
                    await server.create_database_from_template("copy", "template")
                with pytest.raises(ServerUnavailable, match=ADVICE):
                    async with pool.lease(timeout=WAIT):
                        raise AssertionError("there was room")
                await until_nothing_is_made(pool)
                assert await names_of(server) == names
                assert files_of(server) == files
                filler.unlink()
                async with pool.lease(timeout=WAIT) as another:
                    assert another.name not in names
    assert list(disk.iterdir()) == []


async def until_nothing_is_made(pool: DatabasePool) -> None:
    """Waits for copies that the pool began for somebody who was served meanwhile."""
    async with pool._keeper.pause():
        pass
