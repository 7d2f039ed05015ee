"""`IntegresqlClient` and its blocking twin: typed errors, set-up, connections, odd servers."""

from __future__ import annotations

import asyncio
import copy
import http.server
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from cascade_state.errors import (
    DatabaseDiscarded,
    DatabaseInUse,
    InvalidArgument,
    PermissionDenied,
    ServerUnavailable,
    TemplateNotFound,
    TestDatabaseError,
)
from cascade_state.testing import DatabaseConfig, IntegresqlClient, IntegresqlDatabase, PostgresServer
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.integresql.blocking_client import BlockingIntegresqlClient
from tests.integresql.conftest import Serving
from tests.integresql.facade import WAIT, Facade, databases, execute, fetch, filled

pytestmark = pytest.mark.postgres

NAMES = "SELECT name FROM pilot ORDER BY name"


async def test_the_whole_round(server: PostgresServer, serving: Serving, prefix: str) -> None:
    async with serving(token="secret") as client:
        config = await client.initialize_template("x")
        assert isinstance(config, DatabaseConfig)
        assert config.database == f"{prefix}_template_x"
        await filled(config.url)
        await client.finalize_template("x")
        assert await client.initialize_template("x") is None
        database = await client.get_test_database("x")
        assert isinstance(database, IntegresqlDatabase)
        assert (database.id, database.template_hash, database.name) == (0, "x", f"{prefix}_test_x_000")
        assert database.url == database.config == server.url_for(database.name)
        assert database.async_url == database.url.replace("postgresql:", "postgresql+asyncpg:")
        assert await fetch(database.url, NAMES) == ["Mario"]
        await client.unlock("x", database.id)
        await client.recreate("x", (await client.get_test_database("x")).id)
        await client.discard_template("x")
        await client.reset_all()


async def test_calls_stand_alone_outside_of_the_context(serving: Serving) -> None:
    async with serving() as inner:
        client = IntegresqlClient(f"{inner._url}/")
        assert await client.with_template("x", filled)
        assert (await client.get_test_database("x")).id == 0
        await client.__aexit__()


@pytest.mark.parametrize("tail", ["", "/", "/api", "/api/", "/api/v1", "/api/v1/"])
async def test_the_base_may_be_written_in_several_ways(serving: Serving, tail: str) -> None:
    async with serving() as inner:
        client = IntegresqlClient(inner._url.removesuffix("/api/v1") + tail)
        with pytest.raises(TemplateNotFound):
            await client.finalize_template("unknown")


async def test_the_set_up_may_be_plain_and_runs_in_a_thread(serving: Serving) -> None:
    threads: list[threading.Thread] = []

    def plain(url: str) -> None:
        threads.append(threading.current_thread())
        run_blocking(filled(url))

    async with serving() as client:
        assert await client.with_template("x", plain) is True
        assert await client.with_template("x", plain) is False
        assert await client.with_template("y", lambda url: filled(url)) is True  # a plain function's coroutine
        assert await fetch((await client.get_test_database("y")).url, NAMES) == ["Mario"]
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_of_ten_at_once_one_sets_up(serving: Serving) -> None:
    async with serving() as client:
        outcomes = await asyncio.gather(*(client.with_template("x", filled) for _ in range(10)))
        found = await asyncio.gather(*(client.get_test_database("x") for _ in range(3)))
    assert sum(outcomes) == 1
    assert len({database.id for database in found}) == 3


async def test_a_failed_set_up_that_left_a_connection_keeps_its_error(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    import asyncpg

    connections: list[Any] = []

    async def fails(url: str) -> None:
        connections.append(await asyncpg.connect(url))
        raise RuntimeError("the cause")

    async with serving() as client:
        with pytest.raises(RuntimeError, match="the cause"):
            await client.with_template("x", fails)
        assert "was not discarded" in caplog.text
        await connections[0].close()
        await client.discard_template("x")


async def test_a_cancelled_set_up_leaves_no_template(server: PostgresServer, serving: Serving, prefix: str) -> None:
    begun = asyncio.Event()

    async def endless(url: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with serving() as client:
        task = asyncio.create_task(client.with_template("x", endless))
        await asyncio.wait_for(begun.wait(), WAIT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await databases(server, prefix) == []


@pytest.fixture
def facade(shared_facade: Facade) -> Facade:
    return shared_facade


def test_the_blocking_twin_makes_the_whole_round(facade: Facade) -> None:
    client = IntegresqlClient(facade.url).blocking

    def fill(url: str) -> None:
        run_blocking(filled(url))

    def fails(url: str) -> None:
        raise RuntimeError("half-way")

    with client as same:
        assert same is client
        with pytest.raises(RuntimeError, match="half-way"):
            client.with_template("b", fails)
        with pytest.raises(TemplateNotFound):
            client.finalize_template("b")
        assert client.with_template("b", fill) is True
        assert client.with_template("b", fill) is False
        assert client.initialize_template("b") is None
        first = client.get_test_database("b")
        run_blocking(execute(first.url, "INSERT INTO pilot VALUES ('Luigi')"))
        client.recreate("b", first.id)
        second = client.get_test_database("b")
        assert run_blocking(fetch(second.url, NAMES)) == ["Mario"]
        client.unlock("b", second.id)
        client.discard_template("b")
        with pytest.raises(TemplateNotFound):
            client.get_test_database("b")
    client.__exit__()
    assert client.initialize_template("b") is not None  # after the context each call stands alone
    client.discard_template("b")


async def test_the_blocking_twin_works_inside_a_running_loop(facade: Facade) -> None:
    with pytest.raises(TemplateNotFound):
        IntegresqlClient(facade.url).blocking.finalize_template("unknown")


def test_a_failed_set_up_of_the_blocking_twin_keeps_its_error(facade: Facade, caplog: pytest.LogCaptureFixture) -> None:
    client = IntegresqlClient(facade.url).blocking

    def fails(url: str) -> None:
        client.discard_template("c")  # so that discarding it will fail
        raise RuntimeError("the cause")

    with pytest.raises(RuntimeError, match="the cause"):
        client.with_template("c", fails)
    assert "was not discarded" in caplog.text


def test_a_hash_that_the_server_refuses_is_an_invalid_argument(facade: Facade) -> None:
    client = IntegresqlClient(facade.url).blocking
    for bad in ("", "x" * 1025, "a\0b"):
        with pytest.raises(InvalidArgument):
            client.initialize_template(bad)


# ----- Servers that are not ours

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def answering(status: int, body: bytes = b"", seconds: float = 0) -> Iterator[str]:
    """Serves one answer to everything; yields the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            time.sleep(seconds)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()


CALLS: list[Callable[[BlockingIntegresqlClient], object]] = [
    lambda client: client.initialize_template("x"),
    lambda client: client.finalize_template("x"),
    lambda client: client.discard_template("x"),
    lambda client: client.get_test_database("x"),
    lambda client: client.unlock("x", 1),
    lambda client: client.recreate("x", 1),
    lambda client: client.reset_all(),
]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidArgument),
        (401, PermissionDenied),
        (403, PermissionDenied),
        (404, TemplateNotFound),
        (410, DatabaseDiscarded),
        (500, TestDatabaseError),
        (502, ServerUnavailable),
        (503, ServerUnavailable),
        (504, ServerUnavailable),
    ],
)
def test_each_status_is_an_error_of_its_own(status: int, error: type[Exception]) -> None:
    with answering(status, b'{"message": "said so"}') as url, IntegresqlClient(url).blocking as client:
        for call in CALLS:
            with pytest.raises(error) as caught:
                call(client)
            assert type(caught.value) is error


@pytest.mark.parametrize("body", [b'{"message": "said so"}', b"said\n so", b"[]", b""])
def test_an_error_needs_no_message(body: bytes) -> None:
    with answering(500, body) as url, pytest.raises(TestDatabaseError) as caught:
        IntegresqlClient(url).blocking.reset_all()
    assert str(caught.value).endswith("said so" if body.startswith((b"{", b"s")) else "[]" if body else "status 500")


def test_423_is_an_answer_when_initializing_and_an_error_elsewhere() -> None:
    with answering(423, b'{"message": "template is already initialized"}') as url:
        client = IntegresqlClient(url).blocking
        assert client.initialize_template("x") is None
        for call in CALLS[1:]:
            with pytest.raises(DatabaseInUse):
                call(client)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"database": 7}', b"<html>"])
def test_an_answer_without_sense_is_said_to_have_none(body: bytes) -> None:
    with answering(200, body) as url:
        client = IntegresqlClient(url).blocking
        for call in (CALLS[0], CALLS[3]):
            with pytest.raises(TestDatabaseError, match="no sense"):
                call(client)


async def test_silence_is_unavailable() -> None:
    with answering(200, b"{}", seconds=1.0) as url:
        client = IntegresqlClient(url, timeout=timedelta(milliseconds=100))
        with pytest.raises(ServerUnavailable, match="in time"):
            await client.get_test_database("x")
        with pytest.raises(ServerUnavailable, match="in time"):
            client.blocking.get_test_database("x")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://:x", "nonsense", "http://[::1"])
async def test_nobody_there_is_unavailable(url: str) -> None:
    client = IntegresqlClient(url)
    with pytest.raises(ServerUnavailable):
        await client.reset_all()
    with pytest.raises(ServerUnavailable):
        client.blocking.reset_all()


# ----- The address


def config(**parts: Any) -> DatabaseConfig:
    known: dict[str, Any] = {"host": "db", "port": 5432, "username": "me", "password": "p@ss/word", "database": "x y"}
    return DatabaseConfig(**(known | parts))


def test_an_address_is_a_url_that_knows_its_parts() -> None:
    address = config(additional_params={"sslmode": "disable"})
    assert address == "postgresql://me:p%40ss%2Fword@db:5432/x%20y?sslmode=disable"
    assert type(address.url) is str
    assert address.async_url == "postgresql+asyncpg://me:p%40ss%2Fword@db:5432/x%20y?sslmode=disable"
    assert DatabaseConfig.from_json(address.to_json()) == address
    assert address.changed(database="z").database == "z"


def test_an_address_hides_its_password_from_people() -> None:
    assert "p@ss" not in repr(config())
    assert "***" in repr(config())
    assert repr(config(password="")) == "DatabaseConfig('postgresql://me@db:5432/x y')"


def test_an_address_may_be_a_directory_or_of_version_6() -> None:
    assert config(host="/run/pg", password="") == "postgresql://me@/x%20y?host=/run/pg&port=5432"
    assert config(host="::1", password="") == "postgresql://me@[::1]:5432/x%20y"
    assert config(username="", password="") == "postgresql://db:5432/x%20y"


def test_an_address_pickles_and_copies_with_its_parts() -> None:
    address = config(additional_params={"a": "b"})
    for again in (pickle.loads(pickle.dumps(address)), copy.copy(address), copy.deepcopy(address)):  # noqa: S301
        assert type(again) is DatabaseConfig
        assert again == address
        assert again.password == "p@ss/word"
        assert again.additional_params == {"a": "b"}
