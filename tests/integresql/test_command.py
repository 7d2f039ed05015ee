"""`cascade-state testdb serve`: options, variables, signals, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from typer.testing import CliRunner

from cascade_state.cli.app import app
from cascade_state.errors import ServerUnavailable
from cascade_state.testing import IntegresqlClient, PostgresServer
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.integresql import serving
from cascade_state.testing.integresql.settings import postgres_of
from tests.integresql.facade import ROOT, WAIT, databases, execute, facade, facade_process, fetch, filled

pytestmark = pytest.mark.postgres


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    """Running the command in this process sets a level."""
    logger = logging.getLogger("cascade_state")
    before = logger.level
    yield
    logger.setLevel(before)


def test_a_taken_port_is_said_to_be_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["testdb", "serve", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1
    assert "in use" in result.stderr
    assert "choose another with --port" in result.stderr


async def test_an_address_of_another_machine_is_refused(server: PostgresServer, prefix: str) -> None:
    with pytest.raises(ServerUnavailable, match=r"cannot listen on 192\.0\.2\.1"):
        async with facade(server, prefix, host="192.0.2.1"):
            pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--postgres-url", "postgresql://h", "--embedded"), "not both"),
        (("--directory", "x"), "goes with --embedded"),
        (("--reclaim-after", "soon"), "with one of the units"),
        (("--postgres-url", "postgresql://a,b/"), "several hosts"),
        (("--port", "x"), "--port"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["testdb", "serve", *arguments])
    assert result.exit_code == 2
    assert said in re.sub(r"[│\s]+", " ", result.output)


@pytest.mark.parametrize(
    ("missing", "code", "said"),
    [
        ("uvicorn", "import cascade_state.cli as c; c.main()", "testdb serve needs uvicorn"),
        ("httpx", "from cascade_state.testing import IntegresqlClient", "IntegresqlClient needs httpx"),
    ],
)
def test_without_its_extra_it_says_what_to_install(tmp_path: Path, missing: str, code: str, said: str) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('no {missing}', name='{missing}')")
    done = subprocess.run(
        [sys.executable, "-c", code, "testdb", "serve"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode != 0
    assert f"{said}: install cascade-state[integresql]" in done.stderr


@pytest.fixture
def own_directory() -> Iterator[Path]:
    """A directory for a server, on tmpfs where there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as parent:
        yield Path(parent) / "kept"


async def test_an_embedded_server_serves_over_tcp_goes_with_the_command_and_may_keep_its_databases(
    own_directory: Path,
) -> None:
    arguments = ("--embedded", "--directory", str(own_directory), "--initial-pool-size", "1")
    with facade_process(*arguments) as process:
        client = IntegresqlClient(process.url)
        await client.with_template("x", filled)
        database = await client.get_test_database("x")
        assert database.config.host == "127.0.0.1"
        assert len(database.config.password) >= 16
        assert database.name == "integresql_test_x_000"
        assert await fetch(database.url, "SELECT name FROM pilot") == ["Mario"]
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(database.config.changed(password="wrong"))
        (process_id,) = await fetch(database.url, "SELECT split_part(pg_read_file('postmaster.pid'), chr(10), 1)")
        code, log = await asyncio.to_thread(process.stop, signal.SIGINT)
        assert code == 0, log
        assert database.config.password not in log
        with pytest.raises(ProcessLookupError):
            os.kill(int(process_id), 0)
        process.start()
        client = IntegresqlClient(process.url)
        assert await client.initialize_template("x") is None
        again = await client.get_test_database("x")
        assert again.name != database.name
        assert await fetch(again.url, "SELECT name FROM pilot") == ["Mario"]
        assert (await asyncio.to_thread(process.stop))[0] == 0


def test_the_variables_say_where_postgresql_is(server: PostgresServer, prefix: str) -> None:
    where = postgres_of(server.url, {})
    variables = {
        "PGHOST": "nowhere.invalid",
        "INTEGRESQL_PGHOST": where.host,
        "PGPORT": str(where.port),
        "USER": where.username,
        "PGPASSWORD": where.password,
        "INTEGRESQL_DB_PREFIX": prefix,
        "INTEGRESQL_ADDRESS": "localhost",
        "INTEGRESQL_LOGGER_LOG_REQUEST_BODY": "true",
        "INTEGRESQL_LOGGER_LOG_REQUEST_HEADER": "true",
        "INTEGRESQL_LOGGER_LOG_REQUEST_QUERY": "true",
        "INTEGRESQL_LOGGER_LOG_RESPONSE_BODY": "true",
        "INTEGRESQL_LOGGER_LOG_RESPONSE_HEADER": "true",
        "INTEGRESQL_TEST_PGPASSWORD": "hidden",
    }
    with facade_process("--reclaim-after", "1.5", "--unclaimed-after", "500ms", **variables) as process:
        headers = {"Authorization": "Bearer hidden", "X-Request-Id": "mine"}
        body = json.dumps({"hash": "x", "odd": "\n\x1b[31m"})
        answer = httpx.post(f"{process.url}/api/v1/templates/?a=b", content=body, headers=headers, trust_env=False)
        assert answer.status_code == 200, answer.text
        assert answer.json()["database"]["config"] == where.to_json() | {"database": f"{prefix}_template_x"}
        assert run_blocking(databases(server, prefix)) == [f"{prefix}_template_x"]
        _, log = process.stop()
    (line,) = [line for line in log.splitlines() if "method=POST" in line]
    assert "path=/api/v1/templates/ status=200 " in line
    assert "request_id=mine" in line
    assert 'query="a=b"' in line
    assert '"authorization": "***"' in line
    assert f"{prefix}_template_x" in line
    assert "hidden" not in log
    assert "\x1b" not in log


async def test_everybody_may_be_let_in_but_not_without_a_warning(
    server: PostgresServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with facade(server, prefix, host="0.0.0.0", token="secret"):  # noqa: S104 - what this is about
        assert "set a token" not in caplog.text
    async with facade(server, prefix, host="0.0.0.0"):  # noqa: S104
        assert "set a token" in caplog.text


def test_no_part_of_an_answer_is_held_back() -> None:
    """Nagle's algorithm is switched off by asyncio for sockets that say that they are TCP, and for no others."""
    with serving._listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP


async def test_a_version_6_address_is_written_in_brackets(server: PostgresServer, prefix: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with facade(server, prefix, host="::1") as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        assert url.startswith("http://[::1]:")
        assert (await http.get("/-/healthy")).status_code == 200


async def test_a_role_that_may_not_make_databases_is_said_not_to_be_ready(server: PostgresServer, prefix: str) -> None:
    await execute(server.url, f"CREATE ROLE {prefix}_weak LOGIN")
    try:
        async with (
            facade(server, prefix, postgres_user=f"{prefix}_weak") as url,
            httpx.AsyncClient(base_url=url, trust_env=False) as http,
        ):
            answer = await http.get("/-/ready")
            assert answer.status_code == 503
            assert "may not create databases" in answer.json()["message"]
    finally:
        await execute(server.url, f"DROP ROLE {prefix}_weak")
