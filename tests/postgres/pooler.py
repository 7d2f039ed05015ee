"""PgBouncer in transaction mode, in front of a test's database."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

__all__ = ["pgbouncer"]

_PATIENCE_SECONDS = 20
_SERVER_CONNECTIONS = 4  # fewer than clients, so that statements of one client come to several server connections
_NOBODY = 65534
_SETTINGS = (
    "timezone, default_transaction_isolation, idle_session_timeout, statement_timeout, lock_timeout, "
    "tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count"
)


@contextmanager
def pgbouncer(url: str, *, ignores_settings: bool = False) -> Iterator[str]:
    """Starts PgBouncer for the database of `url`; gives the URL that leads through it.

    Args:
        ignores_settings: Whether it takes settings of a connection without a word, instead of refusing them.
    """
    binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if binary is None:
        pytest.skip("SKIP-PGBOUNCER: there is no pgbouncer binary")
    target = make_url(url)
    host = str(target.host or target.query["host"])
    port = str(target.port or target.query.get("port", 5432))
    user = target.username or "postgres"
    with tempfile.TemporaryDirectory(prefix="pooler-") as name:
        directory = Path(name)
        listening = _free_port()
        (directory / "users").write_text(f'"{user}" "{target.password or ""}"\n')
        (directory / "pgbouncer.ini").write_text(
            f"""[databases]
{target.database} = host={host} port={port} dbname={target.database} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listening}
unix_socket_dir =
auth_type = trust
auth_file = {directory / "users"}
pool_mode = transaction
default_pool_size = {_SERVER_CONNECTIONS}
max_client_conn = 200
ignore_startup_parameters = {_SETTINGS if ignores_settings else ""}
"""
        )
        owner = _owner(host)
        for path in (directory, *directory.iterdir()):
            path.chmod(0o755)
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(
                [binary, str(directory / "pgbouncer.ini")], user=owner, stdout=subprocess.DEVNULL, stderr=log
            )
        try:
            _wait_for(process, listening, directory / "log")
            yield f"postgresql://{user}@127.0.0.1:{listening}/{target.database}"
        finally:
            process.terminate()
            process.wait(_PATIENCE_SECONDS)


def _owner(host: str) -> int | None:
    """Whom PgBouncer runs as: it refuses to be root, and must reach the server's socket."""
    if os.geteuid() != 0:
        return None
    return os.stat(host).st_uid if host.startswith("/") else _NOBODY


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"pgbouncer ended: {log.read_text()}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("pgbouncer does not listen")
