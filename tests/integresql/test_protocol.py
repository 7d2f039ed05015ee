"""INT-01 … INT-23 over HTTP; INT-18 and the second half of INT-21 are the pool's own tests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import asyncpg
import httpx
import pytest

from cascade_state.errors import (
    DatabaseDiscarded,
    ServerUnavailable,
    TemplateNotFound,
)
from cascade_state.testing import DatabaseConfig, IntegresqlClient, PostgresServer
from tests.integresql.conftest import Serving
from tests.integresql.facade import WAIT, databases, execute, facade_process, fetch, filled

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).resolve().parents[2]
SUITE = Path(__file__).with_name("suite_process.py")
NAMES = "SELECT name FROM pilot ORDER BY name"


async def test_a_role_that_is_refused_is_not_ready_until_it_is_let_in(  # INT-01
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    role = f"{prefix}_role"
    refused = DatabaseConfig.from_json(
        {"host": "127.0.0.1", "port": 1, "username": role, "password": "secret", "database": "postgres"}
    )
    async with serving(postgres=refused) as client, httpx.AsyncClient(base_url=str(client._url)) as http:
        for method, path in (
            ("POST", "/templates"),
            ("PUT", "/templates/x"),
            ("DELETE", "/templates/x"),
            ("GET", "/templates/x/tests"),
            ("POST", "/templates/x/tests/0/unlock"),
            ("DELETE", "/templates/x/tests/0"),
            ("POST", "/templates/x/tests/0/recreate"),
            ("DELETE", "/admin/templates"),
        ):
            answer = await http.request(method, path, json={"hash": "x"})
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "1"
    socket = {"postgres_user": role, "postgres_password": "secret"}
    async with serving(**socket) as client:
        with pytest.raises(ServerUnavailable, match="role"):
            await client.initialize_template("x")
        await execute(server.url, f"CREATE ROLE {role} LOGIN")
        try:
            with pytest.raises(ServerUnavailable, match="permission denied"):
                await client.initialize_template("x")
            await execute(server.url, f"ALTER ROLE {role} CREATEDB")
            config = await client.initialize_template("x")
            assert config is not None
            assert config.username == role
            await client.discard_template("x")
        finally:
            await execute(server.url, f"DROP ROLE {role}")


async def test_initializing_makes_a_database_that_is_named_after_the_hash(  # INT-02
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    async with serving() as client:
        config = await client.initialize_template("abc123")
        assert config is not None
        assert config.database == f"{prefix}_template_abc123"
        assert await fetch(config, "SELECT current_database()::text") == [config.database]


async def test_who_hangs_up_while_initializing_leaves_nothing_behind(  # INT-03
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    blocker = await asyncpg.connect(server.url_for("template1"))  # makes copying it wait
    try:
        async with serving(root_template="template1") as client:
            hurried = IntegresqlClient(str(client._url), timeout=timedelta(seconds=0.3))
            with pytest.raises(ServerUnavailable, match="in time"):
                await hurried.initialize_template("x")
            await blocker.close()
            await _until(lambda: client.initialize_template("x"))  # the old attempt may still be being undone
    finally:
        await blocker.close()
    assert await databases(server, prefix) == [f"{prefix}_template_x"]


async def test_of_five_who_initialize_one_hash_one_makes_it(serving: Serving) -> None:  # INT-04
    async with serving() as client:
        outcomes = await asyncio.gather(*(client.initialize_template("x") for _ in range(5)))
    assert sum(config is not None for config in outcomes) == 1


async def test_finalizing_is_for_known_templates_and_may_be_repeated(  # INT-05
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    async with serving() as client:
        await client.with_template("x", filled)
        await asyncio.gather(*(client.finalize_template("x") for _ in range(3)))
        with pytest.raises(TemplateNotFound):
            await client.finalize_template("unknown")
        await server.create_database(f"{prefix}_template_untracked")
        with pytest.raises(TemplateNotFound):
            await client.finalize_template("untracked")


async def test_three_who_finalize_at_the_same_time_are_all_served(serving: Serving) -> None:  # INT-05
    async with serving() as client:
        config = await client.initialize_template("x")
        assert config is not None
        await filled(config)
        await asyncio.gather(*(client.finalize_template("x") for _ in range(3)))
        assert await fetch((await client.get_test_database("x")).url, NAMES) == ["Mario"]


async def test_a_copy_has_what_the_template_has_and_no_other_sees_its_changes(serving: Serving) -> None:  # INT-06
    async with serving() as client:
        await client.with_template("x", filled)
        first, second = await client.get_test_database("x"), await client.get_test_database("x")
        await execute(first.url, "INSERT INTO pilot VALUES ('Luigi')")
        assert await fetch(first.url, NAMES) == ["Luigi", "Mario"]
        assert await fetch(second.url, NAMES) == ["Mario"]


async def test_ten_in_a_row_are_numbered_in_order(serving: Serving, prefix: str) -> None:  # INT-07
    async with serving(initial_pool_size=0, max_pool_size=10) as client:
        await client.with_template("x", filled)
        found = [await client.get_test_database("x") for _ in range(10)]
    assert [database.id for database in found] == list(range(10))
    assert [database.name for database in found] == [f"{prefix}_test_x_{number:03d}" for number in range(10)]


async def test_each_of_ten_in_a_row_comes_soon(  # INT-07
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    async with serving(initial_pool_size=0, max_pool_size=10) as client:
        await client.with_template("x", filled)
        waits = []
        for _ in range(10):
            start = time.perf_counter()
            await client.get_test_database("x")
            waits.append(time.perf_counter() - start)
        start = time.perf_counter()
        await server.create_database_from_template(f"{prefix}_bare", f"{prefix}_template_x")
        bare = time.perf_counter() - start
    # 300 ms each; on a machine with other things to do, what a few bare copies take. The median is not moved by one
    # that was interrupted.
    assert sorted(waits)[5] < max(0.3, 4 * bare)


async def test_who_comes_before_the_template_is_finalized_waits_for_it(serving: Serving) -> None:  # INT-08, INT-20
    async with serving() as client:
        config = await client.initialize_template("x")
        assert config is not None
        early = [asyncio.create_task(client.get_test_database("x")) for _ in range(3)]
        await filled(config)
        done, _ = await asyncio.wait(early, timeout=0.3)
        assert not done
        await client.finalize_template("x")
        found = await asyncio.wait_for(asyncio.gather(*early), WAIT)
        assert len({database.id for database in found}) == 3
        assert await fetch(found[0].url, NAMES) == ["Mario"]


async def test_who_waits_too_shortly_is_told_so(serving: Serving) -> None:  # INT-20
    async with serving(finalize_timeout=timedelta(milliseconds=30)) as client:
        await client.initialize_template("x")
        with pytest.raises(ServerUnavailable, match="not finalized in time"):
            await client.get_test_database("x")
        await client.finalize_template("x")
        assert (await client.get_test_database("x")).id == 0


async def test_five_at_the_same_time_get_different_ones(serving: Serving) -> None:  # INT-09
    async with serving(max_pool_size=5) as client:
        await client.with_template("x", filled)
        found = await asyncio.gather(*(client.get_test_database("x") for _ in range(5)))
    assert len({database.name for database in found}) == 5


async def test_who_waits_for_a_template_that_is_discarded_is_told_so(serving: Serving) -> None:  # INT-10
    async with serving() as client:
        await client.initialize_template("x")
        waiting = [asyncio.create_task(client.get_test_database("x")) for _ in range(5)]
        await _waiting(client, 5)
        await client.discard_template("x")
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), WAIT)
    assert {type(outcome) for outcome in outcomes} == {DatabaseDiscarded}


async def test_who_waits_for_a_copy_of_a_template_that_is_discarded_is_told_so(serving: Serving) -> None:  # INT-10
    async with serving(max_pool_size=1) as client:
        await client.with_template("x", filled)
        await client.get_test_database("x")
        waiting = [asyncio.create_task(client.get_test_database("x")) for _ in range(5)]
        await _waiting(client, 5)
        await client.discard_template("x")
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), WAIT)
        assert {type(outcome) for outcome in outcomes} == {DatabaseDiscarded}
        with pytest.raises(TemplateNotFound):
            await client.get_test_database("x")


async def test_a_discarded_template_can_be_made_again(  # INT-11
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    async with serving() as client:
        await client.with_template("x", filled)
        await client.get_test_database("x")
        await client.discard_template("x")
        assert await databases(server, prefix) == []
        with pytest.raises(TemplateNotFound):
            await client.finalize_template("x")
        config = await client.initialize_template("x")
        assert config is not None
        await execute(config, "CREATE TABLE pilot (name text); INSERT INTO pilot VALUES ('Peach')")
        await client.finalize_template("x")
        assert await fetch((await client.get_test_database("x")).url, NAMES) == ["Peach"]


async def test_given_back_unchanged_they_go_round(serving: Serving) -> None:  # INT-12, INT-19
    async with serving(initial_pool_size=3, max_pool_size=3) as client:
        await client.with_template("x", filled)
        seen: Counter[int] = Counter()
        for _ in range(9):
            database = await client.get_test_database("x")
            seen[database.id] += 1
            await client.unlock("x", database.id)
    assert set(seen) == {0, 1, 2}
    assert max(seen.values()) > 1


async def test_given_back_changed_they_are_pristine_when_they_come_again(serving: Serving) -> None:  # INT-13
    async with serving(initial_pool_size=4, max_pool_size=8) as client:
        await client.with_template("x", filled)
        seen: Counter[int] = Counter()
        for _ in range(41):
            database = await client.get_test_database("x")
            seen[database.id] += 1
            assert await fetch(database.url, NAMES) == ["Mario"]
            await execute(database.url, "INSERT INTO pilot VALUES ('Luigi')")
            await client.recreate("x", database.id)
    assert max(seen.values()) > 1


async def test_25_users_share_5_without_giving_back_and_none_loses_its_own(serving: Serving) -> None:  # INT-14
    async with serving(max_pool_size=5, reclaim_after=timedelta(milliseconds=300)) as client:
        await client.with_template("x", filled)

        async def use(number: int) -> int:
            database = await client.get_test_database("x")
            connection = await asyncpg.connect(database.url)
            try:
                await connection.execute("INSERT INTO pilot SELECT 'user ' || $1::int", number)
                await asyncio.sleep(0.02)  # what a test takes
                rows = await connection.fetch(NAMES)
                assert [row["name"] for row in rows] == ["Mario", f"user {number}"]
            finally:
                await connection.close()
            return database.id

        numbers = await asyncio.wait_for(asyncio.gather(*(use(number) for number in range(25))), WAIT)
    assert set(numbers) <= set(range(5))


async def test_an_unknown_template_has_no_databases(serving: Serving) -> None:  # INT-15
    async with serving() as client:
        with pytest.raises(TemplateNotFound):
            await asyncio.wait_for(client.get_test_database("unknown"), WAIT)


async def test_what_was_given_back_as_unchanged_comes_again_as_it_is(serving: Serving) -> None:  # INT-16
    async with serving(initial_pool_size=1, max_pool_size=2) as client:
        await client.with_template("x", filled)
        changed = await client.get_test_database("x")
        await execute(changed.url, "INSERT INTO pilot VALUES ('Luigi')")
        await client.unlock("x", changed.id)
        for _ in range(2):
            again = await client.get_test_database("x")
            if again.id == changed.id:
                break
        assert again.name == changed.name
        assert await fetch(again.url, NAMES) == ["Luigi", "Mario"]


@pytest.mark.parametrize("number", [321, 1000000000000, -1])
async def test_a_number_that_does_not_exist_cannot_be_given_back(serving: Serving, number: int) -> None:  # INT-17
    async with serving() as client:
        await client.with_template("x", filled)
        await client.get_test_database("x")
        for give_back in (client.unlock, client.recreate):
            with pytest.raises(TemplateNotFound, match="does not exist"):
                await give_back("x", number)


async def test_templates_have_pools_of_their_own(serving: Serving) -> None:  # INT-19
    hurry = timedelta(milliseconds=300)
    async with serving(max_pool_size=1) as client, serving(max_pool_size=1, get_timeout=hurry) as hurried:
        await client.with_template("x", filled)
        await client.with_template("y", lambda url: execute(url, "CREATE TABLE other (name text)"))
        first, other = await client.get_test_database("x"), await client.get_test_database("y")
        assert (first.id, other.id) == (0, 0)
        assert first.name != other.name
        with pytest.raises(ServerUnavailable, match="became free"):  # full, and empty
            await hurried.get_test_database("x")


async def test_what_is_tracked_is_not_made_again(serving: Serving) -> None:  # INT-21
    async with serving() as client:
        assert await client.initialize_template("x") is not None
        assert await client.initialize_template("x") is None
        await client.finalize_template("x")
        assert await client.initialize_template("x") is None


def test_ten_processes_migrate_once_on_a_cold_server_and_never_on_a_warm_one(  # INT-22
    server: PostgresServer, prefix: str, tmp_path: Path
) -> None:
    arguments = ("--postgres-url", server.url, "--initial-pool-size", "4", "--max-pool-size", "16")
    with facade_process(*arguments, INTEGRESQL_DB_PREFIX=prefix) as facade:
        assert _suite_runs(facade.url, "x", 10, tmp_path) == 1
        assert _suite_runs(facade.url, "x", 1, tmp_path) == 0


def _suite_runs(url: str, template_hash: str, process_count: int, directory: Path) -> int:
    """Runs processes with six tests each; returns how often they migrated."""
    log = directory / "migrations"
    log.write_text("")
    arguments = [sys.executable, str(SUITE), url, template_hash, str(process_count), "6", str(log)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    return len(log.read_text())


async def test_a_failing_set_up_leaves_no_template_and_can_be_tried_again(  # INT-23
    server: PostgresServer, serving: Serving, prefix: str
) -> None:
    async def fails(url: str) -> None:
        await filled(url)
        raise RuntimeError("half-way")

    async with serving() as client:
        with pytest.raises(RuntimeError, match="half-way"):
            await client.with_template("x", fails)
        assert await databases(server, prefix) == []
        assert await client.with_template("x", filled)
        assert await fetch((await client.get_test_database("x")).url, NAMES) == ["Mario"]


async def _waiting(client: IntegresqlClient, wanted: int) -> None:
    """Returns when so many requests wait for a database."""
    root = str(client._url).removesuffix("/api/v1")
    async with httpx.AsyncClient(base_url=root) as http:

        async def waiting() -> bool:
            return f"cascade_state_testdb_waiting {wanted}\n" in (await http.get("/metrics")).text

        await _until(waiting)


async def _until(ask: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(WAIT):
        while not await ask():  # noqa: ASYNC110 - asks another process
            await asyncio.sleep(0.02)
