"""Garbage collection: by prefix, age and hash; what is in use stays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from cascade_state.errors import InvalidArgument
from cascade_state.testing import DatabasePool, PostgresServer, hash_directory
from cascade_state.testing.pool.session import BOOKS

WAIT = timedelta(seconds=30)
AGES = timedelta(days=365)

pytestmark = pytest.mark.postgres


@pytest.fixture
async def leftovers(server: PostgresServer, template: str) -> tuple[str, ...]:
    """A template, a copy by hand, an empty database, and a copy in a pool that is closed."""
    await server.create_database_from_template(f"{template}_clone", template)
    await server.create_database(f"{template}_empty")
    async with DatabasePool(server, template, initial_size=0, max_size=1) as pool, pool.lease(timeout=WAIT):
        pass
    return tuple(sorted([template, f"{template}_clone", f"{template}_empty", f"{template}_test_000"]))


async def existing(server: PostgresServer, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([name for name in names if await server.database_exists(name)])


async def test_everything_with_the_prefix_goes(
    server: PostgresServer, template: str, leftovers: tuple[str, ...]
) -> None:
    assert await server.collect_garbage(prefix=template, dry_run=True) == list(leftovers)
    assert await existing(server, leftovers) == leftovers
    assert await server.collect_garbage(prefix=f"{template}_e") == [f"{template}_empty"]
    assert await server.collect_garbage(prefix=template) == [name for name in leftovers if name[-5:] != "empty"]
    assert await existing(server, leftovers) == ()
    assert await server.collect_garbage(prefix=template) == []
    async with contextlib.AsyncExitStack() as scope:  # the books have forgotten the copy, too
        books = await scope.enter_async_context(_connected(server.url_for(BOOKS)))
        assert await books.fetchval("SELECT count(*) FROM slots WHERE template = $1", template) == 0


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_what_the_keeper_of_a_pool_drops_first_counts(
    server: PostgresServer, template: str, leftovers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = PostgresServer.drop_database

    async def dropped_before(self: PostgresServer, name: str, **options: Any) -> None:
        await drop(self, name, **options)
        await drop(self, name, **options)

    monkeypatch.setattr(PostgresServer, "drop_database", dropped_before)
    assert await server.collect_garbage(prefix=f"{template}_test") == [f"{template}_test_000"]


def test_the_blocking_twin_collects(server: PostgresServer, template: str) -> None:
    assert server.blocking.collect_garbage(prefix=template) == [template]


async def test_what_somebody_is_connected_to_stays(
    server: PostgresServer, template: str, leftovers: tuple[str, ...], connect: Any
) -> None:
    async with connect(server.url_for(f"{template}_test_000")), connect(server.url_for(f"{template}_empty")):
        # The template stays, too: one of its copies is in use.
        assert await server.collect_garbage(prefix=template) == [f"{template}_clone"]
    assert len(await server.collect_garbage(prefix=template)) == 3


async def test_what_an_open_pool_needs_stays(server: PostgresServer, template: str) -> None:
    async with DatabasePool(server, template, initial_size=1, max_size=2) as pool:
        async with pool.lease(timeout=WAIT):
            assert await server.collect_garbage(prefix=template) == []
        async with pool.lease(timeout=WAIT):
            pass
        assert await server.collect_garbage(prefix=template) == []
    names = await server.collect_garbage(prefix=template)
    assert template in names
    assert f"{template}_test_000" in names


async def test_what_was_handed_out_without_a_session_stays_for_a_while(
    server: PostgresServer, template: str, connect: Any
) -> None:
    async with DatabasePool(server, template, initial_size=0, max_size=1) as pool:
        given = await pool.hand_out(timeout=WAIT)
    assert await server.collect_garbage(prefix=template) == []
    async with connect(server.url_for(BOOKS)) as books:
        await books.execute(
            "UPDATE slots SET changed_at = changed_at - interval '1 hour' WHERE database = $1", given.name
        )
    assert await server.collect_garbage(prefix=template) == [template, given.name]


async def test_what_a_killed_process_leased_goes(server: PostgresServer, template: str, connect: Any) -> None:
    name = f"{template}_test_000"
    await server.create_database(name)
    async with DatabasePool(server, template, initial_size=0, max_size=1):
        pass  # the books are there
    async with connect(server.url_for(BOOKS)) as books:
        await books.execute("INSERT INTO holders VALUES (4712, 1, 'killed', ARRAY[$1])", template)
        await books.execute(
            "INSERT INTO slots (template, number, database, state, holder) VALUES ($1, 0, $2, 'leased', 4712)",
            template,
            name,
        )
    assert await server.collect_garbage(prefix=template) == [template, name]


async def test_age_is_that_of_the_last_use(
    server: PostgresServer, template: str, leftovers: tuple[str, ...], connect: Any
) -> None:
    assert await server.collect_garbage(prefix=template, older_than=AGES) == []
    comment = '{"tool": "cascade_state", "built_at": "2001-01-01T00:00:00+00:00", "metadata": {}}'
    async with connect(server.url) as connection, connect(server.url_for(BOOKS)) as books:
        await connection.execute(f"COMMENT ON DATABASE \"{template}\" IS '{comment}'")
        # Its pool was used just now.
        assert await server.collect_garbage(prefix=template, older_than=AGES) == []
        await books.execute("UPDATE slots SET changed_at = '2001-02-01' WHERE template = $1", template)
        assert await server.collect_garbage(prefix=template, older_than=AGES) == [template, f"{template}_test_000"]
    everything = await server.collect_garbage(prefix=template, older_than=timedelta(0))
    assert everything == [f"{template}_clone", f"{template}_empty"]  # by the age of their files


async def test_what_is_kept_stays(server: PostgresServer, template: str, leftovers: tuple[str, ...]) -> None:
    collect = server.collect_garbage
    assert await collect(prefix=template, keep=(template,), dry_run=True) == [
        f"{template}_clone",
        f"{template}_empty",
    ]
    assert await collect(prefix=template, keep={f"{template}_empty", f"{template}_clone"}, dry_run=True) == [
        template,
        f"{template}_test_000",
    ]


async def test_templates_of_an_obsolete_hash_go(
    server: PostgresServer, template: str, fill: Any, tmp_path: Any
) -> None:
    (tmp_path / "a.sql").write_text("old")
    old = hash_directory(tmp_path)
    (tmp_path / "a.sql").write_text("new")
    new = hash_directory(tmp_path)
    for digest in (old, new):
        await server.ensure_template_exists(f"{template}_{digest.short}", fill)
    await server.ensure_template_exists(f"{template}_x", fill, metadata={"hash": new})
    async with DatabasePool(server, f"{template}_x", initial_size=0, max_size=1) as pool, pool.lease(timeout=WAIT):
        pass
    gone = sorted([template, f"{template}_{old.short}"])
    assert await server.collect_garbage(prefix=template, keep=(new,)) == gone
    assert await server.collect_garbage(prefix=template, keep=(new.short,), dry_run=True) == [
        f"{template}_x",
        f"{template}_x_test_000",
    ]


async def test_a_template_that_is_being_built_stays_and_what_a_killed_builder_left_goes(
    server: PostgresServer, template: str, connect: Any
) -> None:
    building, go_on = asyncio.Event(), asyncio.Event()

    async def setup(url: str) -> None:
        building.set()
        await go_on.wait()

    task = asyncio.ensure_future(server.ensure_template_exists(f"{template}_b", setup))
    async with asyncio.timeout(WAIT.total_seconds()):
        await building.wait()
    assert await server.collect_garbage(prefix=f"{template}_b") == []  # nobody is connected to it at the moment
    async with connect(server.url) as connection:
        scratch = await connection.fetchval(
            "SELECT datname FROM pg_database WHERE shobj_description(oid, 'pg_database') LIKE $1",
            f'%"scratch_of": "{template}_b"%',
        )
        await connection.fetch(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1",
            f"cascade_state template {template}_b"[:63],
        )
        assert await server.collect_garbage(prefix=f"{template}_b", older_than=AGES) == []
        assert await server.collect_garbage(prefix=f"{template}_b") == [scratch]
    go_on.set()
    with pytest.raises(Exception, match=r"connection|closed|exist"):
        await task


@pytest.mark.parametrize("comment", ["none of ours", "[1]", '{"tool": "cascade_state", "built_at": "yesterday"}'])
async def test_odd_comments_are_no_obstacle(server: PostgresServer, template: str, connect: Any, comment: str) -> None:
    name = f"{template}_odd"
    await server.create_database(name)
    async with connect(server.url) as connection:
        await connection.execute(f"COMMENT ON DATABASE \"{name}\" IS '{comment}'")
    names = await server.collect_garbage(prefix=name, dry_run=True)
    assert names == ([] if "built_at" in comment else [name])  # being filled, for all one knows


async def test_a_role_that_may_not_drop_them_leaves_them(
    guest: PostgresServer, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await guest.collect_garbage(prefix=template, dry_run=True) == [template]
    with caplog.at_level(logging.WARNING):
        assert await guest.collect_garbage(prefix=template) == []
    assert "cannot be dropped" in caplog.text
    await guest.create_database(f"{template}_mine")
    # Whether it may look at files decides whether it knows their age.
    assert await guest.collect_garbage(prefix=f"{template}_mine", older_than=timedelta(0)) == []
    assert await guest.collect_garbage(prefix=f"{template}_mine") == [f"{template}_mine"]


@pytest.mark.parametrize(
    ("options", "argument"), [({"prefix": ""}, "prefix"), ({"prefix": "x", "keep": "abc"}, "keep")]
)
async def test_a_dangerous_call_is_refused(server: PostgresServer, options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await server.collect_garbage(**options)
    assert caught.value.argument == argument


async def test_the_server_s_own_databases_are_never_garbage(server: PostgresServer) -> None:
    for prefix in ("postgres", "template", "cascade_state_pools"):
        assert await server.collect_garbage(prefix=prefix, dry_run=True) == []


def test_names_of_copies_are_told_from_hashes() -> None:
    from cascade_state.testing.garbage import _HASH

    check: Callable[[str], object] = _HASH.fullmatch
    assert check("0123456789ab")
    assert not check("0123456789a")
    assert not check("my_application")
